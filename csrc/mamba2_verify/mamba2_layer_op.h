// The tensors of a Mamba-2 layer and its buffers, checked and put into an operator's struct: for the host functions of
// mamba2_verify and materialize, whose structs name these fields alike.
#pragma once

#include "common/check.h"

namespace llamba {

struct Mamba2LayerTensors {
  const Tensor& conv_weight;
  const std::optional<Tensor>& conv_bias;
  const Tensor& A;
  const std::optional<Tensor>& dt_bias;
  const Tensor& checkpoint;
  const Tensor& rows;
  const Tensor& dt_rows;
  const Tensor& cursor;
  const Tensor& slots;
  int64_t x_heads, B_heads, C_heads, fold_every;
};

// A per-head parameter: float32, dense.
inline const float* head_parameter(const char* kOp, const char* name, const Tensor& tensor, int64_t nheads,
                                   const Tensor& rows) {
  check_shape(kOp, name, tensor, "(nheads)", {nheads});
  check_dtype(kOp, name, tensor, torch::headeronly::ScalarType::Float);
  check_stride(kOp, name, tensor, -1, 1);
  check_same_device(kOp, name, tensor, "rows", rows);
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Fills all fields but those of the tokens, D, parents and the outputs. rows says dtype and device.
template <typename Args>
void fill_layer(const char* kOp, const Mamba2LayerTensors& layer, Args* args) {
  const auto& [conv_weight, conv_bias, A, dt_bias, checkpoint, rows, dt_rows, cursor, slots, x_heads, B_heads, C_heads,
               fold_every] = layer;
  args->dtype = CHECK_FLOATING(rows);
  args->checkpoint_dtype = CHECK_FLOATING(checkpoint);
  CHECK_DIM(checkpoint, 4, 4);
  CHECK_DIM(conv_weight, 2, 2);
  CHECK_DIM(cursor, 2, 2);
  CHECK_DIM(rows, 3, 3);
  CHECK_DIM(slots, 1, 1);
  const int64_t nslots = checkpoint.size(0), nheads = checkpoint.size(1), headdim = checkpoint.size(2),
                dstate = checkpoint.size(3), width = conv_weight.size(1), batch = slots.size(0);
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface, where their rules are checked
  CHECK_RANGE(batch, 0, kMost);
  CHECK_RANGE(nheads, 0, kMost);
  CHECK_RANGE(headdim, 0, kMost);
  CHECK_RANGE(dstate, 0, kMost);
  CHECK_RANGE(x_heads, 1, kMost);
  CHECK_RANGE(B_heads, 1, kMost);
  CHECK_RANGE(C_heads, 1, kMost);
  CHECK_RANGE(width, 2, 4);
  CHECK_RANGE(fold_every, 1, kMost);
  const int64_t conv_dim = x_heads * headdim + (B_heads + C_heads) * dstate;
  const int64_t capacity = cursor.size(1) - LLAMBA_CURSOR_HEADER - (width - 1);
  const int64_t table = LLAMBA_CURSOR_HEADER + width - 1 + capacity;
  check_shape(kOp, "rows", rows, "(nslots, capacity, x_heads * headdim + (B_heads + C_heads) * dstate)",
              {nslots, capacity, conv_dim});
  CHECK_STRIDE(rows, -1, 1);
  CHECK_LIKE(dt_rows, rows, nslots, capacity, nheads);
  CHECK_SHAPE(conv_weight, conv_dim, width);
  CHECK_SAME_DTYPE(conv_weight, rows);
  CHECK_SAME_DEVICE(conv_weight, rows);
  if (conv_bias.has_value()) {
    CHECK_LIKE(*conv_bias, rows, conv_dim);
    args->conv_bias = conv_bias->const_data_ptr();
  }
  args->A = head_parameter(kOp, "A", A, nheads, rows);
  if (dt_bias.has_value()) args->dt_bias = head_parameter(kOp, "dt_bias", *dt_bias, nheads, rows);
  CHECK_STRIDE(checkpoint, -1, 1);
  CHECK_SAME_DEVICE(checkpoint, rows);
  CHECK_INDICES(cursor, rows, nslots, table);
  CHECK_DTYPE(slots, Int);
  CHECK_STRIDE(slots, -1, 1);
  CHECK_SAME_DEVICE(slots, rows);

  args->batch = static_cast<int32_t>(batch);
  args->nheads = static_cast<int32_t>(nheads);
  args->headdim = static_cast<int32_t>(headdim);
  args->dstate = static_cast<int32_t>(dstate);
  args->x_heads = static_cast<int32_t>(x_heads);
  args->B_heads = static_cast<int32_t>(B_heads);
  args->C_heads = static_cast<int32_t>(C_heads);
  args->fold_every = static_cast<int32_t>(fold_every);
  args->conv_weight = conv_weight.const_data_ptr();
  args->conv_weight_stride_channel = conv_weight.stride(0);
  args->conv_weight_stride_tap = conv_weight.stride(1);
  args->checkpoint = checkpoint.mutable_data_ptr();
  args->checkpoint_stride_slot = checkpoint.stride(0);
  args->checkpoint_stride_head = checkpoint.stride(1);
  args->checkpoint_stride_dim = checkpoint.stride(2);
  args->rows = rows.mutable_data_ptr();
  args->rows_stride_slot = rows.stride(0);
  args->rows_stride_row = rows.stride(1);
  args->dt_rows = dt_rows.mutable_data_ptr();
  args->dt_rows_stride_slot = dt_rows.stride(0);
  args->dt_rows_stride_row = dt_rows.stride(1);
  args->cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), nslots, cursor.stride(0),
                               static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
  args->slots = static_cast<const int32_t*>(slots.const_data_ptr());
}

}  // namespace llamba
