// silu_mul_kernel -- out = silu(gate) * up, element by element.
// Grid     (blocks of a row, then rows)            Block  32 to 256 threads, by width
// Owns     one block owns blockDim vectors of one row of out
// Threads  one vector (16 bytes) each
// Shared   none
// Flow     1 load  2 multiply  3 store
// Barriers none
// Numerics fp32, one rounding; the same formula wherever an element lies
// Requires nothing beyond silu_mul_check.h
#pragma once

#include "common/rows.cuh"
#include "llamba.h"

namespace llamba {

constexpr unsigned kSiluMulThreads = 256;

template <typename T>
__global__ void __launch_bounds__(kSiluMulThreads) silu_mul_kernel(llamba_silu_mul_args args) {
  const int64_t block_elements = int64_t{blockDim.x} * kVector<T>;
  const int64_t blocks_per_row = (args.width + block_elements - 1) / block_elements;
  const int64_t row = block_index() / blocks_per_row;
  const int64_t i = block_index() % blocks_per_row * block_elements + int64_t{threadIdx.x} * kVector<T>;
  const int64_t batch = row / args.ntokens, token = row % args.ntokens;
  if (batch >= args.batch || i >= args.width) return;
  const T* gate = static_cast<const T*>(args.gate) + batch * args.gate_stride_batch + token * args.gate_stride_token;
  const T* up = static_cast<const T*>(args.up) + batch * args.up_stride_batch + token * args.up_stride_token;
  T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token;

  const int n = vector_left<T>(args.width - i);
  float v[kVector<T>], factor[kVector<T>];
  load_vector(gate + i, n, v);
  load_vector(up + i, n, factor);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) v[j] = silu<T>(v[j]) * factor[j];
  store_vector(out + i, n, v);
}

}  // namespace llamba
