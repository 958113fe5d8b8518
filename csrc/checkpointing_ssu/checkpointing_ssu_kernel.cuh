// checkpointing_ssu_kernel -- state rows of a head from their slot through the ring's tokens, then the window's.
// Grid     (nheads x row blocks, then sequences)   Block  128 threads
// Owns     one block owns state[slot, head, dim : dim + ndims, :] and x_cache[slot, head, :, dim : dim + ndims]; of a
//          head the first block owns its dt_cache, of a group the first head's first block its B_cache
// Threads  lanes = kState / 8 share 4 dims; lane l holds n = 4 (c lanes + l) + j, c < 2, j < 4: 32 fp32 registers
// Shared   B, C [kPlaces, kState], x [kPlaces, rows] float | y [kPlaces, rows] float | dt, decay [kPlaces]
// Flow     1 state -> registers  2 per chunk of kPlaces tokens: inputs -> shared, the window's -> ring  3 barrier
//          4 the chunk's tokens; before the window's first, if the state is due: store it  5 barrier  6 y -> out
// Barriers 3 per chunk (before 2, 3, 5)
// Numerics fp32 state and sums; mul, then fmaf, per element; a row's sum over n is one tree fixed by kState. With an fp32
//          state a token's bits depend neither on the window, the ring, the store nor the batch
// Requires dstate <= kState, ngroups divides nheads   (checked in checkpointing_ssu_check.h, the launcher)
// What the CPU refuses cannot be reported from here: a sequence of which a number does not fit is padding, or, if it is
// its cu_seqlens, left alone.
#pragma once

#include "common/rows.cuh"
#include "common/state.cuh"
#include "llamba.h"

