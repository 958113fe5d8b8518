// rope_kernel -- rotates the pairs (a, b) of each head by its token's position: a cos - b sin, a sin + b cos.
// Grid     (blocks of a token, then tokens)        Block  128 threads
// Owns     one block owns 128 items of one token of out
// Threads  one item each. Of a head: items of kVector pairs up to rotary_dim, then items of kVector elements
// Shared   none
// Flow     1 load both halves of the pairs, cos and sin  2 rotate  3 store. The rest is copied as it is
// Barriers none; in place too, because an item writes what it alone has read
// Numerics fp32, one rounding; each result is one multiplication and one fused multiply-add
// Requires nothing beyond rope_check.h
// A position not below npositions cannot be reported from here: like padding, it makes the token's out zero.
#pragma once

#include "common/rows.cuh"
#include "llamba.h"

namespace llamba {

constexpr int64_t kRopeThreads = 128;

struct RopeItems {
  int64_t rotated, all;  // of a head
};
template <typename T>
LLAMBA_HOST_DEVICE RopeItems rope_items(const llamba_rope_args& args) {
  const int64_t rotated = (args.rotary_dim / 2 + kVector<T> - 1) / kVector<T>;
  return {rotated, rotated + (args.head_dim - args.rotary_dim + kVector<T> - 1) / kVector<T>};
}
template <typename T>
LLAMBA_HOST_DEVICE int64_t rope_blocks_per_token(const llamba_rope_args& args) {
  return (args.nheads * rope_items<T>(args).all + kRopeThreads - 1) / kRopeThreads;
}

__device__ __forceinline__ void rotate(float& a, float& b, float cos, float sin) {
  const float before = a;
  a = fmaf(a, cos, -(b * sin));
  b = fmaf(b, cos, before * sin);
}

// The item of a head whose first pair is `pair`. position < 0: zeros.
template <typename T>
__device__ __forceinline__ void rotate_item(const llamba_rope_args& args, const T* x, T* out, int64_t position,
                                            int64_t pair) {
  constexpr int kPairs = kVector<T>;
  const int64_t half = args.rotary_dim / 2;
  const int n =
      vector_left<T>(half - pair);  // pairs; half split: n elements and n more; interleaved: 2 n adjacent ones
  const int64_t first = args.interleaved ? 2 * pair : pair, second = args.interleaved ? first + kPairs : half + pair;
  const int nfirst = !args.interleaved ? n : 2 * n < kPairs ? 2 * n : kPairs;
  const int nsecond = args.interleaved ? 2 * n - nfirst : n;
  float low[kPairs] = {}, high[kPairs] = {};
  if (position >= 0) {
    float cos[kPairs], sin[kPairs];
    load_vector(x + first, nfirst, low);
    load_vector(x + second, nsecond, high);
    load_vector(args.cos + position * args.cos_stride_position + pair, n, cos);
    load_vector(args.sin + position * args.sin_stride_position + pair, n, sin);
    if (args.interleaved) {
#pragma unroll
      for (int j = 0; j < kPairs / 2; ++j) {
        rotate(low[2 * j], low[2 * j + 1], cos[j], sin[j]);
        rotate(high[2 * j], high[2 * j + 1], cos[kPairs / 2 + j], sin[kPairs / 2 + j]);
      }
    } else {
#pragma unroll
      for (int j = 0; j < kPairs; ++j) rotate(low[j], high[j], cos[j], sin[j]);
    }
  }
  store_vector(out + first, nfirst, low);
  store_vector(out + second, nsecond, high);
}

template <typename T>
__global__ void __launch_bounds__(kRopeThreads) rope_kernel(llamba_rope_args args) {
  const RopeItems items = rope_items<T>(args);
  const int64_t blocks = rope_blocks_per_token<T>(args), row = block_index() / blocks;
  const int64_t batch = row / args.ntokens, token = row % args.ntokens;
  const int64_t thread = block_index() % blocks * kRopeThreads + threadIdx.x;
  const int64_t head = thread / items.all, item = thread % items.all;
  if (batch >= args.batch || head >= args.nheads) return;
  const T* x = static_cast<const T*>(args.x) + batch * args.x_stride_batch + token * args.x_stride_token +
               head * args.x_stride_head;
  T* out = static_cast<T*>(args.out) + batch * args.out_stride_batch + token * args.out_stride_token +
           head * args.out_stride_head;
  int64_t position = load_global(args.positions + batch * args.positions_stride_batch + token);
  if (position >= args.npositions) position = -1;
  if (item < items.rotated) return rotate_item(args, x, out, position, item * kVector<T>);
  const int64_t i = args.rotary_dim + (item - items.rotated) * kVector<T>;
  const int n = vector_left<T>(args.head_dim - i);
  if (position < 0) {
    const float zeros[kVector<T>] = {};
    store_vector(out + i, n, zeros);
  } else if (out != x) {
    copy_vector(out + i, x + i, n);
  }
}

}  // namespace llamba
