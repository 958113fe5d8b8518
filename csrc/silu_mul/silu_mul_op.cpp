// Host function of silu_mul: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void silu_mul(const Tensor& gate, const Tensor& up, const Tensor& out) {
  constexpr const char* kOp = "silu_mul";
  llamba_silu_mul_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(gate);
  const Rows gate_rows = CHECK_ROWS(gate);
  CHECK_SAME_DTYPE(up, gate);
  CHECK_SAME_DEVICE(up, gate);
  CHECK_SAME_SHAPE(up, gate);
  const Rows up_rows = CHECK_ROWS(up);
  CHECK_SAME_DTYPE(out, gate);
  CHECK_SAME_DEVICE(out, gate);
  CHECK_SAME_SHAPE(out, gate);
  const Rows out_rows = CHECK_ROWS(out);
  CHECK_WRITTEN_OR_SAME(out, gate, up);

  args.batch = gate_rows.batch;
  args.ntokens = gate_rows.ntokens;
  args.width = gate_rows.width;
  args.gate = gate.const_data_ptr();
  args.gate_stride_batch = gate_rows.stride_batch;
  args.gate_stride_token = gate_rows.stride_token;
  args.up = up.const_data_ptr();
  args.up_stride_batch = up_rows.stride_batch;
  args.up_stride_token = up_rows.stride_token;
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out_rows.stride_batch;
  args.out_stride_token = out_rows.stride_token;
  run(kOp, gate, args, llamba_silu_mul_cpu);
}

}  // namespace llamba
