// Host function of causal_conv1d_update: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

constexpr const char* kOp = "causal_conv1d_update";

// int32 for each sequence, or absent.
const int32_t* numbers(const char* name, const std::optional<Tensor>& tensor, const char* rule, int64_t size,
                       const Tensor& x) {
  if (!tensor.has_value()) return nullptr;
  check_shape(kOp, name, *tensor, rule, {size});
  check_dtype(kOp, name, *tensor, torch::headeronly::ScalarType::Int);
  check_stride(kOp, name, *tensor, -1, 1);
  check_same_device(kOp, name, *tensor, "x", x);
  return static_cast<const int32_t*>(tensor->const_data_ptr());
}

void fill_x(const Tensor& x, const std::optional<Tensor>& query_start_loc, llamba_causal_conv1d_update_args* args) {
  args->dtype = CHECK_FLOATING(x);
  args->x = x.const_data_ptr();
  if (query_start_loc.has_value()) {
    CHECK_DIM(x, 2, 2);
    CHECK_DIM(*query_start_loc, 1, 1);
    check_range(kOp, "size of query_start_loc (sequences + 1)", query_start_loc->size(0), 1, INT64_MAX);
    args->batch = query_start_loc->size(0) - 1;
    args->ntokens = x.size(0);
    args->x_stride_token = x.stride(0);
    args->query_start = numbers("query_start_loc", query_start_loc, "(sequences + 1)", args->batch + 1, x);
  } else {
    CHECK_DIM(x, 2, 3);
    args->batch = x.size(0);
    args->ntokens = x.dim() == 3 ? x.size(2) : 1;
    args->x_stride_batch = x.stride(0);
    args->x_stride_token = x.dim() == 3 ? x.stride(2) : 0;
  }
  args->dim = x.size(1);
  args->x_stride_channel = x.stride(1);
}

void fill_weight(const Tensor& weight, const std::optional<Tensor>& bias, const Tensor& x,
                 llamba_causal_conv1d_update_args* args) {
  const int64_t dim = args->dim;
  args->weight_dtype = CHECK_FLOATING(weight);
  CHECK_DIM(weight, 2, 2);
  const int64_t width = weight.size(1);
  CHECK_RANGE(width, 2, 4);
  CHECK_SHAPE(weight, dim, width);
  CHECK_SAME_DEVICE(weight, x);
  args->width = static_cast<int32_t>(width);
  args->weight = weight.const_data_ptr();
  args->weight_stride_channel = weight.stride(0);
  args->weight_stride_tap = weight.stride(1);
  if (!bias.has_value()) return;
  CHECK_LIKE(*bias, weight, dim);
  args->bias = bias->const_data_ptr();
}

void fill_state(const Tensor& conv_state, const std::optional<Tensor>& conv_state_indices, const Tensor& x,
                llamba_causal_conv1d_update_args* args) {
  args->state_dtype = CHECK_FLOATING(conv_state);
  CHECK_DIM(conv_state, 3, 3);
  const int64_t nslots = conv_state.size(0), dim = args->dim, state_len = conv_state.size(2);
  check_range(kOp, "state_len, the last size of conv_state,", state_len, args->width - 1, INT32_MAX);
  CHECK_SHAPE(conv_state, nslots, dim, state_len);
  CHECK_SAME_DEVICE(conv_state, x);
  args->nslots = nslots;
  args->state_len = state_len;
  args->conv_state = conv_state.mutable_data_ptr();
  args->conv_state_stride_slot = conv_state.stride(0);
  args->conv_state_stride_channel = conv_state.stride(1);
  args->conv_state_stride_token = conv_state.stride(2);
  args->nblocks = 1;
  if (!conv_state_indices.has_value()) {
    const int64_t batch = args->batch;
    check_range(kOp, "slots of conv_state", nslots, batch, INT32_MAX);
    return;
  }
  const int64_t batch = args->batch;
  CHECK_DIM(*conv_state_indices, 1, 2);
  if (conv_state_indices->dim() == 2) {
    const int64_t nblocks = conv_state_indices->size(1);
    CHECK_RANGE(nblocks, 1, INT32_MAX);
    CHECK_SHAPE(*conv_state_indices, batch, nblocks);
    args->nblocks = nblocks;
  } else {
    CHECK_SHAPE(*conv_state_indices, batch);
  }
  CHECK_DTYPE(*conv_state_indices, Int);
  if (conv_state_indices->dim() == 2) CHECK_STRIDE(*conv_state_indices, -1, 1);
  CHECK_SAME_DEVICE(*conv_state_indices, x);
  args->slots = static_cast<const int32_t*>(conv_state_indices->const_data_ptr());
  args->slots_stride_batch = conv_state_indices->stride(0);
}

