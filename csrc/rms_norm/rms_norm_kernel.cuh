// rms_norm_kernel -- out = v / sqrt(mean(v^2) + eps) * weight; v = x, or residual + x, which is stored as residual.
// Grid     (rows)                                  Block  32 to 512 threads, by width alone
// Owns     one block owns one row of out and residual; no other block writes there
// Threads  thread t holds the vectors (16 bytes) t, t + blockDim, ... of the row
// Shared   warp_sums [16] float
// Flow     1 v, stored if there is a residual; its squares to the thread's sum  2 sum over the block
//          3 v again, from cache: out
// Barriers 1 (in 2): the warps' sums
// Numerics fp32; residual + x is rounded before it is normed, out once. A thread adds in order of its elements, then
//          lanes in one tree, then warps in order
// Requires nothing beyond rms_norm_check.h
#pragma once

#include "common/rows.cuh"
#include "llamba.h"

namespace llamba {

constexpr unsigned kNormThreads = 512;

struct NormStorage {
  float warp_sums[kNormThreads / kWarpLanes];
};

template <typename T>
__global__ void __launch_bounds__(kNormThreads) rms_norm_kernel(llamba_rms_norm_args args) {
  const int64_t head = block_index() % args.nheads, row = block_index() / args.nheads;
  const int64_t token = row % args.ntokens, batch = row / args.ntokens;
  if (batch >= args.batch) return;
  const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token +
               head * args.x_stride_head;
  const T* weight = static_cast<const T*>(args.weight);
  T* residual = static_cast<T*>(args.residual);
  if (residual != nullptr) {
    residual +=
        batch * args.residual_stride_batch + token * args.residual_stride_token + head * args.residual_stride_head;
  }
  T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token +
           head * args.out_stride_head;

  const int64_t first = int64_t{threadIdx.x} * kVector<T>, step = int64_t{blockDim.x} * kVector<T>;
  float squares = 0.0f;
  for (int64_t i = first; i < args.width; i += step) {
    prefetch_global(weight + i);  // needed right after the barrier
    const int n = vector_left<T>(args.width - i);
    float v[kVector<T>];
    load_vector(x + i, n, v);
    if (residual != nullptr) {
      float before[kVector<T>];
      load_vector(residual + i, n, before);
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) v[j] = rounded_to<T>(before[j] + v[j]);
      store_vector(residual + i, n, v);
    }
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) squares = fmaf(v[j], v[j], squares);
  }
  const float sum = block_sum(squares, shared_storage<NormStorage>().warp_sums);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(args.width) + args.eps);
  const T* normed = residual != nullptr ? residual : x;  // what this thread itself has stored or read
  for (int64_t i = first; i < args.width; i += step) {
    const int n = vector_left<T>(args.width - i);
    float v[kVector<T>], factor[kVector<T>];
    load_vector(normed + i, n, v);
    load_vector(weight + i, n, factor);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) v[j] = v[j] * scale * factor[j];
    store_vector(out + i, n, v);
  }
}

}  // namespace llamba
