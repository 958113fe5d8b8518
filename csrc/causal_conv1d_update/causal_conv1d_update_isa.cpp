// causal_conv1d_update, the arithmetic of one instruction set: sixteen channels at a time, through all tokens.
// Order     1 the inputs before x are loaded  2 the state moves, element by element  3 tokens: load, sum, store, so that
//           out may be x
// Numerics  fp32; bias, then the taps from the oldest on, one fused multiply-add each, in a chain and in a tree
#include "causal_conv1d_update/causal_conv1d_update_cpu.h"
#include "common/vec.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

using Args = llamba_causal_conv1d_update_args;

template <typename A, typename B>
constexpr bool is_same = false;
template <typename A>
constexpr bool is_same<A, A> = true;

// Sixteen channels, or the first `lanes` of them; stride: from channel to channel.
template <typename E>
LLAMBA_INLINE vec16 load_channels(const E* p, int64_t stride, int lanes) {
  if (stride == 1) return load_first(p, lanes);
  float values[kLanes] = {};
  for (int i = 0; i < lanes; ++i) values[i] = to_float(p[i * stride]);
  return load(values);
}
template <typename E>
LLAMBA_INLINE void store_channels(E* p, int64_t stride, vec16 a, int lanes) {
  if (stride == 1) return store_first(p, a, lanes);
  float values[kLanes];
  store(values, a);
  for (int i = 0; i < lanes; ++i) from_float(values[i], p + i * stride);
}

template <typename A, typename B>
LLAMBA_INLINE void copy_channels(A* to, int64_t to_stride, const B* from, int64_t from_stride, int lanes) {
  if (is_same<A, B> && to_stride == 1 && from_stride == 1 && lanes == kLanes) {  // a few instructions
    std::memcpy(to, from, sizeof(A) * kLanes);
    return;
  }
  for (int i = 0; i < lanes; ++i) {
    if constexpr (is_same<A, B>) {
      to[i * to_stride] = from[i * from_stride];
    } else {
      from_float(to_float(from[i * from_stride]), to + i * to_stride);
    }
  }
}

// Sixteen channels of one sequence, of element types as the struct says.
template <typename T>
struct Channels {
  const Args& args;
  const ConvSequence& sequence;
  int64_t channel;
  int lanes;

  const T* x(int64_t t) const {
    return static_cast<const T*>(args.x) + (args.query_start ? 0 : sequence.batch_idx * args.x_stride_batch) +
           channel * args.x_stride_channel + (sequence.first_token + t) * args.x_stride_token;
  }
  T* out(int64_t t) const {
    return static_cast<T*>(args.out) + (args.query_start ? 0 : sequence.batch_idx * args.out_stride_batch) +
           channel * args.out_stride_channel + (sequence.first_token + t) * args.out_stride_token;
  }
  template <typename S>
  S* state(int64_t slot, int64_t column) const {
    return static_cast<S*>(args.conv_state) + slot * args.conv_state_stride_slot +
           channel * args.conv_state_stride_channel + column * args.conv_state_stride_token;
  }
  // Token t as the state holds it.
  LLAMBA_INLINE vec16 input(int64_t t) const {
    const vec16 value = load_channels(x(t), args.x_stride_channel, lanes);
    if (args.state_dtype == args.dtype || args.state_dtype == LLAMBA_FLOAT32) return value;
    return args.state_dtype == LLAMBA_BFLOAT16 ? rounded_to<bfloat16>(value) : rounded_to<float16>(value);
  }
};

template <typename T>
vec16 load_past(const Channels<T>& c, int64_t column) {
  const Args& args = c.args;
  if (args.cache_seqlens && column >= args.state_len) column -= args.state_len;
  LLAMBA_SWITCH_DTYPE(
      args.state_dtype, S,
      return load_channels(c.template state<S>(c.sequence.source, column), args.conv_state_stride_channel, c.lanes));
  return broadcast(0.0f);
}

template <typename T, typename S>
void move_state(const Channels<T>& c) {
  const Args& args = c.args;
  const ConvSequence& sequence = c.sequence;
  const int64_t stride = args.conv_state_stride_channel, ntokens = sequence.ntokens, length = args.state_len;
  const auto put = [&](int64_t column, int64_t t) {
    copy_channels(c.template state<S>(sequence.target, column), stride, c.x(t), args.x_stride_channel, c.lanes);
  };
  if (args.cache_seqlens) {
    int64_t t = ntokens > length ? ntokens - length : 0;
    for (; t < ntokens; ++t) put((sequence.past + args.width - 1 + t) % length, t);
    return;
  }
  // the first `kept` columns were further on by `step`: none is overwritten before it is read
  const int64_t step = args.accepted ? sequence.past + 1 : ntokens;
  const int64_t kept = args.accepted ? args.width - 2 : length > ntokens ? length - ntokens : 0;
  for (int64_t column = 0; column < kept; ++column) {
    copy_channels(c.template state<S>(sequence.target, column), stride,
                  c.template state<const S>(sequence.source, column + step), stride, c.lanes);
  }
  for (int64_t t = !args.accepted && ntokens > length ? ntokens - length : 0, column = kept; t < ntokens; ++t) {
    put(column++, t);
  }
}

