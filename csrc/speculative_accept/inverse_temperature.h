// 1 / temperature as the CPU and the CUDA kernels use it.
#pragma once

#include "common/host_device.h"

namespace llamba {
namespace {

// Kept a normal float: an infinity times the maximum's 0, or 0 times a masked token's infinity, is NaN. Beyond its ends
// p is the argmax's, or that of all unmasked tokens alike, as it is with the inverse at the end.
[[maybe_unused]] LLAMBA_HOST_DEVICE float inverse_of(double temperature) {
  const double inverse = 1.0 / temperature;
  if (inverse > __FLT_MAX__) return __FLT_MAX__;
  return static_cast<float>(inverse < __FLT_MIN__ ? __FLT_MIN__ : inverse);
}

}  // namespace
}  // namespace llamba
