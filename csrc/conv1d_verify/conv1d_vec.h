// The causal conv of new and live tokens on vectors of channels, for the operators that have one. Included by *_isa.cpp
// files only.
#pragma once

#include "common/vec.h"
#include "cursor/step_tokens.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// Floats of scratch that hold a token's pointers, so that what follows them is still aligned to whole vectors.
constexpr int32_t kInputFloats = 16;
static_assert(kMaxWidth * sizeof(void*) <= kInputFloats * sizeof(float), "a token's pointers must fit");

struct ConvWeights {
  const void* weight;  // [channels, width]
  int64_t stride_channel, stride_tap;
  const void* bias;  // [channels] or nullptr
  int32_t width;
};

// The tokens of a sequence whose conv is wanted, and where each finds its raw inputs.
struct ConvTokens {
  const void* const* inputs;  // [last, width] see find_inputs
  int32_t first, last;        // tokens first to last - 1
};

// Taps of sixteen channels, one vector per tap. next: how many channels further on the next ones are.
template <typename T, int kWidth>
LLAMBA_INLINE void load_taps(const ConvWeights& conv, int32_t channel, int lanes, int32_t next, vec16 (&taps)[kWidth]) {
  const T* weight = static_cast<const T*>(conv.weight) + channel * conv.stride_channel;
  if (kWidth == 4 && lanes == kLanes && conv.stride_channel == 4 && conv.stride_tap == 1) {
    for (int line = 0; line < kWidth; ++line) {
      __builtin_prefetch(weight + next * kWidth + line * kLanes);  // see convolve
    }
    load_columns(weight, taps[0], taps[1], taps[kWidth - 2], taps[kWidth - 1]);
    return;
  }
  for (int tap = 0; tap < kWidth; ++tap) {
    float column[kLanes] = {};
    for (int lane = 0; lane < lanes; ++lane) {
      column[lane] = to_float(weight[lane * conv.stride_channel + tap * conv.stride_tap]);
    }
    taps[tap] = load(column);
  }
}

// Where each token's conv finds its raw inputs, oldest first; nullptr: zero. slot_rows: [capacity, ...] of the slot;
// new_tokens: [ntokens, ...] of the batch entry.
template <typename T>
LLAMBA_INLINE void find_inputs(const StepSequence& sequence, int32_t width, const T* slot_rows, int64_t row_stride,
                               const T* new_tokens, int64_t token_stride, const void** inputs) {
  for (int32_t t = 0; t < sequence.live + sequence.ntokens; ++t) {
    for (int32_t tap = 0; tap < width; ++tap) {
      const int32_t row = sequence.tokens[t].window[tap];
      inputs[t * width + tap] = row == kZeroRow ? nullptr
                                : row >= 0      ? slot_rows + row * row_stride
                                                : new_tokens + (-2 - row) * token_stride;
    }
  }
}

// SiLU(conv + bias) of `channels` channels from `channel` on, whose raw inputs are those from `input` on, rounded to T;
// out [last - first, stride]. Lanes beyond `channels` in the last vector are zero.
template <typename T, int kWidth>
void convolve(const ConvWeights& conv, const ConvTokens& tokens, int32_t channel, int32_t input_channel,
              int32_t channels, float* out, int64_t stride) {
  const T* bias = static_cast<const T*>(conv.bias);
  for (int32_t offset = 0; offset < channels; offset += kLanes) {
    const int lanes = lanes_left(channels - offset);
    const int32_t at = input_channel + offset;
    vec16 taps[kWidth];
    load_taps<T, kWidth>(conv, channel + offset, lanes, channels, taps);
    const vec16 start = bias ? load_first(bias + channel + offset, lanes) : broadcast(0.0f);
    for (int32_t t = tokens.first; t < tokens.last; ++t) {
      vec16 y = start;
#pragma GCC unroll 4
      for (int tap = 0; tap < kWidth; ++tap) {
        const T* input = static_cast<const T*>(tokens.inputs[t * kWidth + tap]);
        const vec16 value = input ? load_first(input + at, lanes) : broadcast(0.0f);
        // the next channels to be asked for, maybe a whole scan from now: too many streams for the processor to foresee
        if (input && (tap + 1 == kWidth || t == tokens.first)) __builtin_prefetch(input + at + channels);
        y = fma(taps[tap], value, y);
      }
      store(out + (t - tokens.first) * stride + offset, rounded_to<T>(silu(y)));
    }
  }
}

template <typename T>
void convolve_any(const ConvWeights& conv, const ConvTokens& tokens, int32_t channel, int32_t input_channel,
                  int32_t channels, float* out, int64_t stride) {
  switch (conv.width) {
    case 2: return convolve<T, 2>(conv, tokens, channel, input_channel, channels, out, stride);
    case 3: return convolve<T, 3>(conv, tokens, channel, input_channel, channels, out, stride);
    default: return convolve<T, kMaxWidth>(conv, tokens, channel, input_channel, channels, out, stride);
  }
}

// `channels` elements from `channel` on of each new token go to the token's row.
template <typename T>
LLAMBA_INLINE void store_rows(const StepSequence& sequence, const T* new_tokens, int64_t token_stride, T* slot_rows,
                              int64_t row_stride, int32_t channel, int32_t channels) {
  for (int32_t i = 0; i < sequence.ntokens; ++i) {
    const T* token = new_tokens + i * token_stride + channel;
    T* row = slot_rows + sequence.tokens[sequence.live + i].row * row_stride + channel;
    for (int32_t c = 0; c < channels; ++c) row[c] = token[c];
  }
}

}  // namespace
}  // namespace LLAMBA_ISA
}  // namespace llamba
