// Host function of state_import: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void state_import(const Tensor& state, const Tensor& tail, const Tensor& checkpoint, const Tensor& rows,
                  const Tensor& cursor, const Tensor& slots) {
  constexpr const char* kOp = "state_import";
  llamba_state_import_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(rows);
  args.checkpoint_dtype = CHECK_FLOATING(checkpoint);
  CHECK_DIM(checkpoint, 4, 4);
  CHECK_DIM(rows, 3, 3);
  CHECK_DIM(tail, 3, 3);
  CHECK_DIM(slots, 1, 1);
  const int64_t batch = slots.size(0), nslots = checkpoint.size(0), nheads = checkpoint.size(1),
                headdim = checkpoint.size(2), dstate = checkpoint.size(3), conv_dim = rows.size(2),
                capacity = rows.size(1), width = tail.size(1) + 1;
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface
  CHECK_RANGE(batch, 0, kMost);
  CHECK_RANGE(nheads, 0, kMost);
  CHECK_RANGE(headdim, 0, kMost);
  CHECK_RANGE(dstate, 0, kMost);
  CHECK_RANGE(conv_dim, 0, kMost);
  CHECK_RANGE(capacity, 0, kMost);
  check_range(kOp, "rows of tail (width - 1)", width - 1, 1, 3);
  CHECK_STRIDE(checkpoint, -1, 1);
  CHECK_SAME_DEVICE(checkpoint, rows);
  CHECK_SHAPE(rows, nslots, capacity, conv_dim);
  CHECK_STRIDE(rows, -1, 1);
  CHECK_SHAPE(state, batch, nheads, headdim, dstate);
  CHECK_DTYPE(state, Float);
  CHECK_STRIDE(state, -1, 1);
  CHECK_SAME_DEVICE(state, rows);
  CHECK_LIKE(tail, rows, batch, width - 1, conv_dim);
  const int64_t table = LLAMBA_CURSOR_HEADER + width - 1 + capacity;
  CHECK_INDICES(cursor, rows, nslots, table);
  CHECK_DTYPE(slots, Int);
  CHECK_STRIDE(slots, -1, 1);
  CHECK_SAME_DEVICE(slots, rows);
  CHECK_WRITTEN(checkpoint, state, tail, rows, cursor, slots);
  CHECK_WRITTEN(rows, state, tail, cursor, slots);

  args.batch = static_cast<int32_t>(batch);
  args.nheads = static_cast<int32_t>(nheads);
  args.headdim = static_cast<int32_t>(headdim);
  args.dstate = static_cast<int32_t>(dstate);
  args.conv_dim = static_cast<int32_t>(conv_dim);
  args.state = static_cast<const float*>(state.const_data_ptr());
  args.state_stride_batch = state.stride(0);
  args.state_stride_head = state.stride(1);
  args.state_stride_dim = state.stride(2);
  args.tail = tail.const_data_ptr();
  args.tail_stride_batch = tail.stride(0);
  args.tail_stride_row = tail.stride(1);
  args.checkpoint = checkpoint.mutable_data_ptr();
  args.checkpoint_stride_slot = checkpoint.stride(0);
  args.checkpoint_stride_head = checkpoint.stride(1);
  args.checkpoint_stride_dim = checkpoint.stride(2);
  args.rows = rows.mutable_data_ptr();
  args.rows_stride_slot = rows.stride(0);
  args.rows_stride_row = rows.stride(1);
  args.cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), nslots, cursor.stride(0),
                              static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
  args.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  run(kOp, rows, args, llamba_state_import_cpu);
}

}  // namespace llamba
