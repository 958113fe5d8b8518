// state_import_kernel -- states into the checkpoints of slots, rounded to nearest even; their raw rows into conv tails.
// Grid     (nheads x blocks of dims + width-1 blocks of a slot, then slots)   Block  128 threads
// Owns     one block owns kImportDims dims of one head of one slot's checkpoint, or one row of its conv tail
// Threads  vectors (16 bytes of checkpoint) of all rows, or of the row of the conv tail, go round the threads
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
constexpr int32_t kImportDims = 128;

LLAMBA_HOST_DEVICE int64_t import_dim_blocks(const llamba_state_import_args& args) {
  return (int64_t{args.headdim} + kImportDims - 1) / kImportDims;
}

template <typename S>
__device__ __forceinline__ void import_dims(const llamba_state_import_args& args, int64_t i, int64_t slot, int64_t head,
                                            int64_t first) {
  const float* state = args.state + i * args.state_stride_batch + head * args.state_stride_head;
  S* checkpoint =
      static_cast<S*>(args.checkpoint) + slot * args.checkpoint_stride_slot + head * args.checkpoint_stride_head;
  const int32_t vectors = (args.dstate + kVector<S> - 1) / kVector<S>;  // of a row
  const int64_t dims = args.headdim - first < kImportDims ? args.headdim - first : kImportDims;
  for (int32_t v = threadIdx.x; v < dims * vectors; v += kImportThreads) {
    const int64_t dim = first + v / vectors, n = v % vectors * kVector<S>;
    const int count = vector_left<S>(args.dstate - n);
    float values[kVector<S>];
    load_vector(state + dim * args.state_stride_dim + n, count, values);
    store_vector(checkpoint + dim * args.checkpoint_stride_dim + n, count, values);
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
  const int64_t dim_blocks = import_dim_blocks(args), blocks_of_heads = args.nheads * dim_blocks;
  const int64_t blocks_per_slot = blocks_of_heads + args.cursor.width - 1;
  const int64_t i = block_index() / blocks_per_slot, block = block_index() % blocks_per_slot;
  if (i >= args.batch) return;
  const int64_t slot = load_global(args.slots + i);
  if (slot < 0 || slot >= args.cursor.nslots) return;
  const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
  // At position 0 there is nothing to keep.
  if (!header_is_valid(header, args.cursor) || header[kNtokens] != kNoStep || header[kLive] != 0 ||
      header[kPosition] == 0) {
    return;
  }
  if (block < blocks_of_heads) {
    return import_dims<S>(args, i, slot, block / dim_blocks, block % dim_blocks * kImportDims);
  }
  const int64_t t = block - blocks_of_heads;
  const int64_t row = header[LLAMBA_CURSOR_HEADER + t];
  if (row < 0 || row >= args.cursor.capacity) return;  // -1: before the first token
  if (args.dtype == LLAMBA_FLOAT32) {
    import_row<uint32_t>(args, i, slot, t, row);
  } else {
    import_row<uint16_t>(args, i, slot, t, row);
  }
}

}  // namespace llamba
