// Host functions of selective_scan and its backward: check every tensor, fill the structs, run them.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

// Of float32 whatever the activations are.
#define CHECK_STATES(tensor, like, ...) \
  do {                                  \
    CHECK_SHAPE(tensor, __VA_ARGS__);   \
    CHECK_DTYPE(tensor, Float);         \
    CHECK_STRIDE(tensor, -1, 1);        \
    CHECK_SAME_DEVICE(tensor, like);    \
  } while (0)
#define CHECK_CHUNK_STATES(tensor, like)                                      \
  do {                                                                        \
    const int64_t chunks = length > 0 ? (length - 1) / LLAMBA_SCAN_CHUNK : 0; \
    CHECK_STATES(tensor, like, batch, chunks, dstate, d_inner);               \
    CHECK_STRIDE(tensor, 2, d_inner);                                         \
    CHECK_STRIDE(tensor, 1, dstate * d_inner);                                \
    if (chunks > 0) CHECK_STRIDE(tensor, 0, chunks * dstate * d_inner);       \
  } while (0)
#define CHECK_CHANNELS(tensor, like) CHECK_STATES(tensor, like, d_inner)

// What both functions take; the outputs of the forward stay null.
llamba_selective_scan_args check_inputs(const char* kOp, const Tensor& x, const Tensor& dt, const Tensor& A,
                                        const Tensor& B, const Tensor& C, const std::optional<Tensor>& D,
                                        const std::optional<Tensor>& z, const std::optional<Tensor>& dt_bias,
                                        int64_t B_heads, int64_t C_heads, bool dt_softplus,
                                        const std::optional<Tensor>& initial_state,
                                        const std::optional<Tensor>& cu_seqlens) {
  llamba_selective_scan_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(x);
  CHECK_DIM(x, 3, 3);
  CHECK_STRIDE(x, -1, 1);
  CHECK_DIM(A, 2, 2);
  const int64_t batch = x.size(0), length = x.size(1), d_inner = x.size(2), dstate = A.size(1);
  CHECK_RANGE(d_inner, 1, 1 << 24);
  CHECK_RANGE(dstate, 1, 256);
  CHECK_STATES(A, x, d_inner, dstate);
  CHECK_RANGE(B_heads, 1, d_inner);
  CHECK_RANGE(C_heads, 1, d_inner);
  CHECK_LIKE(dt, x, batch, length, d_inner);
  CHECK_LIKE(B, x, batch, length, B_heads * dstate);
  CHECK_LIKE(C, x, batch, length, C_heads * dstate);
  args.dt_softplus = dt_softplus;
  args.batch = batch;
  args.length = length;
  args.d_inner = d_inner;
  args.dstate = dstate;
  args.B_heads = B_heads;
  args.C_heads = C_heads;
  args.x = x.const_data_ptr();
  args.x_stride_batch = x.stride(0);
  args.x_stride_token = x.stride(1);
  args.dt = dt.const_data_ptr();
  args.dt_stride_batch = dt.stride(0);
  args.dt_stride_token = dt.stride(1);
  args.A = static_cast<const float*>(A.const_data_ptr());
  args.A_stride_channel = A.stride(0);
  args.B = B.const_data_ptr();
  args.B_stride_batch = B.stride(0);
  args.B_stride_token = B.stride(1);
  args.C = C.const_data_ptr();
  args.C_stride_batch = C.stride(0);
  args.C_stride_token = C.stride(1);
  if (D) {
    CHECK_CHANNELS(*D, x);
    args.D = static_cast<const float*>(D->const_data_ptr());
  }
  if (z) {
    CHECK_LIKE(*z, x, batch, length, d_inner);
    args.z = z->const_data_ptr();
    args.z_stride_batch = z->stride(0);
    args.z_stride_token = z->stride(1);
  }
  if (dt_bias) {
    CHECK_CHANNELS(*dt_bias, x);
    args.dt_bias = static_cast<const float*>(dt_bias->const_data_ptr());
  }
  if (cu_seqlens) {
    CHECK_DIM(*cu_seqlens, 1, 1);
    const int64_t boundaries = cu_seqlens->size(0);
    check_range(kOp, "the size of cu_seqlens", boundaries, 1, INT32_MAX);
    CHECK_INDICES(*cu_seqlens, x, boundaries);
    args.cu_seqlens = static_cast<const int32_t*>(cu_seqlens->const_data_ptr());
    args.nsequences = boundaries - 1;
  }
  const int64_t nsequences = cu_seqlens ? args.nsequences : batch;
  if (initial_state) {
    CHECK_STATES(*initial_state, x, nsequences, d_inner, dstate);
    args.initial_state = static_cast<const float*>(initial_state->const_data_ptr());
    args.initial_state_stride_batch = initial_state->stride(0);
    args.initial_state_stride_channel = initial_state->stride(1);
  }
  return args;
}

}  // namespace

