// Host function of mamba1_verify: checks every tensor, fills the struct, runs it.
#include "common/run.h"
#include "mamba1_verify/mamba1_layer_op.h"
#include "ops.h"

namespace llamba {

void mamba1_verify(const Tensor& x, const Tensor& dt, const Tensor& B, const Tensor& C, const std::optional<Tensor>& z,
                   const Tensor& A, const std::optional<Tensor>& D, const std::optional<Tensor>& dt_bias,
                   const Tensor& checkpoint, const Tensor& x_rows, const Tensor& dt_rows, const Tensor& B_rows,
                   const Tensor& cursor, const Tensor& slots, int64_t B_heads, int64_t C_heads, int64_t fold_every,
                   const std::optional<Tensor>& parents, const Tensor& out) {
  constexpr const char* kOp = "mamba1_verify";
  llamba_mamba1_verify_args args{sizeof(args)};
  fill_mamba1_layer(kOp, {A, dt_bias, checkpoint, x_rows, dt_rows, B_rows, cursor, slots, B_heads, fold_every}, &args);
  const int64_t d_inner = checkpoint.size(1), dstate = checkpoint.size(2), batch = slots.size(0);
  CHECK_RANGE(C_heads, 1, 1 << 24);
  CHECK_DIM(x, 3, 3);
  const int64_t max_ntokens = x.size(1);
  CHECK_RANGE(max_ntokens, 0, 1 << 24);
  CHECK_LIKE(x, x_rows, batch, max_ntokens, d_inner);
  CHECK_LIKE(dt, x_rows, batch, max_ntokens, d_inner);
  CHECK_LIKE(B, x_rows, batch, max_ntokens, B_heads * dstate);
  CHECK_LIKE(C, x_rows, batch, max_ntokens, C_heads * dstate);
  if (z.has_value()) {
    CHECK_LIKE(*z, x_rows, batch, max_ntokens, d_inner);
    args.z = z->const_data_ptr();
    args.z_stride_batch = z->stride(0);
    args.z_stride_token = z->stride(1);
  }
  if (D.has_value()) args.D = channel_parameter(kOp, "D", *D, d_inner, x_rows);
  if (parents.has_value()) {
    CHECK_INDICES(*parents, x_rows, batch, max_ntokens);
    args.parents = static_cast<const int32_t*>(parents->const_data_ptr());
    args.parents_stride_batch = parents->stride(0);
  }
  CHECK_LIKE(out, x_rows, batch, max_ntokens, d_inner);
  CHECK_WRITTEN(out, x, dt, B, C, z, A, D, dt_bias, cursor, slots, parents, checkpoint, x_rows, dt_rows, B_rows);
  CHECK_WRITTEN(checkpoint, x, dt, B, C, z, A, D, dt_bias, cursor, slots, parents, x_rows, dt_rows, B_rows);
  CHECK_WRITTEN(x_rows, x, dt, B, C, z, A, D, dt_bias, cursor, slots, parents, dt_rows, B_rows);
  CHECK_WRITTEN(dt_rows, x, dt, B, C, z, A, D, dt_bias, cursor, slots, parents, B_rows);
  CHECK_WRITTEN(B_rows, x, dt, B, C, z, A, D, dt_bias, cursor, slots, parents);

  args.max_ntokens = static_cast<int32_t>(max_ntokens);
  args.C_heads = static_cast<int32_t>(C_heads);
  args.x = x.const_data_ptr();
  args.x_stride_batch = x.stride(0);
  args.x_stride_token = x.stride(1);
  args.dt = dt.const_data_ptr();
  args.dt_stride_batch = dt.stride(0);
  args.dt_stride_token = dt.stride(1);
  args.B = B.const_data_ptr();
  args.B_stride_batch = B.stride(0);
  args.B_stride_token = B.stride(1);
  args.C = C.const_data_ptr();
  args.C_stride_batch = C.stride(0);
  args.C_stride_token = C.stride(1);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  run(kOp, x_rows, args, llamba_mamba1_verify_cpu);
}

}  // namespace llamba