template <int kWidth>
void store_window(const Args& args, const ConvSequence& sequence, int64_t channel, int lanes, int64_t t,
                  const vec16 (&window)[kWidth]) {
  const int64_t stride = args.windows_stride_channel;
  const int64_t at = sequence.entry * args.windows_stride_entry + t * args.windows_stride_token + channel * stride;
  for (int tap = 1; tap < kWidth; ++tap) {
    const int64_t element = at + (tap - 1) * args.windows_stride_tap;
    LLAMBA_SWITCH_DTYPE(args.state_dtype, S,
                        store_channels(static_cast<S*>(args.windows) + element, stride, window[tap], lanes));
  }
}

// The token before `node` on its path; -1, -2, ...: the inputs before x, the latest first.
int64_t parent_of(const Args& args, const ConvSequence& sequence, int64_t node) {
  if (node <= 0) return node - 1;
  const int64_t at = sequence.batch_idx * args.parents_stride_batch + node * args.parents_stride_token;
  return args.parents_are_int64 ? static_cast<const int64_t*>(args.parents)[at]
                                : static_cast<const int32_t*>(args.parents)[at];
}

template <typename W, int kWidth>
LLAMBA_INLINE void load_taps(const Args& args, int64_t channel, int lanes, vec16 (&taps)[kWidth]) {
  const W* weight = static_cast<const W*>(args.weight) + channel * args.weight_stride_channel;
  if (kWidth == 4 && lanes == kLanes && args.weight_stride_channel == 4 && args.weight_stride_tap == 1) {
    load_columns(weight, taps[0], taps[1], taps[kWidth - 2], taps[kWidth - 1]);
    return;
  }
  for (int tap = 0; tap < kWidth; ++tap) {
    taps[tap] = load_channels(weight + tap * args.weight_stride_tap, args.weight_stride_channel, lanes);
  }
}

template <typename T, int kWidth>
void update_channels(const Channels<T>& c) {
  const Args& args = c.args;
  vec16 taps[kWidth], past[kWidth - 1], window[kWidth], start = broadcast(0.0f);
  LLAMBA_SWITCH_DTYPE(args.weight_dtype, W, load_taps<W>(args, c.channel, c.lanes, taps));
  if (args.bias) {
    LLAMBA_SWITCH_DTYPE(args.weight_dtype, W,
                        start = load_first(static_cast<const W*>(args.bias) + c.channel, c.lanes));
  }
  for (int i = 0; i + 1 < kWidth; ++i) window[i + 1] = past[i] = load_past(c, c.sequence.past + i);
  LLAMBA_SWITCH_DTYPE(args.state_dtype, S, move_state<T, S>(c));

  for (int64_t t = 0; t < c.sequence.ntokens; ++t) {
    if (args.parents) {
      int64_t node = t;
      for (int tap = kWidth - 1; tap >= 0; --tap) {
        window[tap] = node >= 0 ? c.input(node) : past[kWidth - 1 + node];
        node = parent_of(args, c.sequence, node);
      }
    } else {
      for (int tap = 0; tap + 1 < kWidth; ++tap) window[tap] = window[tap + 1];
      window[kWidth - 1] = c.input(t);
    }
    vec16 y = start;
#pragma GCC unroll 4
    for (int tap = 0; tap < kWidth; ++tap) y = fma(taps[tap], window[tap], y);
    store_channels(c.out(t), args.out_stride_channel, args.silu ? silu(y) : y, c.lanes);
    if (args.nwindows > 0) store_window(args, c.sequence, c.channel, c.lanes, t, window);
  }
}

template <typename T>
void update_all(const Args& args, const ConvSequence& sequence, int64_t begin, int64_t end) {
  for (int64_t channel = begin; channel < end; channel += kLanes) {
    const Channels<T> channels{args, sequence, channel, lanes_left(end - channel)};
    switch (args.width) {
      case 2: update_channels<T, 2>(channels); break;
      case 3: update_channels<T, 3>(channels); break;
      default: update_channels<T, 4>(channels);
    }
  }
}

}  // namespace

void conv1d_update_channels(const Args& args, const ConvSequence& sequence, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, update_all<T>(args, sequence, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