void selective_scan(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                    const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                    const std::optional<Tensor>& dt_bias, int64_t B_heads, int64_t C_heads, bool dt_softplus,
                    const std::optional<Tensor>& initial_state, const std::optional<Tensor>& cu_seqlens,
                    int64_t state_every, const Tensor& y, const std::optional<Tensor>& final_state,
                    const std::optional<Tensor>& states, const std::optional<Tensor>& chunk_states) {
  constexpr const char* kOp = "selective_scan";
  refuse_in_capture(kOp);  // what it writes is new memory of each call; the backward's, too
  llamba_selective_scan_args args =
      check_inputs(kOp, x, dt, A, B, C, D, z, dt_bias, B_heads, C_heads, dt_softplus, initial_state, cu_seqlens);
  const int64_t batch = args.batch, length = args.length, d_inner = args.d_inner, dstate = args.dstate;
  const int64_t nsequences = cu_seqlens ? args.nsequences : batch;
  CHECK_LIKE(y, x, batch, length, d_inner);
  CHECK_WRITTEN(y, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens);
  args.y = y.mutable_data_ptr();
  args.y_stride_batch = y.stride(0);
  args.y_stride_token = y.stride(1);
  if (final_state) {
    CHECK_STATES(*final_state, x, nsequences, d_inner, dstate);
    CHECK_WRITTEN(*final_state, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, y);
    args.final_state = static_cast<float*>(final_state->mutable_data_ptr());
    args.final_state_stride_batch = final_state->stride(0);
    args.final_state_stride_channel = final_state->stride(1);
  }
  if (states) {
    CHECK_RANGE(state_every, 1, INT64_MAX);
    CHECK_STATES(*states, x, batch, length / state_every, d_inner, dstate);
    CHECK_WRITTEN(*states, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, y, final_state);
    args.state_every = state_every;
    args.states = static_cast<float*>(states->mutable_data_ptr());
    args.states_stride_batch = states->stride(0);
    args.states_stride_state = states->stride(1);
    args.states_stride_channel = states->stride(2);
  }
  if (chunk_states) {
    CHECK_CHUNK_STATES(*chunk_states, x);
    CHECK_WRITTEN(*chunk_states, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, y, final_state, states);
    args.chunk_states = static_cast<float*>(chunk_states->mutable_data_ptr());
  }
  run(kOp, x, args, llamba_selective_scan_cpu);
}

