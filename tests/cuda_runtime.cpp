// A CUDA runtime that launches nothing: it prints "kernel threads shared_bytes" for every launch. Linked with the
// objects of libllamba_cuda.so in place of NVIDIA's, so that the launchers themselves say how they launch
// (tests/cuda_gates.py) on the GPU that it stands for. A launcher that calls more of the runtime does not link, and one
// that asks more of the GPU fails: give it its answer here.
#include <cstddef>
#include <cstdio>
#include <map>
#include <string>

#include "cuda_launches.h"

struct dim3 {
  unsigned x, y, z;
};
enum { kSuccess = 0, kInvalidValue = 1 };                                     // of cudaError_t
enum { kMultiprocessors = 16, kMajor = 75, kMinor = 76, kSharedOptin = 97 };  // of cudaDeviceAttr

Gpu gpu;

struct Kernel {
  std::string name;                // mangled
  size_t most_shared = 48 * 1024;  // more must be asked for
};

static std::map<const void*, Kernel>& kernels() {
  static std::map<const void*, Kernel> all;  // in a function: kernels are registered before main
  return all;
}

extern "C" {

void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}

void __cudaRegisterFunction(void**, const void* host_function, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
  kernels()[host_function].name = name;
}

// The host functions that nvcc makes for <<<>>> name these; launch() calls none of them.
unsigned __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return kInvalidValue; }
int __cudaGetKernel(void**, const void*) { return kInvalidValue; }
int __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, void*) { return kInvalidValue; }

int cudaGetDevice(int* device) {
  *device = 0;
  return kSuccess;
}

int cudaDeviceGetAttribute(int* value, int attribute, int) {
  const std::map<int, int> answers = {{kMultiprocessors, 108},  // an A100's, whatever the architecture
                                      {kMajor, gpu.arch / 10},
                                      {kMinor, gpu.arch % 10},
                                      {kSharedOptin, gpu.shared_bytes}};
  const auto answer = answers.find(attribute);
  if (answer == answers.end()) return kInvalidValue;
  *value = answer->second;
  return kSuccess;
}

int cudaFuncSetAttribute(const void* function, int, int value) {
  if (value > gpu.shared_bytes) return kInvalidValue;
  kernels().at(function).most_shared = value;  // the one attribute that launch() sets
  return kSuccess;
}

int cudaLaunchKernel(const void* function, dim3 grid, dim3 block, void**, size_t shared, void*) {
  const Kernel& kernel = kernels().at(function);
  const size_t threads = size_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || threads == 0 || threads > 1024 || shared > kernel.most_shared) {
    return kInvalidValue;
  }
  std::printf("%s %zu %zu\n", kernel.name.c_str(), threads, shared);
  return kSuccess;
}

const char* cudaGetErrorName(int error) { return error == kSuccess ? "cudaSuccess" : "cudaErrorInvalidValue"; }
const char* cudaGetErrorString(int) { return "of tests/cuda_runtime.cpp"; }

}  // extern "C"
