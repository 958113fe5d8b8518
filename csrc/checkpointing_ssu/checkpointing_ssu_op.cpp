// Host function of checkpointing_ssu: checks every tensor, fills the struct, runs it.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

constexpr const char* kOp = "checkpointing_ssu";
using torch::headeronly::ScalarType;
using Args = llamba_checkpointing_ssu_args;
using OptionalTensor = std::optional<Tensor>;

// Of any floating dtype, beside x.
llamba_dtype check_parameter(const char* name, const Tensor& tensor, const Tensor& x) {
  check_same_device(kOp, name, tensor, "x", x);
  return check_floating(kOp, name, tensor);
}

void fill_state(const Tensor& state, const Tensor& x_cache, const Tensor& B_cache, const Tensor& dt_cache,
                const Tensor& ring_start, const Tensor& prev_num_accepted_tokens, const Tensor& x, Args* args) {
  args->state_dtype = CHECK_FLOATING(state);
  CHECK_DIM(state, 4, 4);
  CHECK_DIM(x_cache, 4, 4);
  CHECK_DIM(B_cache, 4, 4);
  constexpr int64_t kMost = 1 << 24;  // sizes are int32 behind the C interface, where their rules are checked
  const int64_t nslots = state.size(0), nheads = state.size(1), headdim = state.size(2), dstate = state.size(3),
                ngroups = B_cache.size(1), rows = x_cache.size(2);
  CHECK_RANGE(nheads, 0, kMost);
  CHECK_RANGE(headdim, 0, kMost);
  CHECK_RANGE(dstate, 0, kMost);
  CHECK_RANGE(ngroups, 0, kMost);
  CHECK_RANGE(rows, 0, kMost);
  CHECK_STRIDE(state, -1, 1);
  CHECK_SAME_DEVICE(state, x);
  CHECK_LIKE(x_cache, x, nslots, nheads, rows, headdim);
  CHECK_LIKE(B_cache, x, nslots, ngroups, rows, dstate);
  CHECK_SHAPE(dt_cache, nslots, nheads, rows);
  CHECK_DTYPE(dt_cache, Float);
  CHECK_SAME_DEVICE(dt_cache, x);
  CHECK_INDICES(ring_start, x, nslots);
  CHECK_INDICES(prev_num_accepted_tokens, x, nslots);
  args->nslots = nslots;
  args->nheads = static_cast<int32_t>(nheads);
  args->headdim = static_cast<int32_t>(headdim);
  args->dstate = static_cast<int32_t>(dstate);
  args->ngroups = static_cast<int32_t>(ngroups);
  args->ring = static_cast<int32_t>(rows);
  args->state = state.mutable_data_ptr();
  args->state_stride_slot = state.stride(0);
  args->state_stride_head = state.stride(1);
  args->state_stride_dim = state.stride(2);
  args->x_cache = x_cache.mutable_data_ptr();
  args->x_cache_stride_slot = x_cache.stride(0);
  args->x_cache_stride_head = x_cache.stride(1);
  args->x_cache_stride_row = x_cache.stride(2);
  args->B_cache = B_cache.mutable_data_ptr();
  args->B_cache_stride_slot = B_cache.stride(0);
  args->B_cache_stride_group = B_cache.stride(1);
  args->B_cache_stride_row = B_cache.stride(2);
  args->dt_cache = static_cast<float*>(dt_cache.mutable_data_ptr());
  args->dt_cache_stride_slot = dt_cache.stride(0);
  args->dt_cache_stride_head = dt_cache.stride(1);
  args->dt_cache_stride_row = dt_cache.stride(2);
  args->start = static_cast<const int32_t*>(ring_start.const_data_ptr());
  args->previous = static_cast<const int32_t*>(prev_num_accepted_tokens.const_data_ptr());
}

void fill_sequences(const Tensor& x, const OptionalTensor& cu_seqlens, int64_t max_seqlen,
                    const OptionalTensor& state_batch_indices, int64_t pad_slot_id, Args* args) {
  const int64_t sequences = cu_seqlens.has_value() ? cu_seqlens->numel() - 1 : x.size(0);
  args->batch = sequences;
  args->ntokens = x.size(1);
  const int64_t rows = args->ring;
  if (cu_seqlens.has_value()) {
    check_range(kOp, "size of cu_seqlens (sequences + 1)", cu_seqlens->numel(), 1, INT32_MAX);
    CHECK_INDICES(*cu_seqlens, x, sequences + 1);
    check_range(kOp, "size of x in dimension 0 with cu_seqlens", x.size(0), 1, 1);
    args->cu_seqlens = static_cast<const int32_t*>(cu_seqlens->const_data_ptr());
    CHECK_RANGE(max_seqlen, 0, rows);
    args->window = static_cast<int32_t>(rows - max_seqlen);
  } else {
    check_range(kOp, "tokens, the size of x in dimension 1,", x.size(1), 0, rows);
    args->window = static_cast<int32_t>(rows - x.size(1));
    const int64_t nslots = args->nslots;
    if (!state_batch_indices.has_value()) check_range(kOp, "slots of state", nslots, sequences, INT32_MAX);
  }
  args->pad_slot = pad_slot_id;
  if (!state_batch_indices.has_value()) return;
  CHECK_SHAPE(*state_batch_indices, sequences);
  args->slots_are_int64 = state_batch_indices->scalar_type() == ScalarType::Long;
  if (!args->slots_are_int64) CHECK_DTYPE(*state_batch_indices, Int);
  CHECK_SAME_DEVICE(*state_batch_indices, x);
  args->slots = state_batch_indices->const_data_ptr();
  args->slots_stride = state_batch_indices->stride(0);
}