void selective_scan_backward(const Tensor& x, const Tensor& dt, const Tensor& A, const Tensor& B, const Tensor& C,
                             const std::optional<Tensor>& D, const std::optional<Tensor>& z,
                             const std::optional<Tensor>& dt_bias, int64_t B_heads, int64_t C_heads, bool dt_softplus,
                             const std::optional<Tensor>& initial_state, const std::optional<Tensor>& cu_seqlens,
                             int64_t state_every, const Tensor& chunk_states, const Tensor& grad_y,
                             const std::optional<Tensor>& grad_final_state, const std::optional<Tensor>& grad_states,
                             const Tensor& grad_x, const Tensor& grad_dt, const Tensor& grad_A, const Tensor& grad_B,
                             const Tensor& grad_C, const std::optional<Tensor>& grad_D,
                             const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_dt_bias,
                             const std::optional<Tensor>& grad_initial_state) {
  constexpr const char* kOp = "selective_scan_backward";
  refuse_in_capture(kOp);
  llamba_selective_scan_backward_args args{sizeof(args)};
  args.scan =
      check_inputs(kOp, x, dt, A, B, C, D, z, dt_bias, B_heads, C_heads, dt_softplus, initial_state, cu_seqlens);
  const llamba_selective_scan_args& scan = args.scan;
  const int64_t batch = scan.batch, length = scan.length, d_inner = scan.d_inner, dstate = scan.dstate;
  const int64_t nsequences = cu_seqlens ? scan.nsequences : batch;
  CHECK_CHUNK_STATES(chunk_states, x);
  args.scan.chunk_states = const_cast<float*>(static_cast<const float*>(chunk_states.const_data_ptr()));
  CHECK_LIKE(grad_y, x, batch, length, d_inner);
  args.grad_y = grad_y.const_data_ptr();
  args.grad_y_stride_batch = grad_y.stride(0);
  args.grad_y_stride_token = grad_y.stride(1);
  if (grad_final_state) {
    CHECK_STATES(*grad_final_state, x, nsequences, d_inner, dstate);
    args.grad_final_state = static_cast<const float*>(grad_final_state->const_data_ptr());
    args.grad_final_state_stride_batch = grad_final_state->stride(0);
    args.grad_final_state_stride_channel = grad_final_state->stride(1);
  }
  if (grad_states) {
    CHECK_RANGE(state_every, 1, INT64_MAX);
    CHECK_STATES(*grad_states, x, batch, length / state_every, d_inner, dstate);
    args.scan.state_every = state_every;
    args.grad_states = static_cast<const float*>(grad_states->const_data_ptr());
    args.grad_states_stride_batch = grad_states->stride(0);
    args.grad_states_stride_state = grad_states->stride(1);
    args.grad_states_stride_channel = grad_states->stride(2);
  }
#define CHECK_GRADIENT(tensor)                                                                          \
  CHECK_WRITTEN(tensor, x, dt, A, B, C, D, z, dt_bias, initial_state, cu_seqlens, chunk_states, grad_y, \
                grad_final_state, grad_states)
  CHECK_LIKE(grad_x, x, batch, length, d_inner);
  CHECK_GRADIENT(grad_x);
  args.grad_x = grad_x.mutable_data_ptr();
  args.grad_x_stride_batch = grad_x.stride(0);
  args.grad_x_stride_token = grad_x.stride(1);
  CHECK_LIKE(grad_dt, x, batch, length, d_inner);
  CHECK_GRADIENT(grad_dt);
  args.grad_dt = grad_dt.mutable_data_ptr();
  args.grad_dt_stride_batch = grad_dt.stride(0);
  args.grad_dt_stride_token = grad_dt.stride(1);
  CHECK_STATES(grad_A, x, d_inner, dstate);
  CHECK_STRIDE(grad_A, 0, dstate);
  CHECK_GRADIENT(grad_A);
  args.grad_A = static_cast<float*>(grad_A.mutable_data_ptr());
  CHECK_LIKE(grad_B, x, batch, length, B_heads * dstate);
  CHECK_GRADIENT(grad_B);
  args.grad_B = grad_B.mutable_data_ptr();
  args.grad_B_stride_batch = grad_B.stride(0);
  args.grad_B_stride_token = grad_B.stride(1);
  CHECK_LIKE(grad_C, x, batch, length, C_heads * dstate);
  CHECK_GRADIENT(grad_C);
  args.grad_C = grad_C.mutable_data_ptr();
  args.grad_C_stride_batch = grad_C.stride(0);
  args.grad_C_stride_token = grad_C.stride(1);
  if (grad_D) {
    CHECK_CHANNELS(*grad_D, x);
    CHECK_GRADIENT(*grad_D);
    args.grad_D = static_cast<float*>(grad_D->mutable_data_ptr());
  }
  if (z) {
    if (!grad_z) check_status(LLAMBA_TYPE_ERROR, "selective_scan_backward: grad_z must be a tensor with z; got None");
    CHECK_LIKE(*grad_z, x, batch, length, d_inner);
    CHECK_GRADIENT(*grad_z);
    args.grad_z = grad_z->mutable_data_ptr();
    args.grad_z_stride_batch = grad_z->stride(0);
    args.grad_z_stride_token = grad_z->stride(1);
  }
  if (grad_dt_bias) {
    CHECK_CHANNELS(*grad_dt_bias, x);
    CHECK_GRADIENT(*grad_dt_bias);
    args.grad_dt_bias = static_cast<float*>(grad_dt_bias->mutable_data_ptr());
  }
  if (grad_initial_state) {
    CHECK_STATES(*grad_initial_state, x, nsequences, d_inner, dstate);
    CHECK_GRADIENT(*grad_initial_state);
    args.grad_initial_state = static_cast<float*>(grad_initial_state->mutable_data_ptr());
    args.grad_initial_state_stride_batch = grad_initial_state->stride(0);
    args.grad_initial_state_stride_channel = grad_initial_state->stride(1);
  }
  std::vector<NamedTensor> written = {
      {"grad_x", &grad_x}, {"grad_dt", &grad_dt}, {"grad_A", &grad_A}, {"grad_B", &grad_B}, {"grad_C", &grad_C}};
  if (grad_D) written.push_back({"grad_D", &*grad_D});
  if (z) written.push_back({"grad_z", &*grad_z});
  if (grad_dt_bias) written.push_back({"grad_dt_bias", &*grad_dt_bias});
  if (grad_initial_state) written.push_back({"grad_initial_state", &*grad_initial_state});
  check_apart(kOp, written);
  run(kOp, x, args, llamba_selective_scan_backward_cpu);
}

}  // namespace llamba
