// The conv of a step: what a block needs of B, C and x in one list of items, so that all of their loads are under way
// together. An item is kConvVector channels of kPiece consecutive places; a place is a token that the block works on.
#pragma once

#include "mamba2_verify/mamba2_tokens.cuh"

namespace llamba {
namespace {

// Every block of a head works out B and C anew: longer pieces ask for fewer raw inputs twice, shorter ones for less
// registers.
template <typename T>
constexpr int32_t kPiece = sizeof(T) == 2 ? 8 : 4;

// Channels of one kind (x, B or C) that a block needs for some of its places.
struct ConvPart {
  int32_t channel, nchannels;
  int32_t first, count;
  bool keeps_rows;  // this block stores these channels of the step's tokens
};

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
template <typename T, typename Sink>
__device__ __forceinline__ void conv_item(const llamba_mamba2_verify_args& args, const Mamba2Step& step,
                                          const int32_t* inputs, const int32_t* rows, const ConvPart& part,
                                          int32_t item, Sink sink) {
  using Bits = typename ConvVectorBits<T>::type;
  const int32_t width = args.cursor.width, vectors = (part.nchannels + kConvVector - 1) / kConvVector;
  const int32_t c = item % vectors * kConvVector, channel = part.channel + c, rest = part.nchannels - c;
  const int32_t begin = part.first + item / vectors * kPiece<T>, left = part.first + part.count - begin;
  const int32_t count = left < kPiece<T> ? left : kPiece<T>;
  const int32_t *ids = inputs + begin * kMostWidth, *kept_rows = rows + begin;
  T* kept = static_cast<T*>(args.rows) + step.slot * args.rows_stride_slot + channel;
  const InputSources<T> sources{kept,
                                static_cast<const T*>(args.xBC) + step.batch_idx * args.xBC_stride_batch + channel,
                                args.rows_stride_row, args.xBC_stride_token};
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
  if (args.conv_bias != nullptr) load_vector(static_cast<const T*>(args.conv_bias) + channel, rest, bias);
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
      if (part.keeps_rows && row >= 0) store_vector(kept + row * args.rows_stride_row, rest, v);
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
      if (id != kNoInput) load_vector(sources.at(id), rest, v);
      for (int32_t j = 0; j < kConvVector; ++j) window[tap][j] = to_float(v[j]);
    }
    float y[kConvVector];
    conv_output(taps, bias, width, window, y);
    sink(begin + i, c, y);
    const int32_t row = kept_rows[i];
    if (part.keeps_rows && row >= 0) store_vector(kept + row * args.rows_stride_row, rest, v);
  }
}

}  // namespace
}  // namespace llamba
