// Host function of mamba1_materialize: checks every tensor, fills the struct, runs it.
#include "common/run.h"
#include "mamba1_verify/mamba1_layer_op.h"
#include "ops.h"

namespace llamba {

void mamba1_materialize(const Tensor& A, const std::optional<Tensor>& dt_bias, const Tensor& checkpoint,
                        const Tensor& rows, const Tensor& x_rows, const Tensor& dt_rows, const Tensor& B_rows,
                        const Tensor& cursor, const Tensor& slots, int64_t B_heads, int64_t fold_every,
                        const Tensor& state, const Tensor& tail) {
  constexpr const char* kOp = "mamba1_materialize";
  llamba_mamba1_materialize_args args{sizeof(args)};
  fill_mamba1_layer(kOp, {A, dt_bias, checkpoint, x_rows, dt_rows, B_rows, cursor, slots, B_heads, fold_every}, &args);
  const int64_t nslots = checkpoint.size(0), d_inner = checkpoint.size(1), dstate = checkpoint.size(2),
                batch = slots.size(0), capacity = x_rows.size(1), width = args.cursor.width;
  CHECK_DIM(rows, 3, 3);
  const int64_t x_dim = rows.size(2);
  CHECK_RANGE(x_dim, 0, 1 << 24);
  CHECK_LIKE(rows, x_rows, nslots, capacity, x_dim);
  CHECK_SHAPE(state, batch, d_inner, dstate);
  CHECK_DTYPE(state, Float);
  CHECK_STRIDE(state, -1, 1);
  CHECK_SAME_DEVICE(state, x_rows);
  CHECK_LIKE(tail, x_rows, batch, width - 1, x_dim);
  CHECK_WRITTEN(state, tail, A, dt_bias, checkpoint, rows, x_rows, dt_rows, B_rows, cursor, slots);
  CHECK_WRITTEN(tail, A, dt_bias, checkpoint, rows, x_rows, dt_rows, B_rows, cursor, slots);
  args.x_dim = static_cast<int32_t>(x_dim);
  args.rows = rows.const_data_ptr();
  args.rows_stride_slot = rows.stride(0);
  args.rows_stride_row = rows.stride(1);
  args.state = static_cast<float*>(state.mutable_data_ptr());
  args.state_stride_batch = state.stride(0);
  args.state_stride_channel = state.stride(1);
  args.tail = tail.mutable_data_ptr();
  args.tail_stride_batch = tail.stride(0);
  args.tail_stride_row = tail.stride(1);
  run(kOp, x_rows, args, llamba_mamba1_materialize_cpu);
}

}  // namespace llamba
