// skinny_linear -- out = x weight^T + bias for a few rows of x, at the speed of reading weight once.
// Work      a tile is kFeatures rows of weight x up to kMaxTokens rows of x, over all of in_features. A thread walks
//           its features; for each few it runs the tiles of all rows of x, so that weight comes from memory once and
//           for the later tiles from the nearest cache
// Registers one accumulator of 16 lanes per (feature, token); a weight vector is loaded once per tile
// Numerics  fp32 fused multiply-adds. Element k of in_features adds to lane k % 16 in order of k (float32, float16), or to
//           lane k % 32 / 2, the even k of each 32 first (bfloat16: two elements in 32 bits widen by a shift and a mask).
//           Then the lanes' fixed tree, bias, one rounding. So an output's bits depend on its row of x and its row of
//           weight alone, not on the tile they meet in, the number of rows or the threads
#include <cstring>

#include "common/vec.h"
#include "llamba.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// The accumulators, one weight vector and one vector per token must fit the registers (AVX-512: 32 of 16 floats).
constexpr int kFeatures = kNativeLanes == 16 ? 4 : 2;
constexpr int kMaxTokens = kNativeLanes == 16 ? 6 : 2;

// The processor's own prefetching falls behind when a step takes long: this makes 4 tokens 15 % (float32) to 30 %
// (bfloat16) faster on one core. It would make one float32 token, the shortest step, 8 % slower.
constexpr int kPrefetchBytes = 2048;
template <typename T, int kTokens>
constexpr bool kPrefetch = kTokens > 1 || sizeof(T) == 2;

// 64 bytes of a row are one vec16 of float32, or two of 16 bits.
template <typename T>
constexpr int kStep = 64 / sizeof(T);
LLAMBA_INLINE vec16 load_part(const float* p, int) { return load(p); }
LLAMBA_INLINE vec16 load_part(const bfloat16* p, int part) { return part == 0 ? load_even(p) : load_odd(p); }
LLAMBA_INLINE vec16 load_part(const float16* p, int part) { return load(p + part * kLanes); }

template <typename T, int kRows, int kTokens>
LLAMBA_INLINE void multiply_step(const T* const (&weight)[kRows], const T* const (&x)[kTokens], int64_t k,
                                 vec16 (&sums)[kRows][kTokens]) {
#pragma GCC unroll 2
  for (int part = 0; part < kStep<T> / kLanes; ++part) {
    vec16 x_reg[kTokens];
#pragma GCC unroll 8
    for (int token = 0; token < kTokens; ++token) x_reg[token] = load_part(x[token] + k, part);
#pragma GCC unroll 8
    for (int row = 0; row < kRows; ++row) {
      if (kPrefetch<T, kTokens> && part == 0) {
        __builtin_prefetch(reinterpret_cast<const char*>(weight[row] + k) + kPrefetchBytes);
      }
      const vec16 weight_reg = load_part(weight[row] + k, part);
#pragma GCC unroll 8
      for (int token = 0; token < kTokens; ++token) sums[row][token] = fma(weight_reg, x_reg[token], sums[row][token]);
    }
  }
}

// The last, partial step: both sides are copied and followed by zeros.
template <typename T, int kRows, int kTokens>
LLAMBA_INLINE void multiply_tail(const T* const (&weight)[kRows], const T* const (&x)[kTokens], int64_t k, int64_t n,
                                 vec16 (&sums)[kRows][kTokens]) {
  T weight_tail[kRows][kStep<T>] = {}, x_tail[kTokens][kStep<T>] = {};
  const T *weight_rows[kRows], *x_rows[kTokens];
  for (int row = 0; row < kRows; ++row) {
    weight_rows[row] = static_cast<T*>(std::memcpy(weight_tail[row], weight[row] + k, n * sizeof(T)));
  }
  for (int token = 0; token < kTokens; ++token) {
    x_rows[token] = static_cast<T*>(std::memcpy(x_tail[token], x[token] + k, n * sizeof(T)));
  }
  multiply_step(weight_rows, x_rows, 0, sums);
}

template <typename T, int kRows, int kTokens>
void multiply_tile(const llamba_skinny_linear_args& args, int64_t feature, int64_t batch, int64_t token) {
  const T *weight[kRows], *x[kTokens];
  vec16 sums[kRows][kTokens];
  for (int i = 0; i < kRows; ++i) {
    weight[i] = static_cast<const T*>(args.weight) + (feature + i) * args.weight_stride_row;
    for (int j = 0; j < kTokens; ++j) sums[i][j] = broadcast(0.0f);
  }
  for (int j = 0; j < kTokens; ++j) {
    x[j] = static_cast<const T*>(args.x) + batch * args.x_stride_batch + (token + j) * args.x_stride_token;
  }
  int64_t k = 0;
  for (; k + kStep<T> <= args.in_features; k += kStep<T>) multiply_step(weight, x, k, sums);
  if (k < args.in_features) multiply_tail(weight, x, k, args.in_features - k, sums);

  const T* bias = static_cast<const T*>(args.bias);
  for (int j = 0; j < kTokens; ++j) {
    T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + (token + j) * args.out_stride_token + feature;
    for (int i = 0; i < kRows; ++i) {
      const float y = sum(sums[i][j]);
      from_float(bias ? y + to_float(bias[feature + i]) : y, out + i);
    }
  }
}

// Tokens [token, token + count): as many tiles of kTokens as fit, then narrower ones.
template <typename T, int kRows, int kTokens = kMaxTokens>
void multiply_tokens(const llamba_skinny_linear_args& args, int64_t feature, int64_t batch, int64_t token,
                     int64_t count) {
  for (; count >= kTokens; token += kTokens, count -= kTokens) {
    multiply_tile<T, kRows, kTokens>(args, feature, batch, token);
  }
  if constexpr (kTokens > 1) multiply_tokens<T, kRows, kTokens - 1>(args, feature, batch, token, count);
}

template <typename T>
void multiply_features(const llamba_skinny_linear_args& args, int64_t begin, int64_t end) {
  int64_t feature = begin;
  for (; feature + kFeatures <= end; feature += kFeatures) {
    for (int64_t batch = 0; batch < args.batch; ++batch) {
      multiply_tokens<T, kFeatures>(args, feature, batch, 0, args.ntokens);
    }
  }
  for (; feature < end; ++feature) {
    for (int64_t batch = 0; batch < args.batch; ++batch) multiply_tokens<T, 1>(args, feature, batch, 0, args.ntokens);
  }
}

}  // namespace

void skinny_linear_features(const llamba_skinny_linear_args& args, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, multiply_features<T>(args, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
