// What the forward and the backward kernel of selective_scan share: a block's state between memory, where a channel's
// elements are neighbours, and vectors of sixteen channels; B and C as floats.
// Included by *_isa.cpp files only; all functions have internal linkage.
#pragma once

#include "common/vec.h"
#include "selective_scan/selective_scan_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

// A channel of one token in a tensor [batch, length, d_inner].
template <typename T>
LLAMBA_INLINE const T* at(const void* p, int64_t stride_batch, int64_t stride_token, int64_t batch_idx, int64_t token,
                          int64_t channel) {
  return static_cast<const T*>(p) + batch_idx * stride_batch + token * stride_token + channel;
}

// Rows of up to sixteen channels become vectors, scaled; lanes beyond are zero. p null: all zero.
LLAMBA_INLINE void load_transposed(const float* p, int64_t stride, int lanes, int64_t dstate, float scale, float* to) {
  for (int64_t n = 0; n < dstate; ++n) {
    for (int lane = 0; lane < kLanes; ++lane) {
      to[n * kLanes + lane] = p && lane < lanes ? p[lane * stride + n] * scale : 0.0f;
    }
  }
}

LLAMBA_INLINE void store_transposed(const float* from, int lanes, int64_t dstate, float* p, int64_t stride) {
  for (int lane = 0; lane < lanes; ++lane) {
    for (int64_t n = 0; n < dstate; ++n) p[lane * stride + n] = from[n * kLanes + lane];
  }
}

// Between vectors and a row of d_inner per state element.
LLAMBA_INLINE void load_chunk_state(const float* p, int64_t d_inner, int lanes, int64_t dstate, float* to) {
  for (int64_t n = 0; n < dstate; ++n) store(to + n * kLanes, load_first(p + n * d_inner, lanes));
}
LLAMBA_INLINE void store_chunk_state(const float* from, int lanes, int64_t dstate, float* p, int64_t d_inner) {
  for (int64_t n = 0; n < dstate; ++n) store_first(p + n * d_inner, load(from + n * kLanes), lanes);
}

// Rows of one head of B or C, as floats: where they lie, or widened into `wide` with zeros up to whole vectors.
struct HeadRows {
  const float* row;
  int64_t stride;
};
template <typename T>
LLAMBA_INLINE HeadRows widen(const T* p, int64_t stride, int64_t count, int64_t dstate, float* wide) {
  const int64_t row = whole_vectors(dstate);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t n = 0; n < dstate; n += kLanes) {
      store(wide + t * row + n, load_first(p + t * stride + n, lanes_left(dstate - n)));
    }
  }
  return {wide, row};
}
// kWhole: whole vectors are read.
template <typename T, bool kWhole>
LLAMBA_INLINE HeadRows head_rows(const void* data, int64_t offset, int64_t stride, int64_t count, int64_t dstate,
                                 float* wide) {
  const T* p = static_cast<const T*>(data) + offset;
  if constexpr (sizeof(T) == sizeof(float)) {
    if (!kWhole || dstate % kLanes == 0) return {p, stride};
  }
  return widen(p, stride, count, dstate, wide);
}

template <typename T, bool kWhole>
LLAMBA_INLINE HeadRows B_rows(const llamba_selective_scan_args& args, int64_t batch_idx, int64_t token, int64_t count,
                              int64_t head, float* wide) {
  const int64_t offset = batch_idx * args.B_stride_batch + token * args.B_stride_token + head * args.dstate;
  return head_rows<T, kWhole>(args.B, offset, args.B_stride_token, count, args.dstate, wide);
}
template <typename T, bool kWhole>
LLAMBA_INLINE HeadRows C_rows(const llamba_selective_scan_args& args, int64_t batch_idx, int64_t token, int64_t count,
                              int64_t head, float* wide) {
  const int64_t offset = batch_idx * args.C_stride_batch + token * args.C_stride_token + head * args.dstate;
  return head_rows<T, kWhole>(args.C, offset, args.C_stride_token, count, args.dstate, wide);
}

}  // namespace
}  // namespace LLAMBA_ISA
}  // namespace llamba
