// selective_state_update -- blocks of sixteen state rows, each row in vectors along dstate, fp32 between load and store.
// A row's sums have one order whatever the window; with an fp32 state K tokens give the bits of K calls.
#include "common/vec.h"
#include "selective_state_update/selective_state_update_check.h"
#include "selective_state_update/selective_state_update_sequence.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// One token of a block, row by row.
struct Inputs {
  float dt[kLanes], input[kLanes];  // input: dt x
  float decay[kLanes];              // exp(dt A) where A is one number in a row
  const llamba_operand* A;
  int64_t A_offset;  // of the first row
};

template <typename T>
LLAMBA_INLINE vec16 gather(const T* p, int64_t stride, int n) {
  if (stride == 1) return load_first(p, n);
  if (stride == 0) return broadcast(to_float(*p));
  float lanes[kLanes] = {};
  for (int i = 0; i < n; ++i) lanes[i] = to_float(p[i * stride]);
  return load(lanes);
}

// n elements, `stride` apart, from `offset` on.
vec16 read(const llamba_operand& a, int64_t offset, int64_t stride, int n) {
  LLAMBA_SWITCH_DTYPE(a.dtype, T, return gather(static_cast<const T*>(a.data) + offset, stride, n));
  return broadcast(0.0f);
}

LLAMBA_INLINE int64_t offset_of(const llamba_operand& a, int64_t batch, int64_t token, int64_t head, int64_t dim) {
  return batch * a.strides[0] + token * a.strides[1] + head * a.strides[2] + dim * a.strides[3];
}

// n elements of a row of B, C or A as floats, zeros up to a whole vector.
void read_row(const llamba_operand& a, int64_t offset, int32_t n, float* row) {
  for (int32_t i = 0; i < n; i += kLanes) {
    const int lanes = lanes_left(n - i);
    vec16 v = read(a, offset + i * a.strides[3], a.strides[3], lanes);
    store(row + i, v);
    for (int j = lanes; j < kLanes; ++j) row[i + j] = 0.0f;
  }
}

// state = decay * state + input * B; returns state . C of each row. from and to may be the same.
template <bool kTied, typename From, typename To>
vec16 step(const Inputs& inputs, int rows, int32_t dstate, const float* B, const float* C, const From* from,
           int64_t from_stride, To* to, int64_t to_stride) {
  vec16 sums[kLanes] = {};
  for (int row = 0; row < rows; ++row) {
    float converted[kTied ? 1 : kSsuMostDstate];
    const float* A = converted;
    if constexpr (!kTied) {
      const int64_t offset = inputs.A_offset + row * inputs.A->strides[2];
      if (inputs.A->dtype == LLAMBA_FLOAT32) {
        A = static_cast<const float*>(inputs.A->data) + offset;
      } else {
        read_row(*inputs.A, offset, dstate, converted);
      }
    }
    const vec16 dt = broadcast(inputs.dt[row]), input = broadcast(inputs.input[row]);
    vec16 decay = broadcast(inputs.decay[row]), sum = broadcast(0.0f);
    for (int32_t n = 0; n < dstate; n += kLanes) {
      const int lanes = lanes_left(dstate - n);
      if constexpr (!kTied) decay = exp(mul(dt, load_first(A + n, lanes)));
      const vec16 state = fma(load_first(from + row * from_stride + n, lanes), decay, mul(input, load(B + n)));
      store_first(to + row * to_stride + n, state, lanes);
      sum = fma(state, load(C + n), sum);
    }
    sums[row] = sum;
  }
  return sum_each(sums);
}

template <typename From, typename To>
LLAMBA_INLINE vec16 any_step(const Inputs& inputs, int rows, int32_t dstate, const float* B, const float* C,
                             const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  return inputs.A->strides[3] == 0 ? step<true>(inputs, rows, dstate, B, C, from, from_stride, to, to_stride)
                                   : step<false>(inputs, rows, dstate, B, C, from, from_stride, to, to_stride);
}

// A block of rows between the state or the buffer (S) and fp32.
template <typename From, typename To>
LLAMBA_INLINE void copy_rows(int rows, int32_t dstate, const From* from, int64_t from_stride, To* to,
                             int64_t to_stride) {
  for (int row = 0; row < rows; ++row) {
    for (int32_t n = 0; n < dstate; n += kLanes) {
      const int lanes = lanes_left(dstate - n);
      store_first(to + row * to_stride + n, load_first(from + row * from_stride + n, lanes), lanes);
    }
  }
}

template <typename T>
LLAMBA_INLINE void write(T* p, int64_t stride, vec16 v, int n) {
  if (stride == 1) return store_first(p, v, n);
  float lanes[kLanes];
  store(lanes, v);
  for (int i = 0; i < n; ++i) from_float(lanes[i], p + i * stride);
}

// The rows of one block through all tokens of a sequence.
template <typename S>
class Block {
 public:
  Block(const llamba_selective_state_update_args& args, int64_t i, const SsuSequence& sequence)
      : args_(args), i_(i), sequence_(sequence) {}

