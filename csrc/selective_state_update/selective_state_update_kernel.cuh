// selective_state_update_kernel -- advances the states of a few rows of one (sequence, head) by its tokens and emits y for each.
// Grid     (blocks of a head's rows, then heads, then sequences)   Block  128 threads = 4 warps
// Owns     one block owns kSlots * (128 / lanes) rows of a head: of the state, the buffer and out
// Threads  `lanes` lanes, a power of two, share a row: lane l has the vectors l, l + lanes, ... of kVector elements. Each
//          thread has kSlots rows at once, so that as many loads are under way
// Shared   none
// Flow     1 states -> registers  2 for each token: B, C -> registers; x, dt; advance; sum over the lanes; store y, and
//          the state where it is wanted
// Barriers none; a parent's state is read by the thread that stored it
// Numerics fp32 between load and store, explicit fmaf; the order of a row's sum depends on dstate and state_t alone
// Requires dstate <= kVectors * kVector * 32 elements (selective_state_update_launch.cu)
// Indices that the CPU refuses are padding here: such a sequence starts at zero and stores no state.
#pragma once

#include <type_traits>

#include "common/rows.cuh"
#include "selective_state_update/selective_state_update_sequence.h"

namespace llamba {

constexpr int kSsuThreads = 128;

template <int kVectors>
constexpr int kSsuSlots = 4 / kVectors;

struct SsuParams {
  llamba_selective_state_update_args args;
  int32_t lanes;
  int32_t blocks_per_head;
};

__device__ __forceinline__ const char* element(const llamba_operand& a, int64_t offset) {
  return static_cast<const char*>(a.data) + offset * (a.dtype == LLAMBA_FLOAT32 ? 4 : 2);
}

__device__ __forceinline__ float load_element(const llamba_operand& a, int64_t offset) {
  const char* const p = element(a, offset);
  if (a.dtype == LLAMBA_FLOAT32) return load_global(reinterpret_cast<const float*>(p));
  if (a.dtype == LLAMBA_BFLOAT16) return to_float(load_global(reinterpret_cast<const bfloat16*>(p)));
  return to_float(load_global(reinterpret_cast<const float16*>(p)));
}

// The first n of kCount elements, `stride` apart; the others are zero, and what would be theirs is not read.
template <int kCount, typename T>
__device__ __forceinline__ void load_elements(const T* p, int64_t stride, int n, float (&v)[kCount]) {
  using Chunk = std::conditional_t<kCount * sizeof(T) % 16 == 0, uint4, uint2>;
  if (stride == 1 && n >= kCount && reinterpret_cast<uintptr_t>(p) % sizeof(Chunk) == 0) {
    constexpr int kEach = static_cast<int>(sizeof(Chunk) / sizeof(T));
#pragma unroll
    for (int i = 0; i < kCount; i += kEach) {
      const Chunk bits = load_global(reinterpret_cast<const Chunk*>(p + i));
      T elements[kEach];
      memcpy(elements, &bits, sizeof(bits));
#pragma unroll
      for (int j = 0; j < kEach; ++j) v[i + j] = to_float(elements[j]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kCount; ++i) v[i] = i < n ? to_float(load_global(p + i * stride)) : 0.0f;
  }
}
template <int kCount>
__device__ __forceinline__ void load_elements(const llamba_operand& a, int64_t offset, int n, float (&v)[kCount]) {
  const char* const p = element(a, offset);
  if (a.dtype == LLAMBA_FLOAT32) {
    load_elements(reinterpret_cast<const float*>(p), a.strides[3], n, v);
  } else if (a.dtype == LLAMBA_BFLOAT16) {
    load_elements(reinterpret_cast<const bfloat16*>(p), a.strides[3], n, v);
  } else {
    load_elements(reinterpret_cast<const float16*>(p), a.strides[3], n, v);
  }
}

// Where a thread's vectors lie in a row, and how many of their elements exist.
template <typename S, int kVectors>
struct SsuLane {
  int first[kVectors], count[kVectors];

  __device__ SsuLane(int lane, int lanes, int dstate) {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) {
      first[v] = (v * lanes + lane) * kVector<S>;
      count[v] = vector_left<S>(dstate - first[v]);
    }
  }
  template <typename Pointer>
  __device__ __forceinline__ void load(Pointer row, float (&values)[kVectors][kVector<S>]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) load_vector(row + first[v], count[v], values[v]);
  }
  __device__ __forceinline__ void store(S* row, const float (&values)[kVectors][kVector<S>]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) store_vector(row + first[v], count[v], values[v]);
  }
  __device__ __forceinline__ void load(const llamba_operand& a, int64_t row,
                                       float (&values)[kVectors][kVector<S>]) const {
#pragma unroll
    for (int v = 0; v < kVectors; ++v) load_elements(a, row + first[v] * a.strides[3], count[v], values[v]);
  }
};

