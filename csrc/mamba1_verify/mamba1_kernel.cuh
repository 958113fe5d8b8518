// mamba1_kernel -- advance the state of some channels token by token and emit out for each; for mamba1_materialize: the
// state.
// Grid     (blocks of channels, groups of sequences up to 65535, the rest)      Block  32, 64 or 128 threads
// Owns     one block owns state[slot, channel : channel + nchannels, :], nchannels up to 4 threads / lanes, of a group
//          of sequences, one after the other: they share A
// Threads  lanes = kState / 4 share 4 channels; lane l holds n = 4 l + j, j < 4: 16 registers of state, 16 of A.
//          Around the visits a thread has two channels of kItems tokens
// Shared   of each token: dt, dt x and y [kPlaces, channels] float, whether to round | the step | trees: the visiting
//          order | B, C [kPlaces, the heads that the block reads, kState] float | trees: the committed state
// Flow     1 state, A -> registers, first used in 6  2 cursor  3 per chunk of kPlaces tokens: a tree's list; x, dt, z
//          -> registers  4 B, C, dt, dt x -> shared; new rows  5 barrier  6 visit the tokens; fold: store the state
//          7 barrier  8 (y + D x) SiLU(z) -> out
// Barriers 1 (after 2); 2 per chunk (5, 7), 2 more in a tree's (3); none in the loop over tokens; 1 before the group's
//          next sequence (9)
// Numerics fp32 state and sums; mul, then fmaf, per element; a sum over n is one tree fixed by kState. A token's bits
//          depend on its path alone: neither on the chunk, the block size, the window, the batch nor the fold
// Requires dstate <= kState, B and C heads divide d_inner       (checked in mamba1_check.h and the launcher)
// A slot that the CPU refuses cannot be reported from here: it is left alone, its out is zero.
#pragma once

#include "mamba1_verify/mamba1_inputs.cuh"

namespace llamba {
namespace {

// Where a thread's four channels find their head among those that the block reads.
struct RowHeads {
  int32_t first;   // of the first channel
  uint32_t ahead;  // two bits for each: heads beyond that
};
__device__ __forceinline__ RowHeads row_heads(const StatePlace& place, const HeadSharing& sharing) {
  const int32_t last = place.dim + place.ndims - 1, channel = place.dim + place.row;
  const auto head_of = [&](int32_t c) { return (c < last ? c : last) / sharing.channels; };
  RowHeads heads{head_of(channel) - place.dim / sharing.channels, 0};
  for (int32_t r = 1; r < kRows; ++r) {
    heads.ahead |= static_cast<uint32_t>(head_of(channel + r) - head_of(channel)) << 2 * r;
  }
  return heads;
}

// of(r): four of the head of channel r, lane's of dstate; loaded again only where heads end within four channels.
template <int kState>
struct LaneQuads {
  const float* data;  // of the first channel
  uint32_t ahead;
  float v[4];

  __device__ __forceinline__ LaneQuads(const float* token, const RowHeads& heads, int32_t lane)
      : data(token + heads.first * kState + 4 * lane), ahead(heads.ahead) {
    load_four(data, v);
  }
  __device__ __forceinline__ void move_to(int32_t r) {
    if (ahead != 0) load_four(data + (ahead >> 2 * r & 3) * kState, v);
  }
};

// state = e^(dt A) state + (dt x) B
template <typename T, int kState>
__device__ __forceinline__ void advance(Mamba1State& state, const Mamba1State& A, const float* dt, const float* dtx,
                                        LaneQuads<kState> B) {
  float dt_of[kRows], dtx_of[kRows];
  load_four(dt, dt_of);
  load_four(dtx, dtx_of);
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
    B.move_to(r);
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) {
      state[r][j] = fmaf(dtx_of[r], B.v[j], decay<T>(dt_of[r], A[r][j]) * state[r][j]);
    }
  }
}

// The sum over dstate of state times C, of the channel that row_of_sum names.
template <int kState>
__device__ __forceinline__ float multiply(const Mamba1State& state, LaneQuads<kState> C, int32_t lane) {
  float sums[kRows];
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
    C.move_to(r);
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) sums[r] = j == 0 ? state[r][0] * C.v[0] : fmaf(state[r][j], C.v[j], sums[r]);
  }
  return sum_lanes<kState / 4>(sums, lane);
}

__device__ __forceinline__ StateRows checkpoint_rows(const llamba_mamba1_verify_args& args, int32_t slot,
                                                     const StatePlace& place) {
  const int64_t offset = slot * args.checkpoint_stride_slot + place.dim * args.checkpoint_stride_channel;
  return state_rows(args.checkpoint, args.checkpoint_dtype, offset, args.checkpoint_stride_channel);
}

__device__ __forceinline__ StateRows output_rows(const Mamba1StateOutput& output, int32_t batch_idx,
                                                 const StatePlace& place) {
  const int64_t offset = batch_idx * output.state_stride_batch + place.dim * output.state_stride_channel;
  return state_rows(output.state, LLAMBA_FLOAT32, offset, output.state_stride_channel);
}

