// A sequence's step as its cursor tells it, for the CUDA kernels of every operator that takes one, and where the raw
// inputs of each of its tokens lie. Args: the struct of any of them.
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

struct Step {
  int32_t batch_idx, slot;
  int32_t position;  // of the checkpoint: tokens in it; 0: it reads as zero
  int32_t live, fold, ntokens;
  bool valid;  // false: padding, or a slot that the CPU would refuse
  const int32_t* table;
  const int32_t* parents;  // nullptr: a chain
};

// Whether the step folds whole spans of the session; an operator that keeps no state does not ask.
template <typename Args>
__device__ inline bool folds_as_the_session(const Args& args, const Step& step) {
  if constexpr (requires { args.fold_every; }) {
    return step.fold == 0 || (step.position + step.fold) % args.fold_every == 0;
  } else {
    return true;
  }
}

// open: whether the slot must have an open step (verify) or none (materialize).
template <typename Args>
__device__ inline Step read_step(const Args& args, int32_t batch_idx, bool open) {
  Step step;
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
               (open ? step.ntokens > kNoStep : step.ntokens == kNoStep) && folds_as_the_session(args, step);
  return step;
}

// The token before token t on its path; -1: the checkpoint. A parent that is no earlier token counts as the committed
// context.
__device__ inline int32_t parent_of(const Step& step, int32_t t) {
  if (t < step.live || step.parents == nullptr) return t - 1;
  const int32_t i = t - step.live, parent = load_global(step.parents + i);
  return step.live + (parent >= 0 && parent < i ? parent : -1);
}

// The raw input `back` tokens before token t on its path.
template <typename Args>
__device__ inline int32_t find_input(const Args& args, const Step& step, int32_t t, int32_t back) {
  for (; back > 0 && t >= step.live; --back) t = parent_of(step, t);
  if (t >= step.live) return -2 - (t - step.live);
  const int32_t row = load_global(step.table + (args.cursor.width - 1 + t - back));
  return row < args.cursor.capacity && row >= 0 ? row : kNoInput;
}

// Where the step's token i is to be kept; -1: a table that names no row.
template <typename Args>
__device__ inline int32_t new_row(const Args& args, const Step& step, int32_t i) {
  const int32_t row = load_global(step.table + args.cursor.width - 1 + step.live + i);
  return row < args.cursor.capacity && row >= 0 ? row : -1;
}

// Whether a 16-bit state is rounded after token t: the running one is, as it passes each position that a checkpoint may
// stand at.
template <typename Args>
__device__ __forceinline__ bool rounds_after(const Args& args, const Step& step, int32_t t) {
  int32_t ahead = 0;  // tokens between the live ones and this one, itself included
  for (; t >= step.live && step.parents != nullptr; ++ahead) t = parent_of(step, t);
  return (step.position + t + 1 + ahead) % args.fold_every == 0;
}

}  // namespace
}  // namespace llamba
