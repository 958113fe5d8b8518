// How many multiprocessors the current device has: what a launcher's choice of grid depends on.
#pragma once

#include "common/cuda_check.h"

namespace llamba {

inline cudaError_t count_multiprocessors(int32_t* count) {
#ifdef LLAMBA_SIMT
  *count = llamba_simt_multiprocessors;
  return cudaSuccess;
#else
  constexpr int kMostDevices = 64;
  static int32_t known[kMostDevices];  // a race writes the same number twice
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  if (device < kMostDevices && known[device] != 0) {
    *count = known[device];
    return cudaSuccess;
  }
  int value = 0;
  const cudaError_t asked = cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device);
  if (asked == cudaSuccess && device < kMostDevices) known[device] = value;
  *count = value;
  return asked;
#endif
}

}  // namespace llamba
