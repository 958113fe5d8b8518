// Opens libllamba_cuda.so, which lies beside _C.so, on first use. One _C.so serves machines with and without CUDA.
#include <dlfcn.h>

#include <string>

#include "common/run.h"

// Weak: only a CUDA build of torch has it. (torch's headers declare it for CUDA builds only.)
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);

namespace llamba {
namespace {

struct CudaLibrary {
  void* handle = nullptr;
  std::string problem;  // why handle is null

  CudaLibrary() {
    Dl_info self;
    dladdr(reinterpret_cast<void*>(&run_cuda), &self);
    const std::string file = self.dli_fname;
    handle = dlopen((file.substr(0, file.rfind('/') + 1) + "libllamba_cuda.so").c_str(), RTLD_NOW | RTLD_LOCAL);
    if (handle == nullptr) {
      problem = dlerror();
    } else if (const int version = find<int()>("llamba_abi_version")(); version != LLAMBA_ABI_VERSION) {
      problem = "one of interface version " + std::to_string(version) + ", not " + std::to_string(LLAMBA_ABI_VERSION);
      handle = nullptr;
    }
  }

  template <typename Function>
  Function* find(const std::string& name) const {
    return reinterpret_cast<Function*>(dlsym(handle, name.c_str()));
  }
};

const CudaLibrary& cuda_library() {
  static const CudaLibrary library;
  return library;
}

[[noreturn]] void refuse(const char* op, const std::string& rest) {
  check_status(LLAMBA_CUDA_ERROR, (std::string(op) + ": " + rest).c_str());
  __builtin_unreachable();
}

}  // namespace

void run_cuda(const char* op, const void* args, int32_t device) {
  const CudaLibrary& library = cuda_library();
  if (library.handle == nullptr) {
    refuse(op, "the CUDA library must be built (nvcc at install time, LLAMBA_CUDA=1); got " + library.problem);
  }
  const auto function = library.find<int(const void*, void*)>("llamba_" + std::string(op) + "_cuda");
  if (function == nullptr) refuse(op, "the CUDA library must have this operator; got one without it");
  void* stream = nullptr;
#ifndef LLAMBA_SIMT
  if (aoti_torch_get_current_cuda_stream == nullptr) {
    refuse(op, "torch must be a CUDA build to run on CUDA tensors; got a CPU build");
  }
  const torch::stable::accelerator::DeviceGuard guard(device);
  if (aoti_torch_get_current_cuda_stream(device, &stream) != AOTI_TORCH_SUCCESS) {
    refuse(op, "torch must give the current CUDA stream; got an error from it");
  }
#endif
  const int status = function(args, stream);  // first: the sentence is read after the call that records it
  check_status(status, library.find<const char*()>("llamba_last_error")());
}

#ifdef LLAMBA_SIMT
bool simt_has(const char* op) {
  const CudaLibrary& library = cuda_library();
  return library.handle != nullptr && *library.find<int>("llamba_simt_enabled") != 0 &&
         library.find<int>("llamba_" + std::string(op) + "_cuda") != nullptr;
}
#endif

}  // namespace llamba

// Read by llamba_kernels/env.py: what the CUDA library was compiled for, and why it cannot be used; "" if it can.
extern "C" {
LLAMBA_API const char* llamba_cuda_archs(void) {
  const llamba::CudaLibrary& library = llamba::cuda_library();
  return library.handle == nullptr ? "" : library.find<const char*()>("llamba_archs_cuda")();
}
LLAMBA_API const char* llamba_cuda_problem(void) { return llamba::cuda_library().problem.c_str(); }
}