  void run(int64_t head, int64_t dim) {
    head_ = head;
    dim_ = dim;
    rows_ = lanes_left(args_.headdim - dim);
    const int64_t only = sequence_.ntokens == 1 ? ssu_destination(args_, i_, sequence_, 0) : kNoState;
    if (only != kNoState && sequence_.buffer_row == kNoState) {
      const Inputs inputs = load_inputs(0);
      return store_output(0, any_step(inputs, rows_, args_.dstate, B_, C_, state(sequence_.slot),
                                      args_.state_stride_dim, state(only), args_.state_stride_dim));
    }
    if (sequence_.slot == kNoState) {
      for (float& value : work_) value = 0.0f;
    } else {
      copy_rows(rows_, args_.dstate, state(sequence_.slot), args_.state_stride_dim, work_, kSsuMostDstate);
    }
    for (int64_t token = 0; token < sequence_.ntokens; ++token) step_token(token);
  }

 private:
  S* state(int64_t slot) const {
    return static_cast<S*>(args_.state) + slot * args_.state_stride_slot + head_ * args_.state_stride_head +
           dim_ * args_.state_stride_dim;
  }
  S* buffer(int64_t token) const {
    return static_cast<S*>(args_.buffer) + sequence_.buffer_row * args_.buffer_stride_row +
           token * args_.buffer_stride_step + head_ * args_.buffer_stride_head + dim_ * args_.buffer_stride_dim;
  }

  vec16 rows_of(const llamba_operand& a, int64_t token) const {
    const int64_t offset = offset_of(a, sequence_.batch, sequence_.first + token, head_, dim_);
    return read(a, offset, a.strides[3], rows_);
  }

  // B and C of the token, unless they are the last ones read.
  void load_group(int64_t token) {
    const int64_t group = head_ / (args_.nheads / args_.ngroups);
    if (group == group_ && token == token_) return;
    const int64_t batch = sequence_.batch, row = sequence_.first + token;
    read_row(args_.B, offset_of(args_.B, batch, row, group, 0), args_.dstate, B_);
    read_row(args_.C, offset_of(args_.C, batch, row, group, 0), args_.dstate, C_);
    group_ = group;
    token_ = token;
  }

  Inputs load_inputs(int64_t token) {
    load_group(token);
    Inputs inputs;
    vec16 dt = rows_of(args_.dt, token);
    if (args_.dt_bias.data) {
      const llamba_operand& bias = args_.dt_bias;
      dt = add(dt, read(bias, offset_of(bias, 0, 0, head_, dim_), bias.strides[3], rows_));
    }
    if (args_.dt_softplus) dt = softplus(dt);
    const llamba_operand& A = args_.A;
    inputs.A = &A;
    inputs.A_offset = head_ * A.strides[1] + dim_ * A.strides[2];
    store(inputs.dt, dt);
    store(inputs.input, mul(dt, rows_of(args_.x, token)));
    vec16 decay = broadcast(0.0f);
    if (A.strides[3] == 0) decay = exp(mul(dt, read(A, inputs.A_offset, A.strides[2], rows_)));
    store(inputs.decay, decay);
    return inputs;
  }

  void store_output(int64_t token, vec16 y) const {
    if (args_.D.data) {
      const llamba_operand& D = args_.D;
      y = fma(rows_of(args_.x, token), read(D, offset_of(D, 0, 0, head_, dim_), D.strides[3], rows_), y);
    }
    if (args_.z.data) y = mul(y, silu(rows_of(args_.z, token)));
    const int64_t* strides = args_.out_strides;
    const int64_t offset =
        sequence_.batch * strides[0] + (sequence_.first + token) * strides[1] + head_ * strides[2] + dim_ * strides[3];
    LLAMBA_SWITCH_DTYPE(args_.dtype, T, write(static_cast<T*>(args_.out) + offset, strides[3], y, rows_));
  }

  void step_token(int64_t token) {
    const int32_t dstate = args_.dstate;
    const int64_t parent = ssu_parent(args_, i_, sequence_, token);
    if (parent >= 0) copy_rows(rows_, dstate, buffer(parent), args_.buffer_stride_dim, work_, kSsuMostDstate);
    const Inputs inputs = load_inputs(token);
    store_output(token, any_step(inputs, rows_, dstate, B_, C_, work_, kSsuMostDstate, work_, kSsuMostDstate));
    if (sequence_.buffer_row != kNoState) {
      copy_rows(rows_, dstate, work_, kSsuMostDstate, buffer(token), args_.buffer_stride_dim);
    }
    const int64_t slot = ssu_destination(args_, i_, sequence_, token);
    if (slot != kNoState) copy_rows(rows_, dstate, work_, kSsuMostDstate, state(slot), args_.state_stride_dim);
  }

  const llamba_selective_state_update_args& args_;
  const int64_t i_;
  const SsuSequence sequence_;
  int64_t head_ = 0, dim_ = 0, group_ = -1, token_ = -1;
  int rows_ = 0;
  float B_[kSsuMostDstate], C_[kSsuMostDstate], work_[kLanes * kSsuMostDstate];
};

template <typename S>
void run_blocks(const llamba_selective_state_update_args& args, int64_t i, int64_t begin, int64_t end) {
  const int64_t blocks_per_head = (args.headdim + kLanes - 1) / kLanes;
  Block<S> block(args, i, ssu_sequence(args, i));
  for (int64_t index = begin; index < end; ++index)
    block.run(index / blocks_per_head, index % blocks_per_head * kLanes);
}

}  // namespace

void ssu_blocks(const llamba_selective_state_update_args& args, int64_t i, int64_t begin, int64_t end) {
  LLAMBA_SWITCH_DTYPE(args.state_dtype, S, run_blocks<S>(args, i, begin, end));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
