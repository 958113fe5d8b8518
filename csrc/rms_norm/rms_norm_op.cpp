// Host function of rms_norm: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void rms_norm(const Tensor& x, const Tensor& weight, double eps, const std::optional<Tensor>& residual,
              const Tensor& out) {
  constexpr const char* kOp = "rms_norm";
  llamba_rms_norm_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(x);
  const HeadRows x_rows = CHECK_HEAD_ROWS(x);
  const int64_t width = x_rows.width;
  args.batch = x_rows.batch;
  args.ntokens = x_rows.ntokens;
  args.nheads = x_rows.nheads;
  args.width = width;
  args.eps = CHECK_FLOAT(eps);
  args.x = x.const_data_ptr();
  args.x_stride_batch = x_rows.stride_batch;
  args.x_stride_token = x_rows.stride_token;
  args.x_stride_head = x_rows.stride_head;
  CHECK_SAME_DTYPE(weight, x);
  CHECK_SAME_DEVICE(weight, x);
  CHECK_SHAPE(weight, width);
  CHECK_STRIDE(weight, -1, 1);
  args.weight = weight.const_data_ptr();
  if (residual.has_value()) {
    CHECK_SAME_DTYPE(*residual, x);
    CHECK_SAME_DEVICE(*residual, x);
    CHECK_SAME_SHAPE(*residual, x);
    const HeadRows residual_rows = CHECK_HEAD_ROWS(*residual);
    CHECK_WRITTEN(*residual, x, weight);
    args.residual = residual->mutable_data_ptr();
    args.residual_stride_batch = residual_rows.stride_batch;
    args.residual_stride_token = residual_rows.stride_token;
    args.residual_stride_head = residual_rows.stride_head;
  }
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  CHECK_SAME_SHAPE(out, x);
  const HeadRows out_rows = CHECK_HEAD_ROWS(out);
  CHECK_WRITTEN_OR_SAME(out, x);
  CHECK_WRITTEN(out, weight, residual);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out_rows.stride_batch;
  args.out_stride_token = out_rows.stride_token;
  args.out_stride_head = out_rows.stride_head;
  run(kOp, x, args, llamba_rms_norm_cpu);
}

}  // namespace llamba
