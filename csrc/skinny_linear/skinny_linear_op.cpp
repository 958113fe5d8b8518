// Host function of skinny_linear: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void skinny_linear(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& out) {
  constexpr const char* kOp = "skinny_linear";
  llamba_skinny_linear_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(x);
  const Rows x_rows = CHECK_ROWS(x);
  const int64_t in_features = x_rows.width;
  CHECK_DIM(weight, 2, 2);
  const int64_t out_features = weight.size(0);
  CHECK_SHAPE(weight, out_features, in_features);
  CHECK_SAME_DTYPE(weight, x);
  CHECK_SAME_DEVICE(weight, x);
  CHECK_STRIDE(weight, -1, 1);
  if (bias.has_value()) {
    CHECK_SHAPE(*bias, out_features);
    CHECK_SAME_DTYPE(*bias, x);
    CHECK_SAME_DEVICE(*bias, x);
    CHECK_STRIDE(*bias, -1, 1);
    args.bias = bias->const_data_ptr();
  }
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  const Rows out_rows = CHECK_ROWS(out);
  const int64_t batch = x_rows.batch, ntokens = x_rows.ntokens;
  switch (x.dim()) {
    case 1: CHECK_SHAPE(out, out_features); break;
    case 2: CHECK_SHAPE(out, ntokens, out_features); break;
    default: CHECK_SHAPE(out, batch, ntokens, out_features);
  }
  CHECK_WRITTEN(out, x, weight, bias);

  args.batch = batch;
  args.ntokens = ntokens;
  args.in_features = in_features;
  args.out_features = out_features;
  args.x = x.const_data_ptr();
  args.x_stride_batch = x_rows.stride_batch;
  args.x_stride_token = x_rows.stride_token;
  args.weight = weight.const_data_ptr();
  args.weight_stride_row = weight.stride(0);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out_rows.stride_batch;
  args.out_stride_token = out_rows.stride_token;
  run(kOp, x, args, llamba_skinny_linear_cpu);
}

}  // namespace llamba
