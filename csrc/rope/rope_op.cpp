// Host function of rope: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void rope(const Tensor& x, const Tensor& cos, const Tensor& sin, const Tensor& positions, bool interleaved,
          const Tensor& out) {
  constexpr const char* kOp = "rope";
  llamba_rope_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(x);
  CHECK_DIM(x, 4, 4);
  CHECK_STRIDE(x, -1, 1);
  const int64_t batch = x.size(0), ntokens = x.size(1), nheads = x.size(2), head_dim = x.size(3);
  CHECK_DIM(cos, 2, 2);
  CHECK_DTYPE(cos, Float);
  CHECK_SAME_DEVICE(cos, x);
  CHECK_STRIDE(cos, -1, 1);
  CHECK_SAME_SHAPE(sin, cos);
  CHECK_DTYPE(sin, Float);
  CHECK_SAME_DEVICE(sin, x);
  CHECK_STRIDE(sin, -1, 1);
  CHECK_SHAPE(positions, batch, ntokens);
  CHECK_DTYPE(positions, Int);
  CHECK_SAME_DEVICE(positions, x);
  CHECK_STRIDE(positions, -1, 1);
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  CHECK_SAME_SHAPE(out, x);
  CHECK_STRIDE(out, -1, 1);
  CHECK_WRITTEN_OR_SAME(out, x);
  CHECK_WRITTEN(out, cos, sin, positions);

  args.batch = batch;
  args.ntokens = ntokens;
  args.nheads = nheads;
  args.head_dim = head_dim;
  args.npositions = cos.size(0);
  args.rotary_dim = 2 * cos.size(1);
  args.interleaved = interleaved;
  args.x = x.const_data_ptr();
  args.x_stride_batch = x.stride(0);
  args.x_stride_token = x.stride(1);
  args.x_stride_head = x.stride(2);
  args.cos = static_cast<const float*>(cos.const_data_ptr());
  args.cos_stride_position = cos.stride(0);
  args.sin = static_cast<const float*>(sin.const_data_ptr());
  args.sin_stride_position = sin.stride(0);
  args.positions = static_cast<const int32_t*>(positions.const_data_ptr());
  args.positions_stride_batch = positions.stride(0);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  args.out_stride_head = out.stride(2);
  run(kOp, x, args, llamba_rope_cpu);
}

}  // namespace llamba
