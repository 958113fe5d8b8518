// cursor_{reset,begin,commit,rollback}_kernel -- edit the row lists of a batch of slots; one launch serves all layers.
// Grid     (batch)                                          Block  128 threads
// Owns     one block owns slot slots[blockIdx.x]; no other block reads or writes it (slots are unique)
// Threads  reset, commit: thread i computes table entries i, i + 128, ...; thread 0 writes the header. begin,
//          rollback: thread 0
// Shared   commit: the old header and table, int32_t [HEADER + 3 + kMaxCapacity], of which the slot's part is used
// Flow     commit: 1 slot -> shared  2 barrier  3 every entry from the old table  4 header
// Barriers commit: 1 (after 1): the new table overwrites the old one
// Numerics integers only; the arithmetic is cursor_edit.h, the CPU's own
// Requires capacity <= kMaxCapacity                                     (checked in cursor_launch.cu)
// A header out of bounds, a bad ntokens, accepted, path or n cannot be reported from here: it marks the slot broken
// (ntokens -1, nothing else is written), and nothing but a reset brings a broken slot back.
#pragma once

#include "common/launch.cuh"
#include "cursor/cursor_edit.h"

namespace llamba {

constexpr int32_t kCursorThreads = 128;
constexpr int32_t kMaxCapacity = 1024;

struct CursorStorage {
  int32_t header[LLAMBA_CURSOR_HEADER];
  int32_t table[kMaxCapacity + 3];  // [width-1 + capacity]
};

__device__ inline int32_t* slot_of_block(const llamba_cursor& cursor, const int32_t* slots) {
  const int32_t slot = slots[blockIdx.x];
  return slot < 0 || slot >= cursor.nslots ? nullptr : cursor.data + slot * cursor.slot_stride;
}

__global__ void cursor_reset_kernel(llamba_cursor_reset_args args) {
  int32_t* header = slot_of_block(args.cursor, args.slots);
  if (header == nullptr) return;
  const int32_t position = args.prompt != nullptr ? args.prompt[blockIdx.x] : 0;
  const bool broken = position < 0;
  const int32_t checkpoint = args.prompt != nullptr && !broken ? checkpoint_target(position, args.session) : 0;
  for (int32_t entry = threadIdx.x; entry < table_size(args.cursor); entry += kCursorThreads) {
    header[LLAMBA_CURSOR_HEADER + entry] = entry_after_reset(entry, checkpoint, args.cursor);
  }
  if (threadIdx.x == 0) {
    header[kPosition] = broken ? 0 : position;
    header[kLive] = broken ? 0 : position - checkpoint;
    header[kFold] = 0;
    header[kNtokens] = broken ? kBrokenStep : kNoStep;
  }
}

__global__ void cursor_begin_kernel(llamba_cursor_begin_args args) {
  int32_t* header = slot_of_block(args.cursor, args.slots);
  if (header == nullptr || threadIdx.x != 0) return;
  const int32_t ntokens = args.ntokens[blockIdx.x];
  const int32_t most_live = args.session.fold_every - 1 + args.session.max_rollback + args.session.max_window;
  const bool legal = header_is_valid(header, args.cursor) && header[kNtokens] == kNoStep && ntokens >= 1 &&
                     ntokens <= args.session.max_window && header[kLive] <= most_live &&
                     header[kPosition] <= kMostTokens - ntokens;
  if (legal) header[kFold] = fold_at_begin(header[kPosition], header[kLive], args.session);
  header[kNtokens] = legal ? ntokens : kBrokenStep;
}

__global__ void cursor_commit_kernel(llamba_cursor_commit_args args) {
  int32_t* header = slot_of_block(args.cursor, args.slots);
  if (header == nullptr) return;
  CursorStorage& old_slot = shared_storage<CursorStorage>();
  for (int32_t i = threadIdx.x; i < LLAMBA_CURSOR_HEADER; i += kCursorThreads) old_slot.header[i] = header[i];
  int32_t* table = header + LLAMBA_CURSOR_HEADER;
  for (int32_t i = threadIdx.x; i < table_size(args.cursor); i += kCursorThreads) old_slot.table[i] = table[i];
  __syncthreads();  // the whole old slot is in shared memory before any of it is overwritten

  const int32_t accepted = args.accepted[blockIdx.x];
  const int32_t ntokens = old_slot.header[kNtokens];
  const int32_t* path = args.path != nullptr ? args.path + blockIdx.x * args.path_stride_batch : nullptr;
  if (!header_is_valid(old_slot.header, args.cursor) || ntokens <= kNoStep || accepted < 0 || accepted > ntokens ||
      (path != nullptr && (accepted > args.path_length || !path_is_valid(path, accepted, ntokens)))) {
    if (threadIdx.x == 0) header[kNtokens] = kBrokenStep;
    return;
  }
  const CommitPlan plan = plan_commit(old_slot.header, old_slot.table, accepted, path, args.cursor);
  for (int32_t i = threadIdx.x; i < table_size(args.cursor); i += kCursorThreads) {
    table[i] = entry_after_commit(i, old_slot.table, plan);
  }
  if (threadIdx.x == 0) {
    header[kPosition] = old_slot.header[kPosition] + accepted;
    header[kLive] = old_slot.header[kLive] + accepted - plan.fold;
    header[kFold] = 0;
    header[kNtokens] = kNoStep;
  }
}

__global__ void cursor_rollback_kernel(llamba_cursor_rollback_args args) {
  int32_t* header = slot_of_block(args.cursor, args.slots);
  if (header == nullptr || threadIdx.x != 0) return;
  const int32_t n = args.n[blockIdx.x];
  const bool legal = header_is_valid(header, args.cursor) && header[kNtokens] == kNoStep && n >= 0 &&
                     n <= most_rollback(header, args.session);
  if (legal) {
    header[kPosition] -= n;
    header[kLive] -= n;
  } else {
    header[kNtokens] = kBrokenStep;
  }
}

}  // namespace llamba
