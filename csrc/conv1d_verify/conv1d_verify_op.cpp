// Host function of conv1d_verify: checks every tensor, fills the struct, runs it.
#include "common/run.h"
#include "ops.h"

namespace llamba {

void conv1d_verify(const Tensor& x, const Tensor& conv_weight, const std::optional<Tensor>& conv_bias,
                   const Tensor& rows, const Tensor& cursor, const Tensor& slots, int64_t x_heads, int64_t headdim,
                   const std::optional<Tensor>& parents, const Tensor& out) {
  constexpr const char* kOp = "conv1d_verify";
  llamba_conv1d_verify_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(rows);
  CHECK_DIM(conv_weight, 2, 2);
  CHECK_DIM(cursor, 2, 2);
  CHECK_DIM(rows, 3, 3);
  CHECK_DIM(slots, 1, 1);
  CHECK_DIM(x, 3, 3);
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface, where their rules are checked
  const int64_t nslots = rows.size(0), batch = slots.size(0), max_ntokens = x.size(1), dim = conv_weight.size(0),
                width = conv_weight.size(1);
  CHECK_RANGE(batch, 0, kMost);
  CHECK_RANGE(max_ntokens, 0, kMost);
  CHECK_RANGE(x_heads, 1, kMost);
  CHECK_RANGE(headdim, 1, kMost);
  CHECK_RANGE(width, 2, 4);
  check_range(kOp, "rows of conv_weight", dim, 0, kMost);
  if (dim % headdim != 0) {
    check_status(LLAMBA_VALUE_ERROR, (std::string(kOp) + ": headdim must divide the rows of conv_weight, " +
                                      std::to_string(dim) + "; got " + std::to_string(headdim))
                                         .c_str());
  }
  const int64_t capacity = cursor.size(1) - LLAMBA_CURSOR_HEADER - (width - 1);
  const int64_t table = LLAMBA_CURSOR_HEADER + width - 1 + capacity;
  CHECK_SHAPE(rows, nslots, capacity, x_heads * headdim);
  CHECK_STRIDE(rows, -1, 1);
  CHECK_LIKE(x, rows, batch, max_ntokens, x_heads * headdim);
  CHECK_SAME_DTYPE(conv_weight, rows);
  CHECK_SAME_DEVICE(conv_weight, rows);
  if (conv_bias.has_value()) {
    CHECK_LIKE(*conv_bias, rows, dim);
    args.conv_bias = conv_bias->const_data_ptr();
  }
  CHECK_INDICES(cursor, rows, nslots, table);
  CHECK_INDICES(slots, rows, batch);
  if (parents.has_value()) {
    CHECK_INDICES(*parents, rows, batch, max_ntokens);
    args.parents = static_cast<const int32_t*>(parents->const_data_ptr());
    args.parents_stride_batch = parents->stride(0);
  }
  CHECK_LIKE(out, rows, batch, max_ntokens, dim);
  CHECK_WRITTEN(out, x, conv_weight, conv_bias, cursor, slots, parents, rows);
  CHECK_WRITTEN(rows, x, conv_weight, conv_bias, cursor, slots, parents);

  args.batch = static_cast<int32_t>(batch);
  args.max_ntokens = static_cast<int32_t>(max_ntokens);
  args.nheads = static_cast<int32_t>(dim / headdim);
  args.headdim = static_cast<int32_t>(headdim);
  args.x_heads = static_cast<int32_t>(x_heads);
  args.x = x.const_data_ptr();
  args.x_stride_batch = x.stride(0);
  args.x_stride_token = x.stride(1);
  args.conv_weight = conv_weight.const_data_ptr();
  args.conv_weight_stride_channel = conv_weight.stride(0);
  args.conv_weight_stride_tap = conv_weight.stride(1);
  args.rows = rows.mutable_data_ptr();
  args.rows_stride_slot = rows.stride(0);
  args.rows_stride_row = rows.stride(1);
  args.cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), nslots, cursor.stride(0),
                              static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
  args.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  run(kOp, rows, args, llamba_conv1d_verify_cpu);
}

}  // namespace llamba