// A, as decay() wants it.
template <typename T, int kState>
__device__ __forceinline__ void load_decay_bases(const llamba_mamba1_verify_args& args, const StatePlace& place,
                                                 Mamba1State& A) {
  const StateRows rows =
      state_rows(const_cast<float*>(args.A), LLAMBA_FLOAT32, place.dim * args.A_stride_channel, args.A_stride_channel);
  load_raw_state<kState / 4>(rows, place, dstate_of<kState>(args), A);
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) A[r][j] = decay_base<T>(A[r][j]);
  }
}

__device__ __forceinline__ void keep_committed(const Mamba1State& state, float* committed) {
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) memcpy(committed + 4 * r * blockDim.x, state[r], sizeof(state[r]));
}
__device__ __forceinline__ void restart(const float* committed, Mamba1State& state) {
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) load_four(committed + 4 * r * blockDim.x, state[r]);
}

// Takes the state through a chunk's tokens; sums of those that give an output go to shared.y. committed: the thread's.
template <typename T, int kState>
__device__ __forceinline__ void visit_tokens(const Mamba1Params& params, const Step& step, const StatePlace& place,
                                             const Chunk& chunk, const Mamba1State& A, const Mamba1Heads& heads,
                                             const float* committed, Mamba1State& state,
                                             Mamba1Storage<kState>& shared) {
  constexpr int kLanes = kState / 4;
  const llamba_mamba1_verify_args& args = params.args;
  const RowHeads of_B = row_heads(place, params.B), of_C = row_heads(place, params.C);
  const int32_t folded = chunk.tree ? 0 : step.fold - chunk.first;  // visits of the chunk that the fold ends after
  for (int32_t v = 0; v < chunk.nvisits;) {
    const int32_t stop = v < folded && folded < chunk.nvisits ? folded : chunk.nvisits;
#pragma unroll 1
    for (; v < stop; ++v) {
      const int32_t visit = visit_at(chunk, shared.tree, v), p = visit & kPlace;
      if ((visit & kRestart) != 0) restart(committed, state);
      advance<T>(state, A, &shared.dt[p][place.row], &shared.dtx[p][place.row],
                 LaneQuads<kState>(heads.B + p * params.B.span * kState, of_B, place.lane));
      if (shared.round[p] != 0) round_state(args.checkpoint_dtype, state);
      if ((visit & kEmit) == 0) continue;
      const float sum =
          multiply(state, LaneQuads<kState>(heads.C + p * params.C.span * kState, of_C, place.lane), place.lane);
      if (place.lane % (kLanes / 4) == 0) shared.y[p][place.row + row_of_sum<kLanes>(place.lane)] = sum;
    }
    if (stop == folded) {
      store_state<kLanes>(checkpoint_rows(args, opaque(step.slot), place), place, dstate_of<kState>(args), state);
    }
  }
}

template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ void store_outputs(const llamba_mamba1_verify_args& args, const Step& step,
                                              const StatePlace& place, const Mamba1Pair<kState>& pair,
                                              const Chunk& chunk, TokenOf token_of,
                                              const TokenInputs<T, Mamba1Pair<kState>::kItems>& inputs,
                                              const Mamba1Storage<kState>& shared) {
  T* out = static_cast<T*>(args.out) + step.batch_idx * args.out_stride_batch + place.dim + pair.c;
#pragma unroll
  for (int32_t i = 0; i < Mamba1Pair<kState>::kItems; ++i) {
    const int32_t p = pair.place_of(i);
    if (p >= chunk.nplaces || (chunk.emitted >> p & 1) == 0) continue;
    T y[kPair];
#pragma unroll
    for (int32_t j = 0; j < kPair; ++j) {
      float sum = shared.y[p][pair.c + j] + pair.D[j] * to_float(inputs.x[i][j]);
      if (args.z != nullptr) sum *= silu<T>(to_float(inputs.z[i][j]));
      from_float(sum, &y[j]);
    }
    store_pair(out + (token_of(p) - step.live) * args.out_stride_token, pair.left, y);
  }
}

template <typename T, int kState>
__device__ inline void zero_outputs(const llamba_mamba1_verify_args& args, int32_t batch_idx, const StatePlace& place,
                                    const Mamba1Pair<kState>& pair, int32_t first) {
  T* out = static_cast<T*>(args.out) + batch_idx * args.out_stride_batch + place.dim + pair.c;
  const T zeros[kPair] = {};
  for (int32_t t = first + pair.group; t < args.max_ntokens; t += Mamba1Pair<kState>::kGroups) {
    store_pair(out + t * args.out_stride_token, pair.left, zeros);
  }
}

