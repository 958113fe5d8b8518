// Host function of selective_state_update: every tensor becomes sizes and strides of one shape, whichever of the peers'
// shapes it has; checks them, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"
#include "selective_state_update/selective_state_update_check.h"

namespace llamba {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "selective_state_update";
constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface
int64_t given_but_empty = 0;        // for tensors without memory, which behind the C interface would be absent
enum Axis { kBatch, kTokens, kHeads, kWidth };

// Sizes and strides [batch, ntokens, heads, width] of x and of what is laid out like it.
struct Layout {
  int64_t sizes[4] = {1, 1, 1, 1}, strides[4] = {0, 0, 0, 0};
};

// has_heads: the state has four dimensions. packed: the sequences lie one behind the other, as cu_seqlens says.
Layout layout_of(const char* name, const Tensor& tensor, bool has_heads, bool packed) {
  const int64_t least = has_heads ? 3 : 2;
  check_dim(kOp, name, tensor, least, packed ? least : least + 1);
  const bool has_tokens = packed || tensor.dim() > least;
  Layout layout;
  int64_t dim = 0;
  for (const Axis axis : {kBatch, kTokens, kHeads, kWidth}) {
    if ((axis == kBatch && packed) || (axis == kTokens && !has_tokens) || (axis == kHeads && !has_heads)) continue;
    layout.sizes[axis] = tensor.size(dim);
    layout.strides[axis] = tensor.stride(dim++);
  }
  return layout;
}

void fill(llamba_operand* operand, const char* name, const Tensor& tensor, const Layout& layout, const Tensor& x) {
  operand->data = tensor.const_data_ptr();
  operand->dtype = check_floating(kOp, name, tensor);
  for (int axis = 0; axis < 4; ++axis) operand->strides[axis] = layout.strides[axis];
  check_same_device(kOp, name, tensor, "x", x);
}

// A parameter [heads, width] or, without heads, [width]; A has one dimension more.
void fill_parameter(llamba_operand* operand, const char* name, const Tensor& tensor, const Tensor& x) {
  Layout layout;
  for (int64_t dim = 0; dim < tensor.dim(); ++dim) layout.strides[4 - tensor.dim() + dim] = tensor.stride(dim);
  fill(operand, name, tensor, layout, x);
}

// [at least rows] or, if most_dims is 2, [at least rows, columns], int32 or int64.
void fill_indices(llamba_indices* indices, const char* name, const std::optional<Tensor>& tensor, int64_t rows,
                  int64_t least_dims, int64_t most_dims, const Tensor& x) {
  if (!tensor.has_value()) return;
  check_dim(kOp, name, *tensor, least_dims, most_dims);
  if (tensor->scalar_type() != ScalarType::Long) check_dtype(kOp, name, *tensor, ScalarType::Int);
  check_same_device(kOp, name, *tensor, "x", x);
  check_range(kOp, (std::string("rows of ") + name).c_str(), tensor->size(0), rows, INT64_MAX);
  if (tensor->dim() == 2) {
    check_range(kOp, (std::string("columns of ") + name).c_str(), tensor->size(1), 1, INT64_MAX);
  }
  indices->data = tensor->numel() > 0 ? tensor->const_data_ptr() : &given_but_empty;
  indices->strides[0] = tensor->stride(0);
  indices->strides[1] = tensor->dim() == 2 ? tensor->stride(1) : 0;
  indices->columns = tensor->dim() == 2 ? tensor->size(1) : 1;
  indices->is_int64 = tensor->scalar_type() == ScalarType::Long;
}

void fill_state(const Tensor& state, llamba_selective_state_update_args* args) {
  const bool has_heads = state.dim() == 4;
  const int64_t nheads = has_heads ? state.size(1) : 1, headdim = state.size(-2), dstate = state.size(-1);
  CHECK_RANGE(nheads, 1, kMost);
  CHECK_RANGE(headdim, 1, kMost);
  CHECK_RANGE(dstate, 1, kSsuMostDstate);
  CHECK_STRIDE(state, -1, 1);
  args->state_dtype = CHECK_FLOATING(state);
  args->nheads = static_cast<int32_t>(nheads);
  args->headdim = static_cast<int32_t>(headdim);
  args->dstate = static_cast<int32_t>(dstate);
  args->state = state.mutable_data_ptr();
  args->nslots = state.size(0);
  args->state_stride_slot = state.stride(0);
  args->state_stride_head = has_heads ? state.stride(1) : 0;
  args->state_stride_dim = state.stride(-2);
}

void fill_buffer(const std::optional<Tensor>& buffer, const Tensor& state, llamba_selective_state_update_args* args) {
  if (!buffer.has_value()) return;
  const Tensor& intermediate_states_buffer = *buffer;
  const int64_t dims = state.dim() + 1, nheads = args->nheads, headdim = args->headdim, dstate = args->dstate;
  CHECK_DIM(intermediate_states_buffer, dims, dims);
  const int64_t rows = buffer->size(0), steps = buffer->size(1);
  if (dims == 5) {
    CHECK_SHAPE(intermediate_states_buffer, rows, steps, nheads, headdim, dstate);
  } else {
    CHECK_SHAPE(intermediate_states_buffer, rows, steps, headdim, dstate);
  }
  CHECK_SAME_DTYPE(intermediate_states_buffer, state);
  CHECK_SAME_DEVICE(intermediate_states_buffer, state);
  CHECK_STRIDE(intermediate_states_buffer, -1, 1);
  args->buffer = buffer->numel() > 0 ? buffer->mutable_data_ptr() : &given_but_empty;
  args->nbuffer = rows;
  args->buffer_steps = steps;
  args->buffer_stride_row = buffer->stride(0);
  args->buffer_stride_step = buffer->stride(1);
  args->buffer_stride_head = dims == 5 ? buffer->stride(2) : 0;
  args->buffer_stride_dim = buffer->stride(-2);
}

void check_group_layout(const char* name, const Layout& layout, const Layout& x, int64_t ngroups, int64_t dstate) {
  const std::string of = std::string(" of ") + name;
  check_range(kOp, ("batch" + of).c_str(), layout.sizes[kBatch], x.sizes[kBatch], x.sizes[kBatch]);
  check_range(kOp, ("ntokens" + of).c_str(), layout.sizes[kTokens], x.sizes[kTokens], x.sizes[kTokens]);
  check_range(kOp, ("ngroups" + of).c_str(), layout.sizes[kHeads], ngroups, ngroups);
  check_range(kOp, ("dstate" + of).c_str(), layout.sizes[kWidth], dstate, dstate);
}

}  // namespace

