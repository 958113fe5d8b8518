// What a block does with one row of logits: its maximum, the sum of its weights, and a token by inverse CDF.
// Every thread of the block calls these together and gets the same result. A row goes round the threads by vectors
// (16 bytes); a pass of the whole block over blockDim vectors is a tile.
#pragma once

#include "common/rows.cuh"

namespace llamba {

constexpr unsigned kAcceptThreads = 512;

struct AcceptStorage {
  double sums[kAcceptThreads / kWarpLanes];
  uint64_t keys[kAcceptThreads / kWarpLanes];
};

// Both leave the storage free for the next call.
__device__ __forceinline__ double accept_sum(double value, AcceptStorage& shared) {
  const double sum = block_sum(value, shared.sums);
  __syncthreads();  // every thread has read the warps' sums
  return sum;
}
__device__ __forceinline__ uint64_t accept_min(uint64_t key, AcceptStorage& shared) {
#pragma unroll
  for (int lanes = kWarpLanes / 2; lanes > 0; lanes /= 2) {
    const uint64_t other = __shfl_xor_sync(kWholeWarp, key, lanes);
    if (other < key) key = other;
  }
  if (threadIdx.x % kWarpLanes == 0) shared.keys[threadIdx.x / kWarpLanes] = key;
  __syncthreads();  // every warp's key is there
  for (unsigned warp = 0; warp < blockDim.x / kWarpLanes; ++warp) {
    if (shared.keys[warp] < key) key = shared.keys[warp];
  }
  __syncthreads();  // every thread has read the warps' keys
  return key;
}

struct RowMax {
  float max;       // infinity if any logit is NaN
  int32_t argmax;  // the lowest index of it
};

template <typename T>
__device__ __forceinline__ RowMax row_max(const T* logits, int64_t vocab, AcceptStorage& shared) {
  float largest = -INFINITY;
  uint32_t index = 0;
  bool has_nan = false;
  for (int64_t i = int64_t{threadIdx.x} * kVector<T>; i < vocab; i += int64_t{blockDim.x} * kVector<T>) {
    const int n = vector_left<T>(vocab - i);
    float v[kVector<T>];
    load_vector(logits + i, n, v);
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      has_nan |= v[j] != v[j];
      if (j < n && v[j] > largest) {
        largest = v[j];
        index = static_cast<uint32_t>(i + j);
      }
    }
  }
  // The least key: of the largest logit (-0 as +0), then the lowest index.
  const uint32_t bits = bits_of(has_nan ? INFINITY : largest + 0.0f);
  const uint32_t ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
  const uint64_t key = accept_min(uint64_t{~ascending} << 32 | index, shared);
  const uint32_t found = ~static_cast<uint32_t>(key >> 32);
  return {float_of(found >> 31 ? found & 0x7fffffffu : ~found), static_cast<int32_t>(key)};
}

// A row's unnormalised p, or its (p - q)+.
template <typename T>
struct Weights {
  const T* logits;  // [vocab]
  const float* q;   // [vocab] or nullptr
  int64_t vocab;
  int64_t without;  // token of weight zero, or -1
  float row_max, inverse_temperature;
  float scale;  // p = scale * exponential

  __device__ __forceinline__ float exponential(float logit) const {
    return expf((logit - row_max) * inverse_temperature);
  }
  // Weights of the vector from token i on, zero beyond the row; returns their sum.
  __device__ __forceinline__ double load(int64_t i, float (&weights)[kVector<T>]) const {
    const int n = i < vocab ? vector_left<T>(vocab - i) : 0;
    float minus[kVector<T>] = {};
    load_vector(logits + i, n, weights);
    if (q != nullptr) load_vector(q + i, n, minus);
    double sum = 0.0;
#pragma unroll
    for (int j = 0; j < kVector<T>; ++j) {
      const float weight = fmaxf(exponential(weights[j]) * scale - minus[j], 0.0f);
      weights[j] = j < n && i + j != without ? weight : 0.0f;
      sum += weights[j];
    }
    return sum;
  }
};

template <typename T>
__device__ __forceinline__ double sum_of(const Weights<T>& weights, AcceptStorage& shared) {
  double sum = 0.0;
  for (int64_t i = int64_t{threadIdx.x} * kVector<T>; i < weights.vocab; i += int64_t{blockDim.x} * kVector<T>) {
    float unused[kVector<T>];
    sum += weights.load(i, unused);
  }
  return accept_sum(sum, shared);
}

// The first token at which the running sum passes `target`; if rounding keeps it below, the last that weighs anything.
template <typename T>
__device__ __forceinline__ int64_t sample(const Weights<T>& weights, double target, AcceptStorage& shared) {
  const int64_t tile = int64_t{blockDim.x} * kVector<T>, own = int64_t{threadIdx.x} * kVector<T>;
  float block[kVector<T>];
  double before = 0.0, passed = 0.0;  // weight of all tiles before the chosen one; of all tiles so far
  int64_t chosen = 0;
  for (int64_t start = 0; start < weights.vocab && !(passed > target); start += tile) {
    const double sum = accept_sum(weights.load(start + own, block), shared);
    if (sum > 0.0) {
      before = passed;
      chosen = start;
    }
    passed += sum;
  }
  // Within it likewise: the weight of all vectors before this thread's, then token by token.
  const double sum = weights.load(chosen + own, block);
  double inclusive = sum;
  const int lane = threadIdx.x % kWarpLanes;
#pragma unroll
  for (int lanes = 1; lanes < kWarpLanes; lanes *= 2) {
    const double lower = __shfl_up_sync(kWholeWarp, inclusive, lanes);
    if (lane >= lanes) inclusive += lower;
  }
  const double lower = __shfl_up_sync(kWholeWarp, inclusive, 1);
  if (lane == kWarpLanes - 1) shared.sums[threadIdx.x / kWarpLanes] = inclusive;
  __syncthreads();  // every warp's sum is there
  for (unsigned warp = 0; warp < threadIdx.x / kWarpLanes; ++warp) before += shared.sums[warp];
  if (lane > 0) before += lower;
  constexpr uint64_t kNone = ~uint64_t{0}, kBelow = uint64_t{1} << 32;
  uint64_t key = kNone;  // the token where the sum passes; else kBelow and less the higher the last token is
#pragma unroll
  for (int j = 0; j < kVector<T>; ++j) {
    before += block[j];
    const uint64_t token = static_cast<uint64_t>(chosen + own + j);
    if (block[j] > 0.0f && key >= kBelow) key = before > target ? token : 2 * kBelow - token;
  }
  key = accept_min(key, shared);
  return static_cast<int64_t>(key < kBelow ? key : 2 * kBelow - key);
}

}  // namespace llamba