namespace llamba {

constexpr int32_t kRingThreads = 128;

struct RingParams {
  llamba_checkpointing_ssu_args args;
  int32_t row_blocks;  // of a head
};

template <int kState>
struct RingStorage {
  static constexpr int32_t kLanes = kState / 8;
  static constexpr int32_t kBlockRows = kRingThreads / kLanes * kRows;
  static constexpr int32_t kPlaces = kState == 256 ? 8 : 16;
  alignas(16) float B[kPlaces][kState];
  alignas(16) float C[kPlaces][kState];
  alignas(16) float x[kPlaces][kBlockRows];
  float y[kPlaces][kBlockRows];
  float dt[kPlaces], decay[kPlaces];
};

namespace {

using RingArgs = llamba_checkpointing_ssu_args;
using RingState = StateOf<2>;

// One sequence: token t < previous is in the ring, the others are new.
struct RingTokens {
  int64_t batch_idx, first;  // of the token tensors
  int64_t slot;              // -1: padding
  int32_t start, previous, ntotal;
  bool write;
};

__device__ __forceinline__ RingTokens read_tokens(const RingArgs& args, int64_t i) {
  RingTokens tokens{i, 0, -1, 0, 0, 0, false};
  int64_t ntokens = args.ntokens;
  if (args.cu_seqlens) {
    tokens.batch_idx = 0;
    tokens.first = load_global(args.cu_seqlens + i);
    const int64_t end = load_global(args.cu_seqlens + i + 1);
    ntokens = tokens.first < 0 || end > args.ntokens || end < tokens.first ? 0 : end - tokens.first;
  }
  tokens.ntotal = static_cast<int32_t>(ntokens);
  int64_t slot = i;
  if (args.slots && args.slots_are_int64) {
    slot = load_global(static_cast<const int64_t*>(args.slots) + i * args.slots_stride);
  } else if (args.slots) {
    slot = load_global(static_cast<const int32_t*>(args.slots) + i * args.slots_stride);
  }
  if (slot < 0 || slot == args.pad_slot || slot >= args.nslots || ntokens > args.ring - args.window) return tokens;
  const int32_t start = load_global(args.start + slot), previous = load_global(args.previous + slot);
  if (start < 0 || start >= args.ring || previous < 0 || previous > args.ring - ntokens) return tokens;
  tokens.slot = slot;
  tokens.start = start;
  tokens.previous = previous;
  tokens.ntotal += previous;
  tokens.write = tokens.ntotal > args.window;
  return tokens;
}

// Element 0 of an input of the block: of its new tokens, and of its rows in the ring.
struct RingInput {
  const void* token;
  int64_t token_stride;
  void* row;
  int64_t row_stride;
};

// Inputs of the chunk's `places` tokens from `first` on, `count` of kCount elements each; what does not exist is zero.
// keep: the new ones go to the ring.
template <typename T, int kCount>
__device__ __forceinline__ void load_inputs(const RingArgs& args, const RingTokens& tokens, const RingInput& input,
                                            int32_t first, int32_t places, int32_t count, bool keep,
                                            float (*shared)[kCount]) {
  constexpr int32_t kVectors = kCount / kVector<T>;
  for (int32_t item = threadIdx.x; item < places * kVectors; item += kRingThreads) {
    const int32_t p = item / kVectors, at = item % kVectors * kVector<T>, t = first + p;
    const int32_t left = count - at;
    const bool fresh = t >= tokens.previous;
    T* row = static_cast<T*>(input.row);
    if (row) row += (int64_t{tokens.start} + t) % args.ring * input.row_stride + at;
    const T* token = static_cast<const T*>(input.token) + (t - tokens.previous) * input.token_stride + at;
    float values[kVector<T>];
    load_vector(fresh ? token : row, row || fresh ? left : 0, values);  // C has no rows: zero, and not used
    if (fresh && keep && left > 0) copy_vector(row, token, left < kVector<T> ? left : kVector<T>);
    memcpy(&shared[p][at], values, sizeof(values));
  }
}

// dt and decay of the chunk's tokens, one thread each; new ones go to the ring.
template <int kState>
__device__ __forceinline__ void load_steps(const RingArgs& args, const RingTokens& tokens, int32_t head, int32_t first,
                                           int32_t places, bool keep, RingStorage<kState>& shared) {
  const int32_t p = kRingThreads - 1 - threadIdx.x, t = first + p;  // the last threads have fewer inputs to load
  if (p >= places) return;
  float* row = args.dt_cache + tokens.slot * args.dt_cache_stride_slot + head * args.dt_cache_stride_head +
               (int64_t{tokens.start} + t) % args.ring * args.dt_cache_stride_row;
  float dt;
  if (t < tokens.previous) {
    dt = load_global(row);
  } else {
    dt = load_as(args.dt, args.dt_dtype,
                 tokens.batch_idx * args.dt_stride_batch + (tokens.first + t - tokens.previous) * args.dt_stride_token +
                     head * args.dt_stride_head);
    if (args.dt_bias) dt += load_as(args.dt_bias, args.bias_dtype, head * args.dt_bias_stride_head);
    if (args.dt_softplus) dt = softplus(dt);
    if (keep) store_global(row, dt);
  }
  shared.dt[p] = dt;
  shared.decay[p] = expf(dt * load_as(args.A, args.A_dtype, head * args.A_stride_head));
}

template <typename T, int kState>
__device__ __forceinline__ void load_chunk(const RingArgs& args, const RingTokens& tokens, const StatePlace& place,
                                           int32_t first, int32_t places, RingStorage<kState>& shared) {
  const int64_t heads_per_group = args.nheads / args.ngroups, group = place.head / heads_per_group;
  const bool first_block = place.dim == 0;
  const auto token_of = [&](const void* data, int64_t stride_batch, int64_t stride_token, int64_t at) {
    return static_cast<const T*>(data) + tokens.batch_idx * stride_batch + tokens.first * stride_token + at;
  };
  const RingInput x{
      token_of(args.x, args.x_stride_batch, args.x_stride_token, place.head * args.x_stride_head + place.dim),
      args.x_stride_token,
      static_cast<T*>(args.x_cache) + tokens.slot * args.x_cache_stride_slot + place.head * args.x_cache_stride_head +
          place.dim,
      args.x_cache_stride_row};
  const RingInput B{
      token_of(args.B, args.B_stride_batch, args.B_stride_token, group * args.B_stride_group), args.B_stride_token,
      static_cast<T*>(args.B_cache) + tokens.slot * args.B_cache_stride_slot + group * args.B_cache_stride_group,
      args.B_cache_stride_row};
  const RingInput C{token_of(args.C, args.C_stride_batch, args.C_stride_token, group * args.C_stride_group),
                    args.C_stride_token, nullptr, 0};
  load_inputs<T>(args, tokens, B, first, places, args.dstate, first_block && place.head % heads_per_group == 0,
                 shared.B);
  load_inputs<T>(args, tokens, C, first, places, args.dstate, false, shared.C);
  load_inputs<T>(args, tokens, x, first, places, place.ndims, true, shared.x);
  load_steps(args, tokens, place.head, first, places, first_block, shared);
}

// state = decay state + (dt x) B; x: of the thread's rows; B [padded dstate], in shared memory
template <int kLanes>
__device__ __forceinline__ void advance(RingState& state, float decay, float dt, const float* x, const float* B,
                                        int32_t lane) {
  float dtx[kRows];
  load_four(x, dtx);
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) dtx[r] = dt * dtx[r];
#pragma unroll
  for (int32_t c = 0; c < 2; ++c) {
    float four[4];
    load_four(B + 4 * (c * kLanes + lane), four);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) state[r][4 * c + j] = fmaf(dtx[r], four[j], decay * state[r][4 * c + j]);
    }
  }
}

// The sum over dstate of state times C, of the row that row_of_sum names: within a thread in order, then over lanes.
template <int kLanes>
__device__ __forceinline__ float multiply(const RingState& state, const float* C, int32_t lane) {
  float sums[kRows] = {};
#pragma unroll
  for (int32_t c = 0; c < 2; ++c) {
    float four[4];
    load_four(C + 4 * (c * kLanes + lane), four);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) sums[r] = fmaf(state[r][4 * c + j], four[j], sums[r]);
    }
  }
  return sum_lanes<kLanes>(sums, lane);
}

