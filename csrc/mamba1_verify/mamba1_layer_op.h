// The tensors of a Mamba-1 layer and its buffers, checked and put into an operator's struct: for the host functions of
// mamba1_verify and mamba1_materialize, whose structs name these fields alike.
#pragma once

#include "common/check.h"

namespace llamba {

struct Mamba1LayerTensors {
  const Tensor& A;
  const std::optional<Tensor>& dt_bias;
  const Tensor& checkpoint;
  const Tensor& x_rows;
  const Tensor& dt_rows;
  const Tensor& B_rows;
  const Tensor& cursor;
  const Tensor& slots;
  int64_t B_heads, fold_every;
};

// A per-channel parameter: float32, dense.
inline const float* channel_parameter(const char* kOp, const char* name, const Tensor& tensor, int64_t d_inner,
                                      const Tensor& x_rows) {
  check_shape(kOp, name, tensor, "(d_inner)", {d_inner});
  check_dtype(kOp, name, tensor, torch::headeronly::ScalarType::Float);
  check_stride(kOp, name, tensor, -1, 1);
  check_same_device(kOp, name, tensor, "x_rows", x_rows);
  return static_cast<const float*>(tensor.const_data_ptr());
}

// Fills the fields that the two structs share. x_rows says dtype, device and capacity, hence the conv's width.
template <typename Args>
void fill_mamba1_layer(const char* kOp, const Mamba1LayerTensors& layer, Args* args) {
  const auto& [A, dt_bias, checkpoint, x_rows, dt_rows, B_rows, cursor, slots, B_heads, fold_every] = layer;
  args->dtype = CHECK_FLOATING(x_rows);
  args->checkpoint_dtype = CHECK_FLOATING(checkpoint);
  CHECK_DIM(checkpoint, 3, 3);
  CHECK_DIM(cursor, 2, 2);
  CHECK_DIM(x_rows, 3, 3);
  CHECK_DIM(slots, 1, 1);
  const int64_t nslots = checkpoint.size(0), d_inner = checkpoint.size(1), dstate = checkpoint.size(2),
                capacity = x_rows.size(1), batch = slots.size(0);
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface, where their rules are checked
  CHECK_RANGE(batch, 0, kMost);
  CHECK_RANGE(d_inner, 0, kMost);
  CHECK_RANGE(dstate, 0, kMost);
  CHECK_RANGE(capacity, 0, kMost);
  CHECK_RANGE(B_heads, 1, kMost);
  CHECK_RANGE(fold_every, 1, kMost);
  CHECK_SHAPE(x_rows, nslots, capacity, d_inner);
  CHECK_STRIDE(x_rows, -1, 1);
  CHECK_LIKE(dt_rows, x_rows, nslots, capacity, d_inner);
  CHECK_LIKE(B_rows, x_rows, nslots, capacity, B_heads * dstate);
  CHECK_SHAPE(A, d_inner, dstate);
  CHECK_DTYPE(A, Float);
  CHECK_STRIDE(A, -1, 1);
  CHECK_SAME_DEVICE(A, x_rows);
  if (dt_bias.has_value()) args->dt_bias = channel_parameter(kOp, "dt_bias", *dt_bias, d_inner, x_rows);
  CHECK_STRIDE(checkpoint, -1, 1);
  CHECK_SAME_DEVICE(checkpoint, x_rows);
  // The cursor's width is what its table has beyond the rows.
  check_range(kOp, "last dimension of cursor", cursor.size(1), LLAMBA_CURSOR_HEADER + capacity + 1,
              LLAMBA_CURSOR_HEADER + capacity + 3);
  const int64_t table = cursor.size(1);
  CHECK_INDICES(cursor, x_rows, nslots, table);
  CHECK_INDICES(slots, x_rows, batch);

  args->batch = static_cast<int32_t>(batch);
  args->d_inner = static_cast<int32_t>(d_inner);
  args->dstate = static_cast<int32_t>(dstate);
  args->B_heads = static_cast<int32_t>(B_heads);
  args->fold_every = static_cast<int32_t>(fold_every);
  args->A = static_cast<const float*>(A.const_data_ptr());
  args->A_stride_channel = A.stride(0);
  args->checkpoint = checkpoint.mutable_data_ptr();
  args->checkpoint_stride_slot = checkpoint.stride(0);
  args->checkpoint_stride_channel = checkpoint.stride(1);
  args->x_rows = x_rows.mutable_data_ptr();
  args->x_rows_stride_slot = x_rows.stride(0);
  args->x_rows_stride_row = x_rows.stride(1);
  args->dt_rows = dt_rows.mutable_data_ptr();
  args->dt_rows_stride_slot = dt_rows.stride(0);
  args->dt_rows_stride_row = dt_rows.stride(1);
  args->B_rows = B_rows.mutable_data_ptr();
  args->B_rows_stride_slot = B_rows.stride(0);
  args->B_rows_stride_row = B_rows.stride(1);
  const int64_t width = cursor.size(1) - LLAMBA_CURSOR_HEADER - capacity + 1;
  args->cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), nslots, cursor.stride(0),
                               static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
  args->slots = static_cast<const int32_t*>(slots.const_data_ptr());
}

}  // namespace llamba
