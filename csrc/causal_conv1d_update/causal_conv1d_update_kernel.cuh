// causal_conv1d_update_kernel -- causal conv of a few tokens from a state of raw inputs, which moves on.
// Grid     (blocks of channels, then sequences)    Block  128 threads
// Owns     one block owns 128 channels of one sequence: of out, of its slot and of its entry of windows
// Threads  one channel each, through all tokens; neighbours in memory where channels are
// Shared   none
// Flow     1 look at the sequence's numbers  2 taps and the inputs before x  3 the state moves  4 tokens: load, sum, store
// Barriers none
// Numerics fp32; bias, then the taps from the oldest on, one fused multiply-add each, in a chain and in a tree
// Requires nothing beyond causal_conv1d_update_check.h
// What the CPU refuses cannot be reported from here: a sequence of which a number does not fit is padding, or, if it is
// its query_start, left alone; a parent that is none is -1.
#pragma once

#include "common/rows.cuh"
#include "llamba.h"

namespace llamba {

constexpr int32_t kConvThreads = 128;
constexpr int kConvTaps = 4;  // taps and inputs lie at the end of arrays of four; those of a narrower conv start later

using ConvArgs = llamba_causal_conv1d_update_args;

// What one thread looks at: its channel of one sequence.
struct ConvChannel {
  int64_t channel, x, out;  // x, out: elements of token 0
  int64_t ntokens;
  int64_t source, target, entry;  // slots, and the entry of windows or -1
  int64_t past;                   // column of the oldest input before token 0
};

template <typename S>
__device__ __forceinline__ void store_rounded(void* p, int64_t i, float value) {
  S element;
  from_float(value, &element);
  store_global(static_cast<S*>(p) + i, element);
}
__device__ __forceinline__ void store_as(void* p, llamba_dtype dtype, int64_t i, float value) {
  if (dtype == LLAMBA_FLOAT32) return store_rounded<float>(p, i, value);
  if (dtype == LLAMBA_BFLOAT16) return store_rounded<bfloat16>(p, i, value);
  store_rounded<float16>(p, i, value);
}

__device__ __forceinline__ int64_t state_at(const ConvArgs& args, const ConvChannel& c, int64_t slot, int64_t column) {
  return slot * args.conv_state_stride_slot + c.channel * args.conv_state_stride_channel +
         column * args.conv_state_stride_token;
}

// Token t as the state holds it.
template <typename T>
__device__ __forceinline__ float load_input(const ConvArgs& args, const ConvChannel& c, int64_t t) {
  const float value = to_float(load_global(static_cast<const T*>(args.x) + c.x + t * args.x_stride_token));
  if (args.state_dtype == args.dtype || args.state_dtype == LLAMBA_FLOAT32) return value;
  return args.state_dtype == LLAMBA_BFLOAT16 ? rounded_to<bfloat16>(value) : rounded_to<float16>(value);
}

// -1: one of the sequence's numbers does not fit.
__device__ __forceinline__ int64_t find_slot(const ConvArgs& args, int64_t i, const int32_t* block) {
  const int64_t column = block ? load_global(block + i) : 0;
  if (column < 0 || column >= args.nblocks) return -1;
  const int64_t slot = args.slots ? load_global(args.slots + i * args.slots_stride_batch + column) : i;
  return slot < args.nslots ? slot : -1;
}

// Fills slots, entry and past; false: padding.
__device__ __forceinline__ bool find_state(const ConvArgs& args, int64_t i, ConvChannel* c) {
  c->source = find_slot(args, i, args.source_block);
  if (c->source < 0 || c->source == args.pad_slot) return false;
  c->target = find_slot(args, i, args.target_block);
  c->entry = args.nwindows == 0 ? -1 : args.window_entries ? load_global(args.window_entries + i) : c->source;
  if (c->target < 0 ||
      (args.nwindows > 0 && (c->entry < 0 || c->entry >= args.nwindows || c->ntokens > args.window_tokens)))
    return false;
  const int64_t before = args.width - 1;
  c->past = args.state_len - before;
  if (args.cache_seqlens) {
    const int64_t column = (load_global(args.cache_seqlens + i) - before) % args.state_len;
    c->past = column < 0 ? column + args.state_len : column;
  } else if (args.accepted) {
    c->past = load_global(args.accepted + i) - 1;
    return c->past >= 0 && c->past + before <= args.state_len && before - 1 + c->ntokens <= args.state_len;
  }
  return true;
}

template <typename T>
__device__ __forceinline__ void put_token(const ConvArgs& args, const ConvChannel& c, int64_t column, int64_t t) {
  const T element = load_global(static_cast<const T*>(args.x) + c.x + t * args.x_stride_token);
  const int64_t at = state_at(args, c, c.target, column);
  if (args.state_dtype == args.dtype) return store_global(static_cast<T*>(args.conv_state) + at, element);
  store_as(args.conv_state, args.state_dtype, at, to_float(element));
}

template <typename T>
__device__ __forceinline__ void move_state(const ConvArgs& args, const ConvChannel& c) {
  const int64_t length = args.state_len, late = c.ntokens > length ? c.ntokens - length : 0;
  if (args.cache_seqlens) {
    for (int64_t t = late; t < c.ntokens; ++t) put_token<T>(args, c, (c.past + args.width - 1 + t) % length, t);
    return;
  }
  // the first `kept` columns were further on by `step`: none is overwritten before it is read
  const int64_t step = args.accepted ? c.past + 1 : c.ntokens;
  const int64_t kept = args.accepted ? args.width - 2 : length > c.ntokens ? length - c.ntokens : 0;
  for (int64_t column = 0; column < kept; ++column) {
    const int64_t to = state_at(args, c, c.target, column), from = state_at(args, c, c.source, column + step);
    if (args.state_dtype == LLAMBA_FLOAT32) {
      uint32_t* const state = static_cast<uint32_t*>(args.conv_state);
      store_global(state + to, load_global(state + from));
    } else {
      uint16_t* const state = static_cast<uint16_t*>(args.conv_state);
      store_global(state + to, load_global(state + from));
    }
  }
  for (int64_t t = args.accepted ? 0 : late, column = kept; t < c.ntokens; ++t) put_token<T>(args, c, column++, t);
}

__device__ __forceinline__ int64_t parent_of(const ConvArgs& args, int64_t i, int64_t node) {
  if (node <= 0) return node - 1;
  const int64_t at = i * args.parents_stride_batch + node * args.parents_stride_token;
  const int64_t parent = args.parents_are_int64 ? load_global(static_cast<const int64_t*>(args.parents) + at)
                                                : load_global(static_cast<const int32_t*>(args.parents) + at);
  return parent < node && parent >= 0 ? parent : -1;
}

template <typename T>
__global__ void __launch_bounds__(kConvThreads) causal_conv1d_update_kernel(ConvArgs args) {
  const int64_t blocks_per_sequence = (args.dim + kConvThreads - 1) / kConvThreads;
  const int64_t i = block_index() / blocks_per_sequence;
  ConvChannel c;
  c.channel = block_index() % blocks_per_sequence * kConvThreads + threadIdx.x;
  if (i >= args.batch || c.channel >= args.dim) return;
  int64_t first = 0;
  c.ntokens = args.ntokens;
  if (args.query_start) {
    first = load_global(args.query_start + i);
    const int64_t end = load_global(args.query_start + i + 1);
    if (first < 0 || end > args.ntokens) return;
    c.ntokens = end - first;
  }
  if (c.ntokens <= 0) return;
  const int64_t batch = args.query_start ? 0 : i;
  c.x = batch * args.x_stride_batch + c.channel * args.x_stride_channel + first * args.x_stride_token;
  c.out = batch * args.out_stride_batch + c.channel * args.out_stride_channel + first * args.out_stride_token;
  T* const out = static_cast<T*>(args.out) + c.out;
  if (!find_state(args, i, &c)) {
    for (int64_t t = 0; t < c.ntokens; ++t) store_global(out + t * args.out_stride_token, T{});
    return;
  }

  const int first_tap = kConvTaps - args.width;
  float taps[kConvTaps], past[kConvTaps - 1] = {}, window[kConvTaps] = {};
#pragma unroll
  for (int j = 0; j < kConvTaps; ++j) {
    if (j < first_tap) continue;
    taps[j] = load_as(args.weight, args.weight_dtype,
                      c.channel * args.weight_stride_channel + (j - first_tap) * args.weight_stride_tap);
    if (j + 1 == kConvTaps) continue;
    int64_t column = c.past + j - first_tap;
    if (column >= args.state_len) column -= args.state_len;  // of a ring
    window[j + 1] = past[j] = load_as(args.conv_state, args.state_dtype, state_at(args, c, c.source, column));
  }
  const float bias = args.bias ? load_as(args.bias, args.weight_dtype, c.channel) : 0.0f;
  move_state<T>(args, c);

  for (int64_t t = 0; t < c.ntokens; ++t) {
    if (args.parents) {
      int64_t node = t;
#pragma unroll
      for (int j = kConvTaps - 1; j >= 0; --j) {
        if (j < first_tap) continue;
        window[j] = node >= 0    ? load_input<T>(args, c, node)
                    : node == -1 ? past[kConvTaps - 2]
                    : node == -2 ? past[kConvTaps - 3]
                                 : past[kConvTaps - 4];
        node = parent_of(args, i, node);
      }
    } else {
#pragma unroll
      for (int j = 0; j + 1 < kConvTaps; ++j) window[j] = window[j + 1];
      window[kConvTaps - 1] = load_input<T>(args, c, t);
    }
    float y = bias;
#pragma unroll
    for (int j = 0; j < kConvTaps; ++j) {
      if (j >= first_tap) y = fmaf(taps[j], window[j], y);
    }
    T element;
    from_float(args.silu ? silu<T>(y) : y, &element);
    store_global(out + t * args.out_stride_token, element);
    if (args.nwindows == 0) continue;
    const int64_t at =
        c.entry * args.windows_stride_entry + t * args.windows_stride_token + c.channel * args.windows_stride_channel;
#pragma unroll
    for (int j = 1; j < kConvTaps; ++j) {
      if (j <= first_tap) continue;
      store_as(args.windows, args.state_dtype, at + (j - 1 - first_tap) * args.windows_stride_tap, window[j]);
    }
  }
}

}  // namespace llamba
