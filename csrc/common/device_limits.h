// What a launcher's choice of grid and kernel depends on: facts of the current device, asked for once.
#pragma once

#include "common/cuda_check.h"

namespace llamba {

struct DeviceLimits {
  int32_t multiprocessors, shared_bytes, arch;  // shared_bytes: of one block; arch: 80, 86, 90, ...
};

inline cudaError_t device_limits(DeviceLimits* limits) {
#ifdef LLAMBA_SIMT
  *limits = {llamba_simt_multiprocessors, llamba_simt_shared_bytes, llamba_simt_arch};
  return cudaSuccess;
#else
  constexpr int kMostDevices = 64;
  static thread_local DeviceLimits known[kMostDevices];
  int device = 0, multiprocessors = 0, shared_bytes = 0, major = 0, minor = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess && device < kMostDevices && known[device].arch != 0) {
    *limits = known[device];
    return cudaSuccess;
  }
  const struct {
    cudaDeviceAttr attribute;
    int* value;
  } wanted[] = {{cudaDevAttrMultiProcessorCount, &multiprocessors},
                {cudaDevAttrMaxSharedMemoryPerBlockOptin, &shared_bytes},
                {cudaDevAttrComputeCapabilityMajor, &major},
                {cudaDevAttrComputeCapabilityMinor, &minor}};
  for (const auto& [attribute, value] : wanted) {
    if (error == cudaSuccess) error = cudaDeviceGetAttribute(value, attribute, device);
  }
  *limits = {multiprocessors, shared_bytes, 10 * major + minor};
  if (error == cudaSuccess && device < kMostDevices) known[device] = *limits;
  return error;
#endif
}

}  // namespace llamba
