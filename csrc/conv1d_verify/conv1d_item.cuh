// The conv of a step: what a block needs of B, C and x in one list of items, so that all of their loads are under way
// together. An item is kConvVector channels of kPiece consecutive places; a place is a token that the block works on.
#pragma once

#include "common/pairs.cuh"
#include "cursor/cursor_step.cuh"

namespace llamba {
namespace {

// Channels of a thread's conv item: 16-bit taps of width 4 are then one 16-byte load.
constexpr int32_t kConvVector = kPair;

// Every block of a head works out B and C anew: longer pieces ask for fewer raw inputs twice, shorter ones for less
// registers.
template <typename T>
constexpr int32_t kPiece = sizeof(T) == 2 ? 8 : 4;

// taps [kMostWidth, kConvVector], oldest first, of channels channel ...; the oldest of a narrow conv are zero.
template <typename T, typename Args>
__device__ __forceinline__ void load_taps(const Args& args, int32_t channel, int32_t count,
                                          float (&taps)[kMostWidth][kConvVector]) {
  const T* weight = static_cast<const T*>(args.conv_weight) + channel * args.conv_weight_stride_channel;
  T columns[kConvVector][kMostWidth];
  if (args.cursor.width == kMostWidth && args.conv_weight_stride_channel == kMostWidth &&
      args.conv_weight_stride_tap == 1 && count >= kConvVector && reinterpret_cast<uintptr_t>(weight) % 16 == 0) {
    uint4 bits[sizeof(columns) / sizeof(uint4)];
#pragma unroll
    for (unsigned i = 0; i < sizeof(columns) / sizeof(uint4); ++i) {
      bits[i] = load_global(reinterpret_cast<const uint4*>(weight) + i);
    }
    memcpy(columns, bits, sizeof(columns));
  } else {
#pragma unroll
    for (int32_t j = 0; j < kConvVector; ++j) {
#pragma unroll
      for (int32_t tap = 0; tap < kMostWidth; ++tap) {
        const int32_t from = tap - (kMostWidth - args.cursor.width);
        columns[j][tap] = T{};
        if (from < 0 || j >= count) continue;
        columns[j][tap] =
            load_global(weight + j * args.conv_weight_stride_channel + from * args.conv_weight_stride_tap);
      }
    }
  }
#pragma unroll
  for (int32_t tap = 0; tap < kMostWidth; ++tap) {
    for (int32_t j = 0; j < kConvVector; ++j) taps[tap][j] = to_float(columns[j][tap]);
  }
}

// Whether the token with inputs `ids` follows the one with inputs `before`: its window is that one's, moved on by one.
__device__ __forceinline__ bool follows(const int32_t* ids, const int32_t* before, int32_t width) {
  return ids[width - 2] == before[width - 1];
}

// Channels of one kind (x, B or C) that a block needs for some of its places.
struct ConvPart {
  int32_t channel, nchannels;
  int32_t first, count;
  bool keeps_rows;  // this block stores these channels of the step's tokens
};

// The raw inputs of the step's tokens.
struct RawInputs {
  const void* data;
  int64_t stride_batch, stride_token;
};
__device__ __forceinline__ RawInputs raw_inputs(const llamba_mamba2_verify_args& args) {
  return {args.xBC, args.xBC_stride_batch, args.xBC_stride_token};
}
__device__ __forceinline__ RawInputs raw_inputs(const llamba_conv1d_verify_args& args) {
  return {args.x, args.x_stride_batch, args.x_stride_token};
}

// Where the raw inputs of one item lie: of a row and of a new token, of its first channel.
template <typename T>
struct InputSources {
  const T *rows, *tokens;
  int64_t stride_row, stride_token;

