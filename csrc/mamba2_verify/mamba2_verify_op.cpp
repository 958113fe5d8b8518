// Host function of mamba2_verify: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba2_verify";

// A per-head parameter: float32, dense.
const float* head_parameter(const char* name, const Tensor& tensor, int64_t nheads, const Tensor& like) {
  check_shape(kOp, name, tensor, "(nheads)", {nheads});
  check_dtype(kOp, name, tensor, torch::headeronly::ScalarType::Float);
  check_stride(kOp, name, tensor, -1, 1);
  check_same_device(kOp, name, tensor, "xBC", like);
  return static_cast<const float*>(tensor.const_data_ptr());
}

}  // namespace

void mamba2_verify(const Tensor& xBC, const Tensor& dt, const Tensor& conv_weight,
                   const std::optional<Tensor>& conv_bias, const Tensor& A, const std::optional<Tensor>& D,
                   const std::optional<Tensor>& dt_bias, const Tensor& checkpoint, const Tensor& rows,
                   const Tensor& dt_rows, const Tensor& cursor, const Tensor& slots, const Tensor& out, int64_t x_heads,
                   int64_t B_heads, int64_t C_heads) {
  llamba_mamba2_verify_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(xBC);
  CHECK_DIM(xBC, 3, 3);
  CHECK_DIM(checkpoint, 4, 4);
  CHECK_DIM(conv_weight, 2, 2);
  CHECK_DIM(cursor, 2, 2);
  const int64_t batch = xBC.size(0), max_ntokens = xBC.size(1), conv_dim = xBC.size(2);
  const int64_t nslots = checkpoint.size(0), nheads = checkpoint.size(1), headdim = checkpoint.size(2),
                dstate = checkpoint.size(3), width = conv_weight.size(1);
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface, where their rules are checked
  for (const int64_t size : {batch, max_ntokens, nheads, headdim, dstate}) CHECK_RANGE(size, 0, kMost);
  CHECK_RANGE(x_heads, 1, kMost);
  CHECK_RANGE(B_heads, 1, kMost);
  CHECK_RANGE(C_heads, 1, kMost);
  CHECK_RANGE(width, 2, 4);
  const int64_t expected_conv_dim = x_heads * headdim + (B_heads + C_heads) * dstate;
  check_shape(kOp, "xBC", xBC, "(batch, max_ntokens, x_heads * headdim + (B_heads + C_heads) * dstate)",
              {batch, max_ntokens, expected_conv_dim});

  CHECK_STRIDE(xBC, -1, 1);
  CHECK_SHAPE(dt, batch, max_ntokens, nheads);
  CHECK_SAME_DTYPE(dt, xBC);
  CHECK_STRIDE(dt, -1, 1);
  CHECK_SAME_DEVICE(dt, xBC);
  CHECK_SHAPE(conv_weight, conv_dim, width);
  CHECK_SAME_DTYPE(conv_weight, xBC);
  CHECK_SAME_DEVICE(conv_weight, xBC);
  if (conv_bias.has_value()) {
    CHECK_SHAPE(*conv_bias, conv_dim);
    CHECK_SAME_DTYPE(*conv_bias, xBC);
    CHECK_STRIDE(*conv_bias, -1, 1);
    CHECK_SAME_DEVICE(*conv_bias, xBC);
    args.conv_bias = conv_bias->const_data_ptr();
  }
  args.A = head_parameter("A", A, nheads, xBC);
  if (D.has_value()) args.D = head_parameter("D", *D, nheads, xBC);
  if (dt_bias.has_value()) args.dt_bias = head_parameter("dt_bias", *dt_bias, nheads, xBC);

  CHECK_DTYPE(checkpoint, Float);
  CHECK_STRIDE(checkpoint, -1, 1);
  CHECK_SAME_DEVICE(checkpoint, xBC);
  CHECK_DTYPE(cursor, Int);
  CHECK_STRIDE(cursor, -1, 1);
  CHECK_SAME_DEVICE(cursor, xBC);
  const int64_t capacity = cursor.size(1) - LLAMBA_CURSOR_HEADER - (width - 1);
  const int64_t table = LLAMBA_CURSOR_HEADER + width - 1 + capacity;
  CHECK_SHAPE(cursor, nslots, table);
  CHECK_SHAPE(rows, nslots, capacity, conv_dim);
  CHECK_SAME_DTYPE(rows, xBC);
  CHECK_STRIDE(rows, -1, 1);
  CHECK_SAME_DEVICE(rows, xBC);
  CHECK_SHAPE(dt_rows, nslots, capacity, nheads);
  CHECK_SAME_DTYPE(dt_rows, xBC);
  CHECK_STRIDE(dt_rows, -1, 1);
  CHECK_SAME_DEVICE(dt_rows, xBC);
  CHECK_SHAPE(slots, batch);
  CHECK_DTYPE(slots, Int);
  CHECK_STRIDE(slots, -1, 1);
  CHECK_SAME_DEVICE(slots, xBC);
  CHECK_SHAPE(out, batch, max_ntokens, nheads, headdim);
  CHECK_SAME_DTYPE(out, xBC);
  CHECK_STRIDE(out, -1, 1);
  CHECK_SAME_DEVICE(out, xBC);
  CHECK_WRITTEN(out, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, checkpoint, rows, dt_rows);
  CHECK_WRITTEN(checkpoint, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, rows, dt_rows);
  CHECK_WRITTEN(rows, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots, dt_rows);
  CHECK_WRITTEN(dt_rows, xBC, dt, conv_weight, conv_bias, A, D, dt_bias, cursor, slots);

  args.batch = static_cast<int32_t>(batch);
  args.max_ntokens = static_cast<int32_t>(max_ntokens);
  args.nheads = static_cast<int32_t>(nheads);
  args.headdim = static_cast<int32_t>(headdim);
  args.dstate = static_cast<int32_t>(dstate);
  args.x_heads = static_cast<int32_t>(x_heads);
  args.B_heads = static_cast<int32_t>(B_heads);
  args.C_heads = static_cast<int32_t>(C_heads);
  args.xBC = xBC.const_data_ptr();
  args.xBC_stride_batch = xBC.stride(0);
  args.xBC_stride_token = xBC.stride(1);
  args.dt = dt.const_data_ptr();
  args.dt_stride_batch = dt.stride(0);
  args.dt_stride_token = dt.stride(1);
  args.conv_weight = conv_weight.const_data_ptr();
  args.conv_weight_stride_channel = conv_weight.stride(0);
  args.conv_weight_stride_tap = conv_weight.stride(1);
  args.checkpoint = static_cast<float*>(checkpoint.mutable_data_ptr());
  args.checkpoint_stride_slot = checkpoint.stride(0);
  args.checkpoint_stride_head = checkpoint.stride(1);
  args.checkpoint_stride_dim = checkpoint.stride(2);
  args.rows = rows.mutable_data_ptr();
  args.rows_stride_slot = rows.stride(0);
  args.rows_stride_row = rows.stride(1);
  args.dt_rows = dt_rows.mutable_data_ptr();
  args.dt_rows_stride_slot = dt_rows.stride(0);
  args.dt_rows_stride_row = dt_rows.stride(1);
  args.cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), nslots, cursor.stride(0),
                              static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
  args.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  args.out_stride_head = out.stride(2);
  run(kOp, xBC, args, llamba_mamba2_verify_cpu);
}

}  // namespace llamba