// Of the chunk's new tokens.
template <typename T, int kState>
__device__ __forceinline__ void store_outputs(const RingArgs& args, const RingTokens& tokens, const StatePlace& place,
                                              int32_t first, int32_t places, const RingStorage<kState>& shared) {
  const int64_t out = tokens.batch_idx * args.out_stride_batch + place.head * args.out_stride_head + place.dim;
  const int64_t z = tokens.batch_idx * args.z_stride_batch + place.head * args.z_stride_head + place.dim;
  for (int32_t item = threadIdx.x; item < places * place.ndims; item += kRingThreads) {
    const int32_t p = item / place.ndims, d = item % place.ndims, t = first + p - tokens.previous;
    if (t < 0) continue;
    float y = shared.y[p][d];
    if (args.D) {
      const int64_t at = place.head * args.D_stride_head + (place.dim + d) * args.D_stride_dim;
      y = fmaf(load_as(args.D, args.D_dtype, at), shared.x[p][d], y);
    }
    if (args.z) {
      const T* gate = static_cast<const T*>(args.z) + z + (tokens.first + t) * args.z_stride_token + d;
      y *= silu<T>(to_float(load_global(gate)));
    }
    T element;
    from_float(y, &element);
    store_global(static_cast<T*>(args.out) + out + (tokens.first + t) * args.out_stride_token + d, element);
  }
}

template <typename T>
__device__ inline void zero_outputs(const RingArgs& args, const RingTokens& tokens, const StatePlace& place) {
  T* out = static_cast<T*>(args.out) + tokens.batch_idx * args.out_stride_batch + place.head * args.out_stride_head +
           place.dim;
  for (int32_t t = 0; t < tokens.ntotal; ++t) {
    T* row = out + (tokens.first + t) * args.out_stride_token;
    for (int32_t d = threadIdx.x; d < place.ndims; d += kRingThreads) store_global(row + d, T{});
  }
}

}  // namespace

template <int kState>
__global__ void __launch_bounds__(kRingThreads) checkpointing_ssu_kernel(RingParams params) {
  using Storage = RingStorage<kState>;
  constexpr int kLanes = Storage::kLanes;
  const RingArgs& args = params.args;
  const int64_t blocks_per_sequence = int64_t{args.nheads} * params.row_blocks;
  const int64_t i = block_index() / blocks_per_sequence, block = block_index() % blocks_per_sequence;
  if (i >= args.batch) return;
  const RingTokens tokens = read_tokens(args, i);
  StatePlace place;
  place.head = static_cast<int32_t>(block / params.row_blocks);
  place.dim = static_cast<int32_t>(block % params.row_blocks) * Storage::kBlockRows;
  place.ndims = args.headdim - place.dim < Storage::kBlockRows ? args.headdim - place.dim : Storage::kBlockRows;
  place.row = threadIdx.x / kLanes * kRows;
  place.lane = threadIdx.x % kLanes;
  if (tokens.slot < 0) {
    LLAMBA_SWITCH_DTYPE(args.dtype, T, zero_outputs<T>(args, tokens, place));
    return;
  }
  if (tokens.ntotal == tokens.previous) return;

  Storage& shared = shared_storage<Storage>();
  const int64_t offset =
      tokens.slot * args.state_stride_slot + place.head * args.state_stride_head + place.dim * args.state_stride_dim;
  const StateRows rows = state_rows(args.state, args.state_dtype, offset, args.state_stride_dim);
  RingState state = {};
  load_raw_state<kLanes>(rows, place, args.dstate, state);
  convert_raw_state(args.state_dtype, false, state);
  for (int32_t first = 0; first < tokens.ntotal; first += Storage::kPlaces) {
    const int32_t left = tokens.ntotal - first, places = left < Storage::kPlaces ? left : Storage::kPlaces;
    __syncthreads();  // (2) the chunk before has been read
    LLAMBA_SWITCH_DTYPE(args.dtype, T, load_chunk<T>(args, tokens, place, first, places, shared));
    __syncthreads();  // (3) the inputs are there
#pragma unroll 1
    for (int32_t p = 0; p < places; ++p) {
      if (first + p == tokens.previous && tokens.write && tokens.previous > 0) {
        round_state(args.state_dtype, state);
        store_state<kLanes>(rows, place, args.dstate, state);
      }
      advance<kLanes>(state, shared.decay[p], shared.dt[p], &shared.x[p][place.row], shared.B[p], place.lane);
      if (first + p < tokens.previous) continue;
      const float sum = multiply<kLanes>(state, shared.C[p], place.lane);
      if (place.lane % (kLanes / 4) == 0) shared.y[p][place.row + row_of_sum<kLanes>(place.lane)] = sum;
    }
    __syncthreads();  // (5) the sums are there
    LLAMBA_SWITCH_DTYPE(args.dtype, T, store_outputs<T>(args, tokens, place, first, places, shared));
  }
}

}  // namespace llamba
