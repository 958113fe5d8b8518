// gated_rms_norm_kernel -- out = v / sqrt(mean(v^2) + eps) * weight over each group, v = x * silu(z), or x without z.
// Grid     (groups of all rows)                    Block  32 to 512 threads, by group_size alone
// Owns     one block owns one group of one row; no other block writes there
// Threads  thread t holds the vectors (16 bytes) t, t + blockDim, ... of the group
// Shared   warp_sums [16] float
// Flow     1 v, its squares to the thread's sum  2 sum over the block  3 v again, from cache: out
// Barriers 1 (in 2): the warps' sums
// Numerics fp32, one rounding at the end. A thread adds in order of its elements, then lanes in one tree, then warps in
//          order: as rms_norm, so that both give the same bits without a gate
// Requires group_size divides width                (checked in gated_rms_norm_check.h)
#pragma once

#include "common/rows.cuh"
#include "llamba.h"

namespace llamba {

constexpr unsigned kGatedNormThreads = 512;

struct GatedNormStorage {
  float warp_sums[kGatedNormThreads / kWarpLanes];
};

// v is computed twice rather than kept: groups of any size have no registers that hold them.
template <typename T>
__device__ __forceinline__ void load_gated(const T* x, const T* z, int64_t i, int n, float (&v)[kVector<T>]) {
  load_vector(x + i, n, v);
  if (z == nullptr) return;
  float gate[kVector<T>];
  load_vector(z + i, n, gate);
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) v[j] *= silu<T>(gate[j]);
}

template <typename T>
__global__ void __launch_bounds__(kGatedNormThreads) gated_rms_norm_kernel(llamba_gated_rms_norm_args args) {
  const int64_t groups_per_row = args.width / args.group_size;
  const int64_t row = block_index() / groups_per_row, column = block_index() % groups_per_row * args.group_size;
  const int64_t batch = row / args.ntokens, token = row % args.ntokens;
  if (batch >= args.batch) return;
  const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token + column;
  const T* z = static_cast<const T*>(args.z);
  if (z != nullptr) z += batch * args.z_stride_batch + token * args.z_stride_token + column;
  const T* weight = static_cast<const T*>(args.weight) + column;
  T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token + column;

  const int64_t first = int64_t{threadIdx.x} * kVector<T>, step = int64_t{blockDim.x} * kVector<T>;
  float squares = 0.0f;
  for (int64_t i = first; i < args.group_size; i += step) {
    prefetch_global(weight + i);  // needed right after the barrier
    float v[kVector<T>];
    load_gated(x, z, i, vector_left<T>(args.group_size - i), v);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) squares = fmaf(v[j], v[j], squares);
  }
  const float sum = block_sum(squares, shared_storage<GatedNormStorage>().warp_sums);
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(args.group_size) + args.eps);
  for (int64_t i = first; i < args.group_size; i += step) {
    const int n = vector_left<T>(args.group_size - i);
    float v[kVector<T>], factor[kVector<T>];
    load_gated(x, z, i, n, v);
    load_vector(weight + i, n, factor);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) v[j] = v[j] * scale * factor[j];
    store_vector(out + i, n, v);
  }
}

}  // namespace llamba
