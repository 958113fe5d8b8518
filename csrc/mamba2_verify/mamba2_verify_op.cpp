// Host function of mamba2_verify: checks every tensor, fills the struct, runs it.
#include "common/run.h"
#include "mamba2_verify/mamba2_layer_op.h"
#include "ops.h"

namespace llamba {

void mamba2_verify(const Tensor& xBC, const Tensor& dt, const Tensor& conv_weight,
                   const std::optional<Tensor>& conv_bias, const Tensor& A, const std::optional<Tensor>& D,
                   const std::optional<Tensor>& dt_bias, const Tensor& checkpoint, const Tensor& rows,
                   const Tensor& dt_rows, const Tensor& cursor, const Tensor& slots, int64_t x_heads, int64_t B_heads,
                   int64_t C_heads, int64_t fold_every, int64_t algorithm, const std::optional<Tensor>& parents,
                   const Tensor& out) {
  constexpr const char* kOp = "mamba2_verify";
  llamba_mamba2_verify_args args{sizeof(args)};
  fill_layer(kOp,
             {conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots, x_heads, B_heads, C_heads,
              fold_every},
             &args);
  const int64_t nheads = checkpoint.size(1), headdim = checkpoint.size(2), batch = slots.size(0),
                conv_dim = rows.size(2);
  CHECK_RANGE(algorithm, LLAMBA_RECURRENT, LLAMBA_MATMUL);
  args.algorithm = static_cast<llamba_algorithm>(algorithm);
  CHECK_DIM(xBC, 3, 3);
  const int64_t max_ntokens = xBC.size(1);
  CHECK_RANGE(max_ntokens, 0, 1 << 24);
  CHECK_LIKE(xBC, rows, batch, max_ntokens, conv_dim);
  CHECK_LIKE(dt, rows, batch, max_ntokens, nheads);
  if (D.has_value()) args.D = head_parameter(kOp, "D", *D, nheads, rows);
  if (parents.has_value()) {
    CHECK_INDICES(*parents, rows, batch, max_ntokens);
    args.parents = static_cast<const int32_t*>(parents->const_data_ptr());
    args.parents_stride_batch = parents->stride(0);
  }
  CHECK_LIKE(out, rows, batch, max_ntokens, nheads, headdim);
  CHECK_WRITTEN(out, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, parents, checkpoint, rows, dt_rows);
  CHECK_WRITTEN(checkpoint, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, parents, rows, dt_rows);
  CHECK_WRITTEN(rows, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, parents, dt_rows);
  CHECK_WRITTEN(dt_rows, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, parents);

  args.max_ntokens = static_cast<int32_t>(max_ntokens);
  args.xBC = xBC.const_data_ptr();
  args.xBC_stride_batch = xBC.stride(0);
  args.xBC_stride_token = xBC.stride(1);
  args.dt = dt.const_data_ptr();
  args.dt_stride_batch = dt.stride(0);
  args.dt_stride_token = dt.stride(1);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  args.out_stride_head = out.stride(2);
  run(kOp, rows, args, llamba_mamba2_verify_cpu);
}

}  // namespace llamba
