// What the forward and the backward kernel of selective_scan share: a block's state between memory, where a channel's
// elements are neighbours, and vectors of sixteen channels; its step sizes; B and C as floats.
// Included by *_isa.cpp files only; all functions have internal linkage.
#pragma once

#include "common/vec.h"
#include "selective_scan/selective_scan_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

constexpr float kLog2E = 1.44269504088896341f;

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

// Rows of one head of B or C, as floats: where they lie, or widened into `wide`.
struct HeadRows {
  const float* row;
  int64_t stride;
};
LLAMBA_INLINE HeadRows widen(const float* p, int64_t stride, int64_t, int64_t, float*) { return {p, stride}; }
template <typename T>
LLAMBA_INLINE HeadRows widen(const T* p, int64_t stride, int64_t count, int64_t dstate, float* wide) {
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t n = 0; n < dstate; n += kLanes) {
      const int left = lanes_left(dstate - n);
      store_first(wide + t * dstate + n, load_first(p + t * stride + n, left), left);
    }
  }
  return {wide, dstate};
}

template <typename T>
LLAMBA_INLINE HeadRows B_rows(const llamba_selective_scan_args& args, int64_t batch_idx, int64_t token, int64_t count,
                              int64_t channel, float* wide) {
  const int64_t head = channel / (args.d_inner / args.B_heads);
  const T* p = static_cast<const T*>(args.B) + batch_idx * args.B_stride_batch + token * args.B_stride_token;
  return widen(p + head * args.dstate, args.B_stride_token, count, args.dstate, wide);
}
template <typename T>
LLAMBA_INLINE HeadRows C_rows(const llamba_selective_scan_args& args, int64_t batch_idx, int64_t token, int64_t count,
                              int64_t channel, float* wide) {
  const int64_t head = channel / (args.d_inner / args.C_heads);
  const T* p = static_cast<const T*>(args.C) + batch_idx * args.C_stride_batch + token * args.C_stride_token;
  return widen(p + head * args.dstate, args.C_stride_token, count, args.dstate, wide);
}

// The first token after `token` at which a state is due: a multiple of kScanChunk or of state_every, or the end.
LLAMBA_INLINE int64_t next_stop(const llamba_selective_scan_args& args, int64_t token, int64_t end) {
  int64_t stop = (token / kScanChunk + 1) * kScanChunk;
  if (args.states && (token / args.state_every + 1) * args.state_every < stop) {
    stop = (token / args.state_every + 1) * args.state_every;
  }
  return stop < end ? stop : end;
}

}  // namespace
}  // namespace LLAMBA_ISA
}  // namespace llamba