template <typename S, int kVectors>
__global__ void __launch_bounds__(kSsuThreads, 4) selective_state_update_kernel(SsuParams params) {
  constexpr int kSlots = kSsuSlots<kVectors>;
  using Values = float[kVectors][kVector<S>];
  const llamba_selective_state_update_args& args = params.args;
  const int64_t item = block_index() / params.blocks_per_head;
  const int64_t i = item / args.nheads;
  if (i >= args.batch) return;
  const int32_t this_head = static_cast<int32_t>(item % args.nheads);
  const SsuSequence sequence = ssu_sequence(args, i);
  const int lanes = params.lanes, lane = static_cast<int>(threadIdx.x) % lanes;
  const int rows_at_once = kSsuThreads / lanes;
  const int32_t row0 = static_cast<int32_t>(block_index() % params.blocks_per_head) * kSlots * rows_at_once +
                       static_cast<int32_t>(threadIdx.x) / lanes;
  const SsuLane<S, kVectors> mine(lane, lanes, args.dstate);
  const auto state_row = [&](int64_t slot, int64_t head, int64_t dim) {
    return static_cast<S*>(args.state) + slot * args.state_stride_slot + head * args.state_stride_head +
           dim * args.state_stride_dim;
  };
  const auto buffer_row = [&](int64_t token, int64_t head, int64_t dim) {
    return static_cast<S*>(args.buffer) + sequence.buffer_row * args.buffer_stride_row +
           token * args.buffer_stride_step + head * args.buffer_stride_head + dim * args.buffer_stride_dim;
  };

  Values state[kSlots] = {};
#pragma unroll
  for (int j = 0; j < kSlots; ++j) {
    const int32_t dim = row0 + j * rows_at_once;
    if (dim < args.headdim && sequence.slot != kNoState) mine.load(state_row(sequence.slot, this_head, dim), state[j]);
  }
  const bool one_dt = args.dt.strides[3] == 0 && (!args.dt_bias.data || args.dt_bias.strides[3] == 0);
  const bool one_A = args.A.strides[3] == 0;

  for (int64_t token = 0; token < sequence.ntokens; ++token) {
    const int64_t at = sequence.first + token;
    const int32_t head = opaque(this_head), first_row = opaque(row0);  // else all rows' addresses stay in registers
    const int32_t group = head / (args.nheads / args.ngroups);
    const auto offset = [&](const llamba_operand& a, int32_t heads, int32_t dim) {
      return sequence.batch * a.strides[0] + at * a.strides[1] + heads * a.strides[2] + dim * a.strides[3];
    };
    Values B, C;
    mine.load(args.B, offset(args.B, group, 0), B);
    mine.load(args.C, offset(args.C, group, 0), C);
    const int64_t slot = ssu_destination(args, i, sequence, token);
    const int64_t parent = ssu_parent(args, i, sequence, token);
    float dt = 0.0f;
#pragma unroll
    for (int j = 0; j < kSlots; ++j) {
      const int32_t dim = first_row + j * rows_at_once;
      const bool exists = dim < args.headdim;  // all lanes take part in the sums
      const int32_t read = exists ? dim : 0;
      if (j == 0 || !one_dt) {
        dt = load_element(args.dt, offset(args.dt, head, read));
        if (args.dt_bias.data) {
          const llamba_operand& bias = args.dt_bias;
          dt += load_element(bias, head * bias.strides[2] + read * bias.strides[3]);
        }
        if (args.dt_softplus) dt = softplus(dt);
      }
      const float x = load_element(args.x, offset(args.x, head, read));
      const float input = dt * x;
      if (parent >= 0 && exists) mine.load(buffer_row(parent, head, dim), state[j]);
      const int64_t A_row = head * args.A.strides[1] + read * args.A.strides[2];
      float y = 0.0f;
      if (one_A) {
        const float decay = expf(dt * load_element(args.A, A_row));
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
          for (int e = 0; e < kVector<S>; ++e) {
            state[j][v][e] = fmaf(state[j][v][e], decay, input * B[v][e]);
            y = fmaf(state[j][v][e], C[v][e], y);
          }
        }
      } else {
        Values A;
        mine.load(args.A, A_row, A);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
          for (int e = 0; e < kVector<S>; ++e) {
            state[j][v][e] = fmaf(state[j][v][e], expf(dt * A[v][e]), input * B[v][e]);
            y = fmaf(state[j][v][e], C[v][e], y);
          }
        }
      }
      for (int apart = lanes / 2; apart > 0; apart /= 2) y += __shfl_xor_sync(kWholeWarp, y, apart);
      if (!exists) continue;
      if (sequence.buffer_row != kNoState && token < args.buffer_steps)
        mine.store(buffer_row(token, head, dim), state[j]);
      if (slot != kNoState) mine.store(state_row(slot, head, dim), state[j]);
      if (lane != 0) continue;
      if (args.D.data) y = fmaf(x, load_element(args.D, head * args.D.strides[2] + dim * args.D.strides[3]), y);
      if (args.z.data) y *= silu<float>(load_element(args.z, offset(args.z, head, dim)));
      const int64_t* const strides = args.out_strides;
      const int64_t out = sequence.batch * strides[0] + at * strides[1] + head * strides[2] + dim * strides[3];
      LLAMBA_SWITCH_DTYPE(args.dtype, T, {
        T element;
        from_float(y, &element);
        store_global(static_cast<T*>(args.out) + out, element);
      });
    }
  }
}

}  // namespace llamba
