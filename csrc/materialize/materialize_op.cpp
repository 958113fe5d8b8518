// Host function of materialize: checks every tensor, fills the struct, runs it.
#include "common/run.h"
#include "mamba2_verify/mamba2_layer_op.h"
#include "ops.h"

namespace llamba {

void materialize(const Tensor& conv_weight, const std::optional<Tensor>& conv_bias, const Tensor& A,
                 const std::optional<Tensor>& dt_bias, const Tensor& checkpoint, const Tensor& rows,
                 const Tensor& dt_rows, const Tensor& cursor, const Tensor& slots, const Tensor& state,
                 const Tensor& tail, int64_t x_heads, int64_t B_heads, int64_t C_heads, int64_t fold_every) {
  constexpr const char* kOp = "materialize";
  llamba_materialize_args args{sizeof(args)};
  fill_layer(kOp,
             {conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots, x_heads, B_heads, C_heads,
              fold_every},
             &args);
  const int64_t nheads = checkpoint.size(1), headdim = checkpoint.size(2), dstate = checkpoint.size(3),
                batch = slots.size(0), conv_dim = rows.size(2), width = conv_weight.size(1);
  CHECK_SHAPE(state, batch, nheads, headdim, dstate);
  CHECK_DTYPE(state, Float);
  CHECK_STRIDE(state, -1, 1);
  CHECK_SAME_DEVICE(state, rows);
  CHECK_LIKE(tail, rows, batch, width - 1, conv_dim);
  CHECK_WRITTEN(state, tail, conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots);
  CHECK_WRITTEN(tail, conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots);
  args.state = static_cast<float*>(state.mutable_data_ptr());
  args.state_stride_batch = state.stride(0);
  args.state_stride_head = state.stride(1);
  args.state_stride_dim = state.stride(2);
  args.tail = tail.mutable_data_ptr();
  args.tail_stride_batch = tail.stride(0);
  args.tail_stride_row = tail.stride(1);
  run(kOp, rows, args, llamba_materialize_cpu);
}

}  // namespace llamba
