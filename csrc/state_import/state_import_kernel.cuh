// state_import_kernel -- states into the checkpoints of slots, rounded to nearest even; their raw rows into conv tails.
// Grid     (nheads + width-1 blocks of a slot, then slots)   Block  128 threads
// Owns     one block owns one head of one slot's checkpoint, or one row of its conv tail
// Threads  a head: warp w has rows w, w + 4, ..., its lanes the row's vectors (16 bytes of checkpoint). A row of the
//          conv tail: its vectors go round the threads
// Shared   none
// Flow     1 look at the slot's header  2 copy
// Barriers none
// Numerics one rounding
// Requires nothing beyond state_import_check.h
// What the CPU refuses cannot be reported from here: a slot out of range, or with an open step or live rows, or whose
// header or row ids are out of bounds, is skipped.
#pragma once

#include "common/rows.cuh"
#include "cursor/cursor_edit.h"

namespace llamba {

constexpr int32_t kImportThreads = 128;

template <typename S>
__device__ __forceinline__ void import_head(const llamba_state_import_args& args, int64_t i, int64_t slot,
                                            int64_t head) {
  const float* state = args.state + i * args.state_stride_batch + head * args.state_stride_head;
  S* checkpoint =
      static_cast<S*>(args.checkpoint) + slot * args.checkpoint_stride_slot + head * args.checkpoint_stride_head;
  for (int64_t dim = threadIdx.x / kWarpLanes; dim < args.headdim; dim += kImportThreads / kWarpLanes) {
    for (int64_t n = threadIdx.x % kWarpLanes * kVector<S>; n < args.dstate; n += kWarpLanes * kVector<S>) {
      const int count = vector_left<S>(args.dstate - n);
      float values[kVector<S>];
      load_vector(state + dim * args.state_stride_dim + n, count, values);
      store_vector(checkpoint + dim * args.checkpoint_stride_dim + n, count, values);
    }
  }
}

// T: bits of one element, whatever they mean.
template <typename T>
__device__ __forceinline__ void import_row(const llamba_state_import_args& args, int64_t i, int64_t slot, int64_t t,
                                           int64_t row) {
  const T* from = static_cast<const T*>(args.tail) + i * args.tail_stride_batch + t * args.tail_stride_row;
  T* to = static_cast<T*>(args.rows) + slot * args.rows_stride_slot + row * args.rows_stride_row;
  const int64_t step = int64_t{kImportThreads} * kVector<T>;
  for (int64_t channel = int64_t{threadIdx.x} * kVector<T>; channel < args.conv_dim; channel += step) {
    copy_vector(to + channel, from + channel, vector_left<T>(args.conv_dim - channel));
  }
}

template <typename S>
__global__ void __launch_bounds__(kImportThreads) state_import_kernel(llamba_state_import_args args) {
  const int64_t blocks_per_slot = int64_t{args.nheads} + args.cursor.width - 1;
  const int64_t i = block_index() / blocks_per_slot, head = block_index() % blocks_per_slot;
  if (i >= args.batch) return;
  const int64_t slot = load_global(args.slots + i);
  if (slot < 0 || slot >= args.cursor.nslots) return;
  const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
  // At position 0 there is nothing to keep.
  if (!header_is_valid(header, args.cursor) || header[kNtokens] != kNoStep || header[kLive] != 0 ||
      header[kPosition] == 0) {
    return;
  }
  if (head < args.nheads) return import_head<S>(args, i, slot, head);
  const int64_t t = head - args.nheads;
  const int64_t row = header[LLAMBA_CURSOR_HEADER + t];
  if (row < 0 || row >= args.cursor.capacity) return;  // -1: before the first token
  if (args.dtype == LLAMBA_FLOAT32) {
    import_row<uint32_t>(args, i, slot, t, row);
  } else {
    import_row<uint16_t>(args, i, slot, t, row);
  }
}

}  // namespace llamba
