// Host function of gated_rms_norm: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void gated_rms_norm(const Tensor& x, const std::optional<Tensor>& z, const Tensor& weight, double eps,
                    int64_t group_size, const Tensor& out) {
  constexpr const char* kOp = "gated_rms_norm";
  const llamba_dtype dtype = CHECK_FLOATING(x);
  const Rows x_rows = CHECK_ROWS(x);
  const auto [batch, ntokens, width, x_stride_batch, x_stride_token] = x_rows;
  llamba_gated_rms_norm_args args{sizeof(args)};
  args.dtype = dtype;
  args.batch = batch;
  args.ntokens = ntokens;
  args.width = width;
  args.group_size = group_size;
  args.eps = CHECK_FLOAT(eps);
  args.x = x.const_data_ptr();
  args.x_stride_batch = x_stride_batch;
  args.x_stride_token = x_stride_token;
  if (z) {
    CHECK_SAME_DTYPE(*z, x);
    CHECK_SAME_DEVICE(*z, x);
    CHECK_SAME_SHAPE(*z, x);
    const Rows z_rows = CHECK_ROWS(*z);
    args.z = z->const_data_ptr();
    args.z_stride_batch = z_rows.stride_batch;
    args.z_stride_token = z_rows.stride_token;
  }
  CHECK_SAME_DTYPE(weight, x);
  CHECK_SAME_DEVICE(weight, x);
  CHECK_SHAPE(weight, width);
  CHECK_STRIDE(weight, -1, 1);
  args.weight = weight.const_data_ptr();
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  CHECK_SAME_SHAPE(out, x);
  const Rows out_rows = CHECK_ROWS(out);
  CHECK_WRITTEN_OR_SAME(out, x, z);
  CHECK_WRITTEN(out, weight);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out_rows.stride_batch;
  args.out_stride_token = out_rows.stride_token;
  run(kOp, x, args, llamba_gated_rms_norm_cpu);
}

}  // namespace llamba
