// Host function of argmax: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void argmax(const Tensor& logits, const Tensor& out) {
  constexpr const char* kOp = "argmax";
  llamba_argmax_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(logits);
  const Rows rows = CHECK_ROWS(logits);
  const int64_t batch = rows.batch, ntokens = rows.ntokens;
  CHECK_DTYPE(out, Long);
  CHECK_SAME_DEVICE(out, logits);
  switch (logits.dim()) {
    case 1: CHECK_SHAPE(out); break;
    case 2: CHECK_SHAPE(out, ntokens); break;
    default: CHECK_SHAPE(out, batch, ntokens);
  }
  CHECK_WRITTEN(out, logits);

  args.batch = batch;
  args.ntokens = ntokens;
  args.vocab = rows.width;
  args.logits = logits.const_data_ptr();
  args.logits_stride_batch = rows.stride_batch;
  args.logits_stride_token = rows.stride_token;
  args.out = static_cast<int64_t*>(out.mutable_data_ptr());
  args.out_stride_batch = out.dim() == 2 ? out.stride(0) : 0;
  args.out_stride_token = out.dim() >= 1 ? out.stride(out.dim() - 1) : 0;
  run(kOp, logits, args, llamba_argmax_cpu);
}

}  // namespace llamba