void fill_tokens(const Tensor& x, const Tensor& dt, const Tensor& B, const Tensor& C, const OptionalTensor& z,
                 const Tensor& out, Args* args) {
  const int64_t batch = x.size(0), ntokens = x.size(1), nheads = args->nheads, headdim = args->headdim,
                ngroups = args->ngroups, dstate = args->dstate;
  CHECK_SHAPE(x, batch, ntokens, nheads, headdim);
  CHECK_STRIDE(x, -1, 1);
  CHECK_SHAPE(dt, batch, ntokens, nheads);
  args->dt_dtype = check_parameter("dt", dt, x);
  CHECK_LIKE(B, x, batch, ntokens, ngroups, dstate);
  CHECK_LIKE(C, x, batch, ntokens, ngroups, dstate);
  CHECK_LIKE(out, x, batch, ntokens, nheads, headdim);
  args->x = x.const_data_ptr();
  args->x_stride_batch = x.stride(0);
  args->x_stride_token = x.stride(1);
  args->x_stride_head = x.stride(2);
  args->dt = dt.const_data_ptr();
  args->dt_stride_batch = dt.stride(0);
  args->dt_stride_token = dt.stride(1);
  args->dt_stride_head = dt.stride(2);
  args->B = B.const_data_ptr();
  args->B_stride_batch = B.stride(0);
  args->B_stride_token = B.stride(1);
  args->B_stride_group = B.stride(2);
  args->C = C.const_data_ptr();
  args->C_stride_batch = C.stride(0);
  args->C_stride_token = C.stride(1);
  args->C_stride_group = C.stride(2);
  args->out = out.mutable_data_ptr();
  args->out_stride_batch = out.stride(0);
  args->out_stride_token = out.stride(1);
  args->out_stride_head = out.stride(2);
  if (!z.has_value()) return;
  CHECK_LIKE(*z, x, batch, ntokens, nheads, headdim);
  args->z = z->const_data_ptr();
  args->z_stride_batch = z->stride(0);
  args->z_stride_token = z->stride(1);
  args->z_stride_head = z->stride(2);
}

void fill_parameters(const Tensor& A, const OptionalTensor& D, const OptionalTensor& dt_bias, const Tensor& x,
                     Args* args) {
  const int64_t nheads = args->nheads, headdim = args->headdim;
  CHECK_SHAPE(A, nheads);
  args->A_dtype = check_parameter("A", A, x);
  args->A = A.const_data_ptr();
  args->A_stride_head = A.stride(0);
  if (D.has_value()) {
    CHECK_SHAPE(*D, nheads, headdim);
    args->D_dtype = check_parameter("D", *D, x);
    args->D = D->const_data_ptr();
    args->D_stride_head = D->stride(0);
    args->D_stride_dim = D->stride(1);
  }
  if (dt_bias.has_value()) {
    CHECK_SHAPE(*dt_bias, nheads);
    args->bias_dtype = check_parameter("dt_bias", *dt_bias, x);
    args->dt_bias = dt_bias->const_data_ptr();
    args->dt_bias_stride_head = dt_bias->stride(0);
  }
}

}  // namespace

void checkpointing_ssu(const Tensor& state, const Tensor& x_cache, const Tensor& B_cache, const Tensor& dt_cache,
                       const Tensor& ring_start, const Tensor& prev_num_accepted_tokens, const Tensor& x,
                       const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C, const OptionalTensor& D,
                       const OptionalTensor& z, const OptionalTensor& dt_bias, bool dt_softplus,
                       const OptionalTensor& state_batch_indices, int64_t pad_slot_id, const OptionalTensor& cu_seqlens,
                       int64_t max_seqlen, const Tensor& out) {
  Args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(x);
  CHECK_DIM(x, 4, 4);
  args.dt_softplus = dt_softplus;
  fill_state(state, x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, &args);
  fill_sequences(x, cu_seqlens, max_seqlen, state_batch_indices, pad_slot_id, &args);
  fill_tokens(x, dt, B, C, z, out, &args);
  fill_parameters(A, D, dt_bias, x, &args);
  CHECK_WRITTEN(out, state, x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, z,
                dt_bias, state_batch_indices, cu_seqlens);
  CHECK_WRITTEN(state, x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, z, dt_bias,
                state_batch_indices, cu_seqlens);
  CHECK_WRITTEN(x_cache, B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, z, dt_bias,
                state_batch_indices, cu_seqlens);
  CHECK_WRITTEN(B_cache, dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, z, dt_bias,
                state_batch_indices, cu_seqlens);
  CHECK_WRITTEN(dt_cache, ring_start, prev_num_accepted_tokens, x, dt, A, B, C, D, z, dt_bias, state_batch_indices,
                cu_seqlens);
  run(kOp, x, args, llamba_checkpointing_ssu_cpu);
}

}  // namespace llamba
