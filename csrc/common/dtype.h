// The element types as C++ sees them. Conversion to 16 bits rounds to nearest even, NaN stays NaN.
#pragma once

#include <cstdint>
#include <cstring>

#include "common/host_device.h"
#include "llamba.h"
#ifdef __CUDACC__
#include "common/ptx.cuh"
#endif

// LLAMBA_SWITCH_DTYPE(args.dtype, T, return run<T>(args)): the statement with T as the element type.
#define LLAMBA_SWITCH_DTYPE(dtype, T, ...) \
  switch (dtype) {                         \
    case LLAMBA_FLOAT32: {                 \
      using T = float;                     \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case LLAMBA_BFLOAT16: {                \
      using T = bfloat16;                  \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
    case LLAMBA_FLOAT16: {                 \
      using T = float16;                   \
      __VA_ARGS__;                         \
      break;                               \
    }                                      \
  }

namespace llamba {
namespace {

struct bfloat16 {
  uint16_t bits;
};
struct float16 {
  uint16_t bits;
};

[[maybe_unused]] LLAMBA_HOST_DEVICE int64_t element_size(llamba_dtype dtype) { return dtype == LLAMBA_FLOAT32 ? 4 : 2; }

[[maybe_unused]] LLAMBA_HOST_DEVICE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
[[maybe_unused]] LLAMBA_HOST_DEVICE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

[[maybe_unused]] LLAMBA_HOST_DEVICE float to_float(float x) { return x; }
[[maybe_unused]] LLAMBA_HOST_DEVICE float to_float(bfloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }
[[maybe_unused]] LLAMBA_HOST_DEVICE float to_float(float16 x) {
#ifdef __CUDA_ARCH__
  return float_of_float16(x.bits);
#else
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, magnitude = x.bits & 0x7fffu;
  if (magnitude > 0x7c00u) return float_of(sign | 0x7fc00000u | magnitude << 13);
  if (magnitude == 0x7c00u) return float_of(sign | 0x7f800000u);
  if (magnitude >= 0x0400u) return float_of(sign | (magnitude + (112u << 10)) << 13);
  return float_of(sign | bits_of(static_cast<float>(magnitude) * 0x1p-24f));  // subnormal: a multiple of 2^-24
#endif
}

[[maybe_unused]] LLAMBA_HOST_DEVICE void from_float(float x, float* y) { *y = x; }
[[maybe_unused]] LLAMBA_HOST_DEVICE void from_float(float x, bfloat16* y) {
#ifdef __CUDA_ARCH__
  y->bits = bits_of_bfloat16(x);
#else
  const uint32_t bits = bits_of(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    y->bits = static_cast<uint16_t>((bits >> 16) | 0x0040u);
  } else {
    y->bits = static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
#endif
}
[[maybe_unused]] LLAMBA_HOST_DEVICE void from_float(float x, float16* y) {
#ifdef __CUDA_ARCH__
  y->bits = bits_of_float16(x);
#else
  const uint32_t sign = bits_of(x) >> 16 & 0x8000u, magnitude = bits_of(x) & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u | (magnitude >> 13 & 0x3ffu);
  } else if (magnitude >= 0x47800000u) {  // 2^16 and above
    half = 0x7c00u;
  } else if (magnitude >= 0x38800000u) {  // 2^-14: the least normal half; rounding may carry into infinity
    half = ((magnitude + 0xfffu + (magnitude >> 13 & 1u)) >> 13) - (112u << 10);
  } else {  // adding 1/2 rounds to a multiple of 2^-24
    half = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  }
  y->bits = static_cast<uint16_t>(sign | half);
#endif
}

}  // namespace
}  // namespace llamba
