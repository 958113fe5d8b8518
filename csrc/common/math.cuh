// Scalar functions of the CUDA kernels. No multiplication and addition is contracted (-fmad=false): fused ones are
// spelled fmaf.
#pragma once

#include "common/dtype.h"
#include "common/ptx.cuh"

namespace llamba {
namespace {

constexpr float kLog2e = 1.4426950408889634f;

// x / (1 + e^-x). T: what the result is rounded to: 16 bits allow the approximate instructions, whose error of
// 2^-21 is far below half a bit of theirs. Very negative x give -0.
template <typename T>
__device__ __forceinline__ float silu(float x) {
  if constexpr (sizeof(T) == 2) {
    return x * rcp_approx(1.0f + ex2_approx(-kLog2e * x));
  } else {
    return x / (1.0f + expf(-x));
  }
}

// log(1 + e^x), as torch: beyond 20 it is x.
__device__ __forceinline__ float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

// e^(dt A) of Mamba-1, whose decay is another one for each element of the state: decay_base<T>(A), once, is what
// decay<T>(dt, base) asks for. T: the activations; 16 bits allow the approximate instruction, whose error of 2^-22 is
// that of the product dt A.
template <typename T>
__device__ __forceinline__ float decay_base(float A) {
  return sizeof(T) == 2 ? kLog2e * A : A;
}
template <typename T>
__device__ __forceinline__ float decay(float dt, float base) {
  if constexpr (sizeof(T) == 2) {
    return ex2_approx_flushed(dt * base);
  } else {
    return expf(dt * base);
  }
}

template <typename T>
__device__ __forceinline__ float rounded_to(float x) {
  T y;
  from_float(x, &y);
  return to_float(y);
}

// Element i of a tensor whose dtype is known at run time only, widened.
__device__ __forceinline__ float load_as(const void* p, llamba_dtype dtype, int64_t i) {
  if (dtype == LLAMBA_FLOAT32) return load_global(static_cast<const float*>(p) + i);
  if (dtype == LLAMBA_BFLOAT16) return to_float(load_global(static_cast<const bfloat16*>(p) + i));
  return to_float(load_global(static_cast<const float16*>(p) + i));
}

}  // namespace
}  // namespace llamba