void selective_state_update(const Tensor& state, const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B,
                            const Tensor& C, const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                            const std::optional<Tensor>& dt_bias, bool dt_softplus,
                            const std::optional<Tensor>& state_batch_indices, int64_t pad_slot_id,
                            bool disable_state_update, const std::optional<Tensor>& intermediate_states_buffer,
                            const std::optional<Tensor>& intermediate_state_indices,
                            const std::optional<Tensor>& dst_state_batch_indices,
                            const std::optional<Tensor>& cu_seqlens, const std::optional<Tensor>& num_accepted_tokens,
                            const std::optional<Tensor>& retrieve_parent_token, const Tensor& out) {
  llamba_selective_state_update_args args{sizeof(args)};
  CHECK_DIM(state, 3, 4);
  const bool has_heads = state.dim() == 4, packed = cu_seqlens.has_value();
  fill_state(state, &args);
  CHECK_SAME_DEVICE(state, x);
  const int64_t nheads = args.nheads, headdim = args.headdim, dstate = args.dstate;

  const Layout tokens = layout_of("x", x, has_heads, packed);
  check_range(kOp, "nheads of x", tokens.sizes[kHeads], nheads, nheads);
  check_range(kOp, "headdim of x", tokens.sizes[kWidth], headdim, headdim);
  args.dtype = CHECK_FLOATING(x);
  fill(&args.x, "x", x, tokens, x);
  CHECK_SAME_SHAPE(dt, x);
  fill(&args.dt, "dt", dt, layout_of("dt", dt, has_heads, packed), x);
  if (z.has_value()) {
    CHECK_SAME_SHAPE(*z, x);
    fill(&args.z, "z", *z, layout_of("z", *z, has_heads, packed), x);
  }
  const Layout B_layout = layout_of("B", B, has_heads, packed), C_layout = layout_of("C", C, has_heads, packed);
  const int64_t ngroups = B_layout.sizes[kHeads];
  CHECK_RANGE(ngroups, 1, nheads);
  check_group_layout("B", B_layout, tokens, ngroups, dstate);
  check_group_layout("C", C_layout, tokens, ngroups, dstate);
  fill(&args.B, "B", B, B_layout, x);
  fill(&args.C, "C", C, C_layout, x);
  if (has_heads) {
    CHECK_SHAPE(A, nheads, headdim, dstate);
  } else {
    CHECK_SHAPE(A, headdim, dstate);
  }
  fill_parameter(&args.A, "A", A, x);
  if (dstate == 1) args.A.strides[3] = 0;
  if (args.A.strides[3] != 0) CHECK_STRIDE(A, -1, 1);
  for (const auto& [operand, name, parameter] :
       {std::tuple(&args.D, "D", &D), std::tuple(&args.dt_bias, "dt_bias", &dt_bias)}) {
    if (!parameter->has_value()) continue;
    if (has_heads) {
      check_shape(kOp, name, **parameter, "(nheads, headdim)", {nheads, headdim});
    } else {
      check_shape(kOp, name, **parameter, "(headdim)", {headdim});
    }
    fill_parameter(operand, name, **parameter, x);
  }

  const int64_t sequences = packed ? cu_seqlens->numel() - 1 : tokens.sizes[kBatch];
  if (packed) check_range(kOp, "elements of cu_seqlens", cu_seqlens->numel(), 1, kMost);
  fill_indices(&args.cu_seqlens, "cu_seqlens", cu_seqlens, 1, 1, 1, x);
  fill_indices(&args.slots, "state_batch_indices", state_batch_indices, sequences, 1, 2, x);
  fill_indices(&args.dst_slots, "dst_state_batch_indices", dst_state_batch_indices, sequences, 1, 2, x);
  fill_indices(&args.accepted, "num_accepted_tokens", num_accepted_tokens, sequences, 1, 1, x);
  fill_indices(&args.buffer_rows, "intermediate_state_indices", intermediate_state_indices, sequences, 1, 1, x);
  fill_indices(&args.parents, "retrieve_parent_token", retrieve_parent_token, sequences, 2, 2, x);
  fill_buffer(intermediate_states_buffer, state, &args);
  if (retrieve_parent_token.has_value() && !packed) {
    check_range(kOp, "columns of retrieve_parent_token", args.parents.columns, tokens.sizes[kTokens], kMost);
  }

  CHECK_SAME_SHAPE(out, x);
  CHECK_SAME_DTYPE(out, x);
  CHECK_SAME_DEVICE(out, x);
  const Layout out_layout = layout_of("out", out, has_heads, packed);
  CHECK_WRITTEN_OR_SAME(out, x, z);
  CHECK_WRITTEN(out, state, dt, A, B, C, D, dt_bias, state_batch_indices, intermediate_states_buffer,
                intermediate_state_indices, dst_state_batch_indices, cu_seqlens, num_accepted_tokens,
                retrieve_parent_token);
  CHECK_WRITTEN(state, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, intermediate_states_buffer,
                intermediate_state_indices, dst_state_batch_indices, cu_seqlens, num_accepted_tokens,
                retrieve_parent_token);
  if (intermediate_states_buffer.has_value()) {
    check_written(kOp, "intermediate_states_buffer", *intermediate_states_buffer,
                  "x, dt, A, B, C, D, z, dt_bias, state_batch_indices, intermediate_state_indices, cu_seqlens, "
                  "num_accepted_tokens, retrieve_parent_token",
                  {x, dt, A, B, C, D, z, dt_bias, state_batch_indices, intermediate_state_indices, cu_seqlens,
                   num_accepted_tokens, retrieve_parent_token},
                  false);
  }

  args.batch = sequences;
  args.ntokens = tokens.sizes[kTokens];
  args.ngroups = static_cast<int32_t>(ngroups);
  args.dt_softplus = dt_softplus;
  args.disable_state_update = disable_state_update;
  args.pad_slot_id = pad_slot_id;
  args.out = out.mutable_data_ptr();
  for (int axis = 0; axis < 4; ++axis) args.out_strides[axis] = out_layout.strides[axis];
  run(kOp, x, args, llamba_selective_state_update_cpu);
}

}  // namespace llamba