// The raw inputs of the conv before the position: each of the sequence's blocks has its part of their channels.
template <typename T>
__device__ inline void write_tail(const Mamba1Params& params, const Step& step) {
  const Mamba1StateOutput& output = params.output;
  T* tail = static_cast<T*>(output.tail) + step.batch_idx * output.tail_stride_batch;
  for (int32_t t = 0; t + 1 < params.args.cursor.width; ++t) {
    const int32_t row = step.valid ? load_global(step.table + step.live + t) : kNoInput;
    const bool absent = row < 0 || row >= params.args.cursor.capacity;
    const T* source = static_cast<const T*>(output.rows);
    if (!absent) source += step.slot * output.rows_stride_slot + row * output.rows_stride_row;
    for (int32_t c = blockIdx.x * blockDim.x + threadIdx.x; c < output.x_dim; c += gridDim.x * blockDim.x) {
      store_global(tail + t * output.tail_stride_row + c, absent ? T{} : load_global(source + c));
    }
  }
}

}  // namespace

template <typename T, int kState>
__global__ void __launch_bounds__(kMostMamba1Threads, sizeof(T) == 2 ? 4 : 3) mamba1_kernel(Mamba1Params params) {
  using Storage = Mamba1Storage<kState>;
  constexpr int kLanes = Storage::kLanes;
  const llamba_mamba1_verify_args& args = params.args;
  Storage& shared = shared_storage<Storage>();
  const Mamba1Heads heads = heads_after(shared, params);
  const int32_t dstate = dstate_of<kState>(args), channels = blockDim.x / kLanes * kRows;
  StatePlace place;
  place.head = 0;
  place.dim = blockIdx.x * channels;
  place.ndims = args.d_inner - place.dim < channels ? args.d_inner - place.dim : channels;
  place.row = threadIdx.x / kLanes * kRows;
  place.lane = threadIdx.x % kLanes;
  const Mamba1Pair<kState> pair(args, place);
  float* committed = heads.C + Storage::kPlaces * params.C.span * kState + 4 * threadIdx.x;
  const bool materialize = params.output.state != nullptr;
  if (dstate < kState) zero_padding<kState>(params, heads);

  Mamba1State A = {};
#pragma unroll 1
  for (int32_t i = 0; i < params.sequences; ++i) {
    const int32_t batch_idx = batch_index() * params.sequences + i;
    if (batch_idx >= args.batch) return;
    // Asked for before anything else is known of the slot: the checkpoint of a fresh or broken one is then not used.
    const int32_t slot = load_global(args.slots + batch_idx);
    const bool in_pool = slot >= 0 && slot < args.cursor.nslots;
    Mamba1State state = {};
    if (in_pool) load_raw_state<kLanes>(checkpoint_rows(args, slot, place), place, dstate, state);
    if (i == 0) load_decay_bases<T, kState>(args, place, A);
    if (threadIdx.x == 0) shared.step = read_step(args, batch_idx, !materialize);
    __syncthreads();  // (2) the step is written before it is read
    const Step& step = shared.step;
    if (materialize) write_tail<T>(params, step);

    const bool fresh = !step.valid || step.position == 0;
    bool raw_state = true;  // nobody has waited for it
    Walk walk = begin_walk(step, shared.tree);
    Chunk chunk{};
    while (next_chunk(step, Storage::kPlaces, walk, shared.tree, chunk)) {
      const auto token_of = [&](int32_t p) { return token_at(step, chunk, shared.tree, p); };
      TokenInputs<T, Mamba1Pair<kState>::kItems> inputs;
      load_inputs(args, step, place, pair, chunk, token_of, inputs);
      stage_heads<T, kState>(params, step, place, chunk, token_of, heads);
      prepare_inputs(args, step, place, pair, chunk, inputs, shared);
      if (static_cast<int32_t>(threadIdx.x) < chunk.nplaces) {
        const bool rounds = args.checkpoint_dtype != LLAMBA_FLOAT32;
        shared.round[threadIdx.x] = rounds && rounds_after(args, step, token_of(threadIdx.x));
      }
      __syncthreads();  // (5) inputs are written before they are read
      if (raw_state) convert_raw_state(args.checkpoint_dtype, fresh, state);
      raw_state = false;
      if (chunk.tree && walk.first_of_tree) keep_committed(state, committed);  // a thread reads only what it wrote
      visit_tokens<T>(params, step, place, chunk, A, heads, committed, state, shared);
      __syncthreads();  // (7) sums are written before they are read; inputs are read before the next chunk's
      store_outputs<T>(args, step, place, pair, chunk, token_of, inputs, shared);
    }
    if (materialize) {
      if (raw_state) convert_raw_state(args.checkpoint_dtype, fresh, state);
      store_state<kLanes>(output_rows(params.output, batch_idx, place), place, dstate, state);
    } else {
      zero_outputs<T>(args, batch_idx, place, pair, step.valid ? step.ntokens : 0);
    }
    if (i + 1 < params.sequences) __syncthreads();  // (9) the step and the sums are read before the next sequence's
  }
}

}  // namespace llamba
