// What the CUDA kernels of mamba2_verify and materialize share: a sequence's step as its cursor tells it, the raw inputs
// of each token's conv, its taps, and step sizes.
//
// Tokens are numbered as in the row table: the live rows 0 to live-1, then the step's tokens. A raw input is named by an
// int: a physical row, kNoInput, or -2 - i for token i of the step.
#pragma once

#include "common/math.cuh"
#include "cursor/cursor_edit.h"

namespace llamba {
namespace {

constexpr int32_t kMostWidth = 4;
constexpr int32_t kNoInput = -1;
// Channels of a thread's conv item: 16-bit taps of width 4 are then one 16-byte load.
constexpr int32_t kConvVector = 2;

struct Mamba2Step {
  int32_t batch_idx, slot;
  int32_t position;  // of the checkpoint: tokens in it; 0: it reads as zero
  int32_t live, fold, ntokens;
  bool valid;  // false: padding, or a slot that the CPU would refuse
  const int32_t* table;
  const int32_t* parents;  // nullptr: a chain
};

// open: whether the slot must have an open step (mamba2_verify) or none (materialize).
__device__ inline Mamba2Step read_step(const llamba_mamba2_verify_args& args, int32_t batch_idx, bool open) {
  Mamba2Step step;
  step.batch_idx = batch_idx;
  step.slot = load_global(args.slots + batch_idx);
  step.valid = step.slot >= 0 && step.slot < args.cursor.nslots;
  if (!step.valid) return step;
  const int32_t* slot = args.cursor.data + step.slot * args.cursor.slot_stride;
  int32_t header[LLAMBA_CURSOR_HEADER];
  for (int32_t i = 0; i < LLAMBA_CURSOR_HEADER; ++i) header[i] = load_global(slot + i);
  step.position = header[kPosition] - header[kLive];
  step.live = header[kLive];
  step.fold = open ? header[kFold] : 0;  // without a step nothing folds, whatever a damaged header says
  step.ntokens = header[kNtokens];
  step.table = slot + LLAMBA_CURSOR_HEADER;
  step.parents = args.parents != nullptr ? args.parents + batch_idx * args.parents_stride_batch : nullptr;
  step.valid = header_is_valid(header, args.cursor) && step.ntokens <= args.max_ntokens &&
               (open ? step.ntokens > kNoStep : step.ntokens == kNoStep) &&
               (step.fold == 0 || (step.position + step.fold) % args.fold_every == 0);
  return step;
}

// The token before token t on its path; -1: the checkpoint. A parent that is no earlier token counts as the committed
// context.
__device__ inline int32_t parent_of(const Mamba2Step& step, int32_t t) {
  if (t < step.live || step.parents == nullptr) return t - 1;
  const int32_t i = t - step.live, parent = load_global(step.parents + i);
  return step.live + (parent >= 0 && parent < i ? parent : -1);
}

// The raw input `back` tokens before token t on its path.
__device__ inline int32_t find_input(const llamba_mamba2_verify_args& args, const Mamba2Step& step, int32_t t,
                                     int32_t back) {
  for (; back > 0 && t >= step.live; --back) t = parent_of(step, t);
  if (t >= step.live) return -2 - (t - step.live);
  const int32_t row = load_global(step.table + (args.cursor.width - 1 + t - back));
  return row < args.cursor.capacity && row >= 0 ? row : kNoInput;
}

// Where the step's token i is to be kept; -1: a table that names no row.
__device__ inline int32_t new_row(const llamba_mamba2_verify_args& args, const Mamba2Step& step, int32_t i) {
  const int32_t row = load_global(step.table + args.cursor.width - 1 + step.live + i);
  return row < args.cursor.capacity && row >= 0 ? row : -1;
}

// inputs [ntotal, kMostWidth], oldest first: filled by all threads of the block; a barrier must follow.
__device__ inline void find_inputs(const llamba_mamba2_verify_args& args, const Mamba2Step& step, int32_t* inputs) {
  const int32_t width = args.cursor.width, count = (step.live + step.ntokens) * width;
  for (int32_t i = threadIdx.x; i < count; i += blockDim.x) {
    const int32_t t = i / width, tap = i % width;
    inputs[t * kMostWidth + tap] = find_input(args, step, t, width - 1 - tap);
  }
}

// ---- vectors of kConvVector elements; `count` of them exist ----

template <typename T>
struct ConvVectorBits {
  using type = unsigned;
};
template <>
struct ConvVectorBits<float> {
  using type = uint2;
};

template <typename T>
__device__ __forceinline__ bool is_whole_vector(const T* p, int32_t count) {
  return count >= kConvVector && reinterpret_cast<uintptr_t>(p) % (kConvVector * sizeof(T)) == 0;
}
template <typename T>
__device__ __forceinline__ void load_vector(const T* p, int32_t count, T (&v)[kConvVector]) {
  if (is_whole_vector(p, count)) {
    using Bits = typename ConvVectorBits<T>::type;
    const Bits bits = load_global(reinterpret_cast<const Bits*>(p));
    memcpy(v, &bits, sizeof(bits));
  } else {
    for (int32_t c = 0; c < kConvVector; ++c) v[c] = c < count ? load_global(p + c) : T{};
  }
}
template <typename T>
__device__ __forceinline__ void store_vector(T* p, int32_t count, const T (&v)[kConvVector]) {
  if (is_whole_vector(p, count)) {
    using Bits = typename ConvVectorBits<T>::type;
    Bits bits;
    memcpy(&bits, v, sizeof(bits));
    store_global(reinterpret_cast<Bits*>(p), bits);
  } else {
    for (int32_t c = 0; c < kConvVector; ++c) {
      if (c < count) store_global(p + c, v[c]);
    }
  }
}

// taps [kMostWidth, kConvVector], oldest first, of channels channel ...; the oldest of a narrow conv are zero.
template <typename T>
__device__ __forceinline__ void load_taps(const llamba_mamba2_verify_args& args, int32_t channel, int32_t count,
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

// dt of token t after bias and softplus. keep: store the raw dt of a new token as its row.
template <typename T>
__device__ inline float step_size(const llamba_mamba2_verify_args& args, const Mamba2Step& step, const int32_t* inputs,
                                  int32_t t, int32_t head, bool keep) {
  T* slot_rows = static_cast<T*>(args.dt_rows) + step.slot * args.dt_rows_stride_slot;
  const int32_t id = inputs[t * kMostWidth + args.cursor.width - 1];
  T raw{};
  if (id >= 0) raw = load_global(slot_rows + id * args.dt_rows_stride_row + head);
  if (id < kNoInput) {
    const int32_t i = -2 - id, row = keep ? new_row(args, step, i) : -1;
    raw = load_global(static_cast<const T*>(args.dt) + step.batch_idx * args.dt_stride_batch +
                      i * args.dt_stride_token + head);
    if (row >= 0) store_global(slot_rows + row * args.dt_rows_stride_row + head, raw);
  }
  return softplus(to_float(raw) + (args.dt_bias != nullptr ? load_global(args.dt_bias + head) : 0.0f));
}

}  // namespace
}  // namespace llamba
