// Numbers as sums of bfloat16 pieces, for tensor cores: a float is three exactly, a half two, a bfloat16 one. Products of
// pieces are exact in fp32.
#pragma once

#include "common/math.cuh"

namespace llamba {
namespace {

template <typename T>
struct Pieces {
  static constexpr int kCount = sizeof(T) == 4 ? 3 : 2;
};
template <>
struct Pieces<bfloat16> {
  static constexpr int kCount = 1;
};

// pieces[i][at]: the i-th of low in bits 0 to 15, of high above. Cut off, so each remainder is exact.
template <int kCount, int kRegisters>
__device__ __forceinline__ void split_pair(float low, float high, int at, unsigned (&pieces)[kCount][kRegisters]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    pieces[i][at] = upper_halves(low, high);
    if (i + 1 < kCount) {
      low -= float_of(bits_of(low) & 0xffff0000u);
      high -= float_of(bits_of(high) & 0xffff0000u);
    }
  }
}

// The value whose pieces lie `stride` apart.
template <typename T>
__device__ __forceinline__ float sum_pieces(const uint16_t* piece, int32_t stride) {
  float sum = 0.0f;
#pragma unroll
  for (int i = Pieces<T>::kCount - 1; i >= 0; --i) sum += to_float(bfloat16{piece[i * stride]});
  return sum;
}

// A 16 x 8 sum of products of pieces. The tensor core cuts its sums off, always towards zero: a long chain of them would
// drift by half a unit in the last place each time. So only the small products are chained; each step's products of the
// first pieces start from zero, and their sum is added by an ordinary, rounded addition. Pairs of pieces below 2^-31 of
// the product are left out.
struct PieceSum {
  float sum[4] = {}, small[4] = {};

  template <int kCountA, int kCountB>
  __device__ __forceinline__ void add(const unsigned (&a)[kCountA][4], const unsigned (&b)[kCountB][2], int used_of_a) {
#pragma unroll
    for (int i = kCountA - 1; i >= 0; --i) {
#pragma unroll
      for (int j = kCountB - 1; j >= 0; --j) {
        if (i + j > 0 && i + j <= 3 && i < used_of_a) mma_bf16(small, a[i], b[j]);
      }
    }
    float first[4] = {};
    mma_bf16(first, a[0], b[0]);
    for (int i = 0; i < 4; ++i) sum[i] += first[i];
  }
  __device__ __forceinline__ float total(int i) const { return sum[i] + small[i]; }
};

}  // namespace
}  // namespace llamba