  __device__ __forceinline__ const T* at(int32_t id) const {
    return id >= 0 ? rows + id * stride_row : tokens + (-2 - id) * stride_token;
  }
  __device__ __forceinline__ bool are_whole_vectors() const {
    return ((reinterpret_cast<uintptr_t>(rows) | reinterpret_cast<uintptr_t>(tokens)) % (kConvVector * sizeof(T)) |
            (static_cast<uintptr_t>(stride_row) | static_cast<uintptr_t>(stride_token)) % kConvVector) == 0;
  }
};

// y: one output of kConvVector channels; moves the window on.
template <typename T>
__device__ __forceinline__ void conv_output(const float (&taps)[kMostWidth][kConvVector], const T (&bias)[kConvVector],
                                            int32_t width, float (&window)[kMostWidth][kConvVector],
                                            float (&y)[kConvVector]) {
#pragma unroll
  for (int32_t j = 0; j < kConvVector; ++j) {
    float sum = to_float(bias[j]);
#pragma unroll
    for (int32_t tap = 0; tap < kMostWidth; ++tap) {
      if (tap >= kMostWidth - width) sum = fmaf(taps[tap][j], window[tap][j], sum);
    }
    y[j] = rounded_to<T>(silu<T>(sum));
#pragma unroll
    for (int32_t tap = 0; tap + 1 < kMostWidth; ++tap) window[tap][j] = window[tap + 1][j];
  }
}

template <typename T>
__device__ __forceinline__ int32_t conv_items(const ConvPart& part) {
  return (part.nchannels + kConvVector - 1) / kConvVector * ((part.count + kPiece<T> - 1) / kPiece<T>);
}

// inputs [places, kMostWidth]; rows [places]: where a new token's raw inputs go, -1: nowhere. sink(place, c, y) gets the
// conv outputs of channels c ... of the part, SiLU applied, rounded to T.
template <typename T, typename Args, typename Sink>
__device__ __forceinline__ void conv_item(const Args& args, const Step& step, const int32_t* inputs,
                                          const int32_t* rows, const ConvPart& part, int32_t item, Sink sink) {
  using Bits = typename PairBits<T>::type;
  const int32_t width = args.cursor.width, vectors = (part.nchannels + kConvVector - 1) / kConvVector;
  const int32_t c = item % vectors * kConvVector, channel = part.channel + c, rest = part.nchannels - c;
  const int32_t begin = part.first + item / vectors * kPiece<T>, left = part.first + part.count - begin;
  const int32_t count = left < kPiece<T> ? left : kPiece<T>;
  const int32_t *ids = inputs + begin * kMostWidth, *kept_rows = rows + begin;
  T* kept = static_cast<T*>(args.rows) + step.slot * args.rows_stride_slot + channel;
  const RawInputs raw_tokens = raw_inputs(args);
  const InputSources<T> sources{
      kept, static_cast<const T*>(raw_tokens.data) + step.batch_idx * raw_tokens.stride_batch + channel,
      args.rows_stride_row, raw_tokens.stride_token};
  bool in_line = rest >= kConvVector && sources.are_whole_vectors();
  for (int32_t i = 1; i < count; ++i) in_line &= follows(ids + i * kMostWidth, ids + (i - 1) * kMostWidth, width);

  // Every raw input is asked for before the first is used; the taps last, for they are converted at once.
  Bits raw[kMostWidth - 1 + kPiece<T>] = {};
  if (in_line) {
#pragma unroll
    for (int32_t i = 0; i < kMostWidth - 1 + kPiece<T>; ++i) {
      const int32_t from = i - (kMostWidth - width), ahead = i - (kMostWidth - 1);
      const int32_t id = ahead >= count || from < 0 ? kNoInput : ids[ahead < 0 ? from : ahead * kMostWidth + width - 1];
      if (id != kNoInput) raw[i] = load_global(reinterpret_cast<const Bits*>(sources.at(id)));
    }
  }
  T bias[kConvVector] = {};
  float taps[kMostWidth][kConvVector], window[kMostWidth][kConvVector] = {};
  if (args.conv_bias != nullptr) load_pair(static_cast<const T*>(args.conv_bias) + channel, rest, bias);
  load_taps<T>(args, channel, rest, taps);
  if (in_line) {
#pragma unroll
    for (int32_t i = 0; i < kMostWidth - 1 + kPiece<T>; ++i) {
      T v[kConvVector];
      memcpy(v, &raw[i], sizeof(v));
      const int32_t ahead = i - (kMostWidth - 1);
      for (int32_t j = 0; j < kConvVector; ++j) window[ahead < 0 ? i : kMostWidth - 1][j] = to_float(v[j]);
      if (ahead < 0 || ahead >= count) continue;
      float y[kConvVector];
      conv_output(taps, bias, width, window, y);
      sink(begin + ahead, c, y);
      const int32_t row = kept_rows[ahead];
      if (part.keeps_rows && row >= 0) store_pair(kept + row * args.rows_stride_row, rest, v);
    }
    return;
  }
#pragma unroll 1
  for (int32_t i = 0; i < count; ++i) {
    T v[kConvVector];
#pragma unroll
    for (int32_t tap = 0; tap < kMostWidth; ++tap) {
      if (tap < kMostWidth - width) continue;
      const int32_t id = ids[i * kMostWidth + tap - (kMostWidth - width)];
      for (int32_t j = 0; j < kConvVector; ++j) v[j] = T{};
      if (id != kNoInput) load_pair(sources.at(id), rest, v);
      for (int32_t j = 0; j < kConvVector; ++j) window[tap][j] = to_float(v[j]);
    }
    float y[kConvVector];
    conv_output(taps, bias, width, window, y);
    sink(begin + i, c, y);
    const int32_t row = kept_rows[i];
    if (part.keeps_rows && row >= 0) store_pair(kept + row * args.rows_stride_row, rest, v);
  }
}

}  // namespace
}  // namespace llamba