void fill_parents(const Tensor& retrieve_parent_token, const Tensor& x, llamba_causal_conv1d_update_args* args) {
  using torch::headeronly::ScalarType;
  CHECK_DIM(retrieve_parent_token, 2, 2);
  const int64_t batch = args->batch, ntokens = args->ntokens;
  if (args->query_start) {
    const int64_t most_tokens = retrieve_parent_token.size(1);
    CHECK_SHAPE(retrieve_parent_token, batch, most_tokens);
    check_range(kOp, "tokens of x", ntokens, 0, batch * most_tokens);
  } else {
    CHECK_SHAPE(retrieve_parent_token, batch, ntokens);
  }
  if (retrieve_parent_token.scalar_type() != ScalarType::Long) CHECK_DTYPE(retrieve_parent_token, Int);
  CHECK_SAME_DEVICE(retrieve_parent_token, x);
  args->parents_are_int64 = retrieve_parent_token.scalar_type() == ScalarType::Long;
  args->parents = retrieve_parent_token.const_data_ptr();
  args->parents_stride_batch = retrieve_parent_token.stride(0);
  args->parents_stride_token = retrieve_parent_token.stride(1);
}

void fill_windows(const Tensor& intermediate_conv_window, const Tensor& conv_state, int64_t ntokens,
                  llamba_causal_conv1d_update_args* args) {
  CHECK_DIM(intermediate_conv_window, 4, 4);
  const int64_t entries = intermediate_conv_window.size(0), steps = intermediate_conv_window.size(1), dim = args->dim,
                width = args->width;
  CHECK_SHAPE(intermediate_conv_window, entries, steps, dim, width - 1);
  CHECK_SAME_DTYPE(intermediate_conv_window, conv_state);
  CHECK_SAME_DEVICE(intermediate_conv_window, conv_state);
  const int64_t least = ntokens > 0;  // entries 0 would mean that there are no windows
  CHECK_RANGE(entries, least, INT32_MAX);
  CHECK_RANGE(steps, args->query_start ? least : ntokens, INT32_MAX);
  args->nwindows = entries;
  args->window_tokens = steps;
  args->windows = intermediate_conv_window.mutable_data_ptr();
  args->windows_stride_entry = intermediate_conv_window.stride(0);
  args->windows_stride_token = intermediate_conv_window.stride(1);
  args->windows_stride_channel = intermediate_conv_window.stride(2);
  args->windows_stride_tap = intermediate_conv_window.stride(3);
}

}  // namespace

void causal_conv1d_update(
    const Tensor& x, const Tensor& conv_state, const Tensor& weight, const std::optional<Tensor>& bias, bool silu,
    const std::optional<Tensor>& cache_seqlens, const std::optional<Tensor>& conv_state_indices,
    const std::optional<Tensor>& num_accepted_tokens, const std::optional<Tensor>& query_start_loc, int64_t pad_slot_id,
    const std::optional<Tensor>& block_idx_last_scheduled_token, const std::optional<Tensor>& initial_state_idx,
    const std::optional<Tensor>& retrieve_parent_token, const std::optional<Tensor>& intermediate_conv_window,
    const std::optional<Tensor>& intermediate_state_indices, const Tensor& out) {
  llamba_causal_conv1d_update_args args{sizeof(args)};
  args.silu = silu;
  CHECK_RANGE(pad_slot_id, INT32_MIN, INT32_MAX);
  args.pad_slot = static_cast<int32_t>(pad_slot_id);
  fill_x(x, query_start_loc, &args);
  fill_weight(weight, bias, x, &args);
  fill_state(conv_state, conv_state_indices, x, &args);
  args.cache_seqlens = numbers("cache_seqlens", cache_seqlens, "(batch)", args.batch, x);
  args.accepted = numbers("num_accepted_tokens", num_accepted_tokens, "(batch)", args.batch, x);
  args.source_block = numbers("initial_state_idx", initial_state_idx, "(batch)", args.batch, x);
  args.target_block =
      numbers("block_idx_last_scheduled_token", block_idx_last_scheduled_token, "(batch)", args.batch, x);
  args.window_entries = numbers("intermediate_state_indices", intermediate_state_indices, "(batch)", args.batch, x);
  if (retrieve_parent_token.has_value()) fill_parents(*retrieve_parent_token, x, &args);
  if (intermediate_conv_window.has_value()) {
    fill_windows(*intermediate_conv_window, conv_state, args.ntokens, &args);
    CHECK_WRITTEN(*intermediate_conv_window, x, conv_state, weight, bias, cache_seqlens, conv_state_indices,
                  num_accepted_tokens, query_start_loc, block_idx_last_scheduled_token, initial_state_idx,
                  retrieve_parent_token, intermediate_state_indices);
  }
  CHECK_SAME_SHAPE(out, x);
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  if (args.parents) {
    CHECK_WRITTEN(out, x);
  } else {
    CHECK_WRITTEN_OR_SAME(out, x);
  }
  CHECK_WRITTEN(out, conv_state, weight, bias, cache_seqlens, conv_state_indices, num_accepted_tokens, query_start_loc,
                block_idx_last_scheduled_token, initial_state_idx, retrieve_parent_token, intermediate_conv_window,
                intermediate_state_indices);
  CHECK_WRITTEN(conv_state, x, weight, bias, cache_seqlens, conv_state_indices, num_accepted_tokens, query_start_loc,
                block_idx_last_scheduled_token, initial_state_idx, retrieve_parent_token, intermediate_state_indices);
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = args.query_start ? 0 : out.stride(0);
  args.out_stride_channel = out.stride(1);
  args.out_stride_token = args.query_start ? out.stride(0) : out.dim() == 3 ? out.stride(2) : 0;
  run(kOp, x, args, llamba_causal_conv1d_update_cpu);
}

}  // namespace llamba
