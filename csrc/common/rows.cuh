// What kernels over rows share: vectors of 16 bytes where the addresses allow it and single elements where not, each
// element in the same thread either way, so that no bits depend on it; sums over a block; grids of any size.
#pragma once

#include "common/math.cuh"

namespace llamba {
namespace {

constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr int kWarpLanes = 32;

template <typename T>
constexpr int kVector = 16 / static_cast<int>(sizeof(T));  // elements of one vector

// How many of a vector's elements exist when `left` are left.
template <typename T>
__device__ __forceinline__ int vector_left(int64_t left) {
  return left < kVector<T> ? static_cast<int>(left) : kVector<T>;
}

__device__ __forceinline__ bool is_vector_aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }

// The first n elements from p, widened; the others are zero, and what would be theirs is not read.
template <int kCount, typename T>
__device__ __forceinline__ void load_vector(const T* p, int n, float (&v)[kCount]) {
  static_assert(kCount % kVector<T> == 0, "whole vectors");
  if (n >= kCount && is_vector_aligned(p)) {
#pragma unroll
    for (int i = 0; i < kCount; i += kVector<T>) {
      const uint4 bits = load_global(reinterpret_cast<const uint4*>(p + i));
      T elements[kVector<T>];
      memcpy(elements, &bits, sizeof(bits));
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) v[i + j] = to_float(elements[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = i < n ? to_float(load_global(p + i)) : 0.0f;
  }
}

// The first n values, rounded to T; nothing beyond p + n is touched.
template <int kCount, typename T>
__device__ __forceinline__ void store_vector(T* p, int n, const float (&v)[kCount]) {
  static_assert(kCount % kVector<T> == 0, "whole vectors");
  if (n >= kCount && is_vector_aligned(p)) {
#pragma unroll
    for (int i = 0; i < kCount; i += kVector<T>) {
      T elements[kVector<T>];
#pragma unroll
      for (int j = 0; j < kVector<T>; ++j) from_float(v[i + j], &elements[j]);
      uint4 bits;
      memcpy(&bits, elements, sizeof(bits));
      store_global(reinterpret_cast<uint4*>(p + i), bits);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      T element;
      from_float(v[i], &element);
      if (i < n) store_global(p + i, element);
    }
  }
}

// The first n elements, bit for bit.
template <typename T>
__device__ __forceinline__ void copy_vector(T* to, const T* from, int n) {
  if (n >= kVector<T> && is_vector_aligned(to) && is_vector_aligned(from)) {
    store_global(reinterpret_cast<uint4*>(to), load_global(reinterpret_cast<const uint4*>(from)));
  } else {
#pragma unroll
    for (int i = 0; i < kVector<T>; ++i) {
      if (i < n) store_global(to + i, load_global(from + i));
    }
  }
}

// Sum over the block, the same bits for every thread: lanes in one tree, then the warps in order. warp_sums: [warps]
// in shared memory, unused before.
template <typename T>
__device__ __forceinline__ T block_sum(T value, T* warp_sums) {
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kWholeWarp, value, lanes);
  if (threadIdx.x % kWarpLanes == 0) warp_sums[threadIdx.x / kWarpLanes] = value;
  __syncthreads();  // every warp's sum is there
  T total = warp_sums[0];
  for (unsigned warp = 1; warp < blockDim.x / kWarpLanes; ++warp) total += warp_sums[warp];
  return total;
}

// Threads for a row: one vector each, in whole warps. The order of a row's sum follows from it, so it depends on the
// row's size alone.
template <typename T>
unsigned row_threads(int64_t size, unsigned most) {
  const int64_t warps = (size + kVector<T> * kWarpLanes - 1) / (kVector<T> * kWarpLanes);
  return warps * kWarpLanes < most ? static_cast<unsigned>(warps) * kWarpLanes : most;
}

// A grid of at least `blocks` blocks; block_index() may be beyond them.
inline dim3 grid_of(int64_t blocks) {
  constexpr int64_t kMostInX = 1 << 30;
  if (blocks <= kMostInX) return dim3(static_cast<unsigned>(blocks));
  return dim3(kMostInX, static_cast<unsigned>((blocks + kMostInX - 1) / kMostInX));
}
__device__ __forceinline__ int64_t block_index() { return blockIdx.x + int64_t{gridDim.x} * blockIdx.y; }

}  // namespace
}  // namespace llamba
