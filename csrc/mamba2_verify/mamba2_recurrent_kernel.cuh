// mamba2_recurrent_kernel -- advance state rows token by token and emit y for each; for materialize: the state.
// Grid     (nheads x row blocks, batch up to 65535, the rest of the batch)       Block  64, 128 or 256 threads
// Owns     one block owns state[slot, head, dim : dim + ndims, :], ndims up to 4 threads / lanes; no other reads it
// Threads  lanes = kState / 8 share 4 dims; lane l holds n = 4 (c lanes + l) + j, c < 2, j < 4: 32 fp32 registers
// Shared   conv outputs B, C [kPlaces, kState], x [kPlaces, rows] float | y [kPlaces, rows] float | of each token: dt,
//          decay, ids of its raw inputs, its row, whether to round | the step | trees: the visiting order; the
//          committed state, 32 floats of each thread
// Flow     1 state -> registers, first used in 7  2 cursor  3 per chunk of kPlaces tokens: a tree's list; input ids
//          4 barrier  5 dt, conv -> shared  6 barrier  7 visit the tokens; fold: store the state  8 barrier  9 y -> out
// Barriers 1 (after 2); 3 per chunk (4, 6, 8), 2 more in a tree's (3); none in the loop over tokens
// Numerics fp32 state and sums; mul, then fmaf, per element; a row's sum over n is one tree fixed by kState. A token's
//          bits depend on its path alone: neither on the chunk, the block size, the window, the batch nor the fold
// Requires dstate <= kState, kRows | threads, B, C, x heads divide nheads    (checked in mamba2_check.h, the launchers)
#pragma once

#include "common/state.cuh"
#include "conv1d_verify/conv1d_item.cuh"
#include "cursor/cursor_visits.cuh"
#include "mamba2_verify/mamba2_cuda.h"

namespace llamba {

constexpr int32_t kColumns = 8;  // of dstate that a thread has
using State = StateOf<kColumns / 4>;
constexpr int32_t kMostRecurrentThreads = 256;
constexpr int32_t kMostTreeThreads = 128;  // more would keep two blocks from an SM with 100 KB of shared memory

struct Mamba2RecurrentParams {
  llamba_mamba2_verify_args args;
  Mamba2StateOutput output;
  int32_t row_blocks;  // of a head
};

template <int kState>
struct RecurrentStorage {
  static constexpr int32_t kLanes = kState / kColumns;
  static constexpr int32_t kBlockRows = kMostRecurrentThreads / kLanes * kRows;
  static constexpr int32_t kPlaces = kState == 256 ? 8 : 16;
  alignas(16) float B[kPlaces][kState];
  alignas(16) float C[kPlaces][kState];
  alignas(16) float x[kPlaces][kBlockRows];
  float y[kPlaces][kBlockRows];
  float dt[kPlaces], decay[kPlaces];
  int32_t round[kPlaces];
  int32_t inputs[kPlaces * kMostWidth], rows[kPlaces];  // ids of the raw inputs; where they go, -1: nowhere
  Step step;                                            // here it takes no registers
  TreeVisits tree;
  alignas(16) uint4 committed[kRows * kColumns / 4][kMostTreeThreads];  // last: allocated for trees only
};

namespace {

template <typename T>
__device__ inline void zero_outputs(const llamba_mamba2_verify_args& args, int32_t batch_idx, const StatePlace& place,
                                    int32_t first) {
  T* out =
      static_cast<T*>(args.out) + batch_idx * args.out_stride_batch + place.head * args.out_stride_head + place.dim;
  for (int32_t t = first; t < args.max_ntokens; ++t) {
    T* row = out + t * args.out_stride_token;
    for (int32_t d = threadIdx.x; d < place.ndims; d += blockDim.x) store_global(row + d, T{});
  }
}

// The raw inputs before the position, of the channels that this block keeps the rows of.
template <typename T>
__device__ inline void write_tail(const Mamba2RecurrentParams& params, const Step& step, int32_t channel,
                                  int32_t nchannels) {
  const llamba_mamba2_verify_args& args = params.args;
  T* tail = static_cast<T*>(params.output.tail) + step.batch_idx * params.output.tail_stride_batch + channel;
  for (int32_t t = 0; t + 1 < args.cursor.width; ++t) {
    const int32_t row = step.valid ? load_global(step.table + step.live + t) : kNoInput;
    const bool absent = row < 0 || row >= args.cursor.capacity;
    const T* source = static_cast<const T*>(args.rows) + channel;
    if (!absent) source += step.slot * args.rows_stride_slot + row * args.rows_stride_row;
    for (int32_t c = threadIdx.x; c < nchannels; c += blockDim.x) {
      store_global(tail + t * params.output.tail_stride_row + c, absent ? T{} : load_global(source + c));
    }
  }
}

// A block's channels in xBC.
struct BlockChannels {
  int32_t x, B, C;                 // first ones
  bool keeps_x, keeps_B, keeps_C;  // of those that several blocks share, one stores the rows
};

__device__ __forceinline__ BlockChannels block_channels(const llamba_mamba2_verify_args& args,
                                                        const StatePlace& place) {
  const int32_t heads_per_x = args.nheads / args.x_heads, heads_per_B = args.nheads / args.B_heads,
                heads_per_C = args.nheads / args.C_heads;
  BlockChannels channels;
  channels.x = place.head / heads_per_x * args.headdim + place.dim;
  channels.B = args.x_heads * args.headdim + place.head / heads_per_B * args.dstate;
  channels.C = args.x_heads * args.headdim + (args.B_heads + place.head / heads_per_C) * args.dstate;
  channels.keeps_x = place.head % heads_per_x == 0;
  channels.keeps_B = place.dim == 0 && place.head % heads_per_B == 0;
  channels.keeps_C = place.dim == 0 && place.head % heads_per_C == 0;
  return channels;
}

// What a thread has asked for of one token's step size, while the chunk's input ids are being found.
template <typename T>
struct RawStep {
  T dt;
  float bias, A;
};

template <typename T>
__device__ __forceinline__ T* dt_row(const llamba_mamba2_verify_args& args, const Step& step, int32_t row) {
  return static_cast<T*>(args.dt_rows) + step.slot * args.dt_rows_stride_slot + row * args.dt_rows_stride_row;
}

// Where the chunk's tokens have their raw inputs and, by the last threads of the block, their raw dt: it is a load that
// nobody waits for yet.
template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ RawStep<T> find_tokens(const llamba_mamba2_verify_args& args, const Step& step, int32_t head,
                                                  const Chunk& chunk, TokenOf token_of,
                                                  RecurrentStorage<kState>& shared) {
  const int32_t width = args.cursor.width;
  for (int32_t i = threadIdx.x; i < chunk.nplaces * width; i += blockDim.x) {
    const int32_t p = i / width, tap = i % width;
    shared.inputs[p * kMostWidth + tap] = find_input(args, step, token_of(p), width - 1 - tap);
  }
  const int32_t p = blockDim.x - 1 - threadIdx.x;
  RawStep<T> raw{};
  if (p >= chunk.nplaces) return raw;
  const int32_t i = token_of(p) - step.live, row = new_row(args, step, i);  // of a live token: its own
  if (i >= 0) {
    raw.dt = load_global(static_cast<const T*>(args.dt) + step.batch_idx * args.dt_stride_batch +
                         i * args.dt_stride_token + head);
  } else if (row >= 0) {
    raw.dt = load_global(dt_row<T>(args, step, row) + head);
  }
  if (args.dt_bias != nullptr) raw.bias = load_global(args.dt_bias + head);
  raw.A = load_global(args.A + head);
  shared.rows[p] = i >= 0 ? row : -1;
  return raw;
}

// dt, decay and whether the state is rounded after it, of each token of the chunk. keep: store the raw dt of new tokens
// as their rows.
template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ void prepare_tokens(const llamba_mamba2_verify_args& args, const Step& step,
                                               const RawStep<T>& raw, int32_t head, bool keep, const Chunk& chunk,
                                               TokenOf token_of, RecurrentStorage<kState>& shared) {
  const int32_t p = blockDim.x - 1 - threadIdx.x;
  if (p >= chunk.nplaces) return;
  if (keep && shared.rows[p] >= 0) store_global(dt_row<T>(args, step, shared.rows[p]) + head, raw.dt);
  const float dt = softplus(to_float(raw.dt) + raw.bias);
  shared.dt[p] = dt;
  shared.decay[p] = expf(dt * raw.A);
  shared.round[p] = 0;
  if (args.checkpoint_dtype != LLAMBA_FLOAT32) shared.round[p] = rounds_after(args, step, token_of(p));
}

template <typename T, int kState>
__device__ __forceinline__ void run_conv(const llamba_mamba2_verify_args& args, const Step& step,
                                         const StatePlace& place, const Chunk& chunk,
                                         RecurrentStorage<kState>& shared) {
  const BlockChannels channels = block_channels(args, place);
  const int32_t live_places = chunk.tree || chunk.first >= step.live ? 0 : step.live - chunk.first;
  const int32_t with_C = chunk.nplaces > live_places ? chunk.nplaces - live_places : 0;  // a live token has no output
  const ConvPart B{channels.B, args.dstate, 0, chunk.nplaces, channels.keeps_B};
  const ConvPart C{channels.C, args.dstate, live_places, with_C, channels.keeps_C};
  const ConvPart x{channels.x, place.ndims, 0, chunk.nplaces, channels.keeps_x};
  const int32_t begin_C = conv_items<T>(B), begin_x = begin_C + conv_items<T>(C), end = begin_x + conv_items<T>(x);
#pragma unroll 1
  for (int32_t item = threadIdx.x; item < end; item += blockDim.x) {
    ConvPart part = B;
    float* outputs = shared.B[0];
    int32_t begin = 0, stride = kState;
    if (item >= begin_x) {
      part = x, outputs = shared.x[0], begin = begin_x, stride = RecurrentStorage<kState>::kBlockRows;
    } else if (item >= begin_C) {
      part = C, outputs = shared.C[0], begin = begin_C;
    }
    conv_item<T>(args, step, shared.inputs, shared.rows, part, item - begin,
                 [outputs, stride](int32_t at, int32_t c, const float (&y)[kConvVector]) {
                   memcpy(outputs + at * stride + c, y, sizeof(y));
                 });
  }
}

// What no conv output is ever written to: dstate up to kState.
template <int kState>
__device__ inline void zero_padding(int32_t dstate, RecurrentStorage<kState>& shared) {
  const int32_t rest = kState - dstate;
  for (int32_t i = threadIdx.x; i < RecurrentStorage<kState>::kPlaces * rest; i += blockDim.x) {
    shared.B[i / rest][dstate + i % rest] = shared.C[i / rest][dstate + i % rest] = 0.0f;
  }
}

template <int kState>
__device__ __forceinline__ void keep_committed(const State& state, RecurrentStorage<kState>& shared) {
#pragma unroll
  for (int32_t i = 0; i < kRows * 2; ++i) memcpy(&shared.committed[i][threadIdx.x], &state[i / 2][i % 2 * 4], 16);
}
template <int kState>
__device__ __forceinline__ void restart(State& state, const RecurrentStorage<kState>& shared) {
#pragma unroll
  for (int32_t i = 0; i < kRows * 2; ++i) memcpy(&state[i / 2][i % 2 * 4], &shared.committed[i][threadIdx.x], 16);
}

// state = decay state + (dt x) B; x: of the thread's rows; B [padded dstate], in shared memory
template <int kLanes>
__device__ __forceinline__ void advance(State& state, float decay, float dt, const float* x, const float* B,
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

// The sum over dstate of state times C, of the row that row_of_sum names: within a thread in order, then
// over lanes.
template <int kLanes>
__device__ __forceinline__ float multiply(const State& state, const float* C, int32_t lane) {
  float sums[kRows];
#pragma unroll
  for (int32_t c = 0; c < 2; ++c) {
    float four[4];
    load_four(C + 4 * (c * kLanes + lane), four);
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) {
        sums[r] = c + j == 0 ? state[r][0] * four[0] : fmaf(state[r][4 * c + j], four[j], sums[r]);
      }
    }
  }
  return sum_lanes<kLanes>(sums, lane);
}

__device__ __forceinline__ StateRows checkpoint_rows(const llamba_mamba2_verify_args& args, int32_t slot,
                                                     const StatePlace& place) {
  const int64_t offset = slot * args.checkpoint_stride_slot + place.head * args.checkpoint_stride_head +
                         place.dim * args.checkpoint_stride_dim;
  return state_rows(args.checkpoint, args.checkpoint_dtype, offset, args.checkpoint_stride_dim);
}

// Takes the state through a chunk's tokens; sums of those that give an output go to shared.y.
template <int kState>
__device__ __forceinline__ void visit_tokens(const llamba_mamba2_verify_args& args, const Step& step,
                                             const StatePlace& place, const Chunk& chunk, State& state,
                                             RecurrentStorage<kState>& shared) {
  constexpr int kLanes = RecurrentStorage<kState>::kLanes;
  const int32_t folded = chunk.tree ? 0 : step.fold - chunk.first;  // visits of the chunk that the fold ends after
  for (int32_t v = 0; v < chunk.nvisits;) {
    const int32_t stop = v < folded && folded < chunk.nvisits ? folded : chunk.nvisits;
#pragma unroll 1
    for (; v < stop; ++v) {
      const int32_t visit = visit_at(chunk, shared.tree, v);
      const int32_t p = visit & kPlace;
      if ((visit & kRestart) != 0) restart(state, shared);
      advance<kLanes>(state, shared.decay[p], shared.dt[p], &shared.x[p][place.row], shared.B[p], place.lane);
      if (shared.round[p] != 0) round_state(args.checkpoint_dtype, state);
      if ((visit & kEmit) == 0) continue;
      const float sum = multiply<kLanes>(state, shared.C[p], place.lane);
      if (place.lane % (kLanes / 4) == 0) shared.y[p][place.row + row_of_sum<kLanes>(place.lane)] = sum;
    }
    if (stop == folded) {
      store_state<kLanes>(checkpoint_rows(args, opaque(step.slot), place), place, args.dstate, state);
    }
  }
}

template <typename T, int kState, typename TokenOf>
__device__ inline void store_outputs(const llamba_mamba2_verify_args& args, const Step& step, const StatePlace& place,
                                     const Chunk& chunk, TokenOf token_of, const RecurrentStorage<kState>& shared) {
  const float D = args.D != nullptr ? load_global(args.D + place.head) : 0.0f;
  T* out = static_cast<T*>(args.out) + step.batch_idx * args.out_stride_batch + place.head * args.out_stride_head +
           place.dim;
  const int32_t vectors = (place.ndims + kConvVector - 1) / kConvVector;
  for (int32_t i = threadIdx.x; i < chunk.nplaces * vectors; i += blockDim.x) {
    const int32_t p = i / vectors, row = i % vectors * kConvVector;
    if ((chunk.emitted >> p & 1) == 0) continue;
    T y[kConvVector];
    for (int32_t j = 0; j < kConvVector; ++j) from_float(shared.y[p][row + j] + D * shared.x[p][row + j], &y[j]);
    store_pair(out + (token_of(p) - step.live) * args.out_stride_token + row, place.ndims - row, y);
  }
}

}  // namespace

template <typename T, int kState>
__global__ void __launch_bounds__(kMostRecurrentThreads, 2) mamba2_recurrent_kernel(Mamba2RecurrentParams params) {
  using Storage = RecurrentStorage<kState>;
  constexpr int kLanes = Storage::kLanes, kPlaces = Storage::kPlaces;
  const llamba_mamba2_verify_args& args = params.args;
  const int32_t batch_idx = batch_index();
  if (batch_idx >= args.batch) return;
  Storage& shared = shared_storage<Storage>();
  const int32_t block_rows = blockDim.x / kLanes * kRows, row_block = blockIdx.x % params.row_blocks;
  StatePlace place;
  place.head = blockIdx.x / params.row_blocks;
  place.dim = row_block * block_rows;
  place.ndims = args.headdim - place.dim < block_rows ? args.headdim - place.dim : block_rows;
  place.row = threadIdx.x / kLanes * kRows;
  place.lane = threadIdx.x % kLanes;

  // Asked for before anything else is known of the slot: the checkpoint of a fresh or broken one is then not used.
  const int32_t slot = load_global(args.slots + batch_idx);
  const bool in_pool = slot >= 0 && slot < args.cursor.nslots;
  State state = {};
  if (in_pool) load_raw_state<kLanes>(checkpoint_rows(args, slot, place), place, args.dstate, state);
  const bool materialize = params.output.state != nullptr;
  if (threadIdx.x == 0) shared.step = read_step(args, batch_idx, !materialize);
  zero_padding(args.dstate, shared);
  __syncthreads();  // (2) the step is written before it is read
  const Step& step = shared.step;
  if (materialize) {
    const BlockChannels channels = block_channels(args, place);
    if (channels.keeps_x) write_tail<T>(params, step, channels.x, place.ndims);
    if (channels.keeps_B) write_tail<T>(params, step, channels.B, args.dstate);
    if (channels.keeps_C) write_tail<T>(params, step, channels.C, args.dstate);
  }

  const bool fresh = !step.valid || step.position == 0;
  bool raw_state = true;  // nobody has waited for it
  if (step.valid) {
    Walk walk = begin_walk(step, shared.tree);
    Chunk chunk{};
    while (next_chunk(step, kPlaces, walk, shared.tree, chunk)) {
      if (chunk.tree) {
        if (raw_state) convert_raw_state(args.checkpoint_dtype, fresh, state);
        raw_state = false;
        if (walk.first_of_tree) keep_committed(state, shared);  // a thread reads only what it wrote
      }
      const auto token_of = [&](int32_t p) { return token_at(step, chunk, shared.tree, p); };
      const RawStep<T> raw = find_tokens<T>(args, step, place.head, chunk, token_of, shared);
      __syncthreads();  // (4) input ids are written before they are read; outputs were read before x is overwritten
      prepare_tokens(args, step, raw, place.head, row_block == 0, chunk, token_of, shared);
      run_conv<T>(args, step, place, chunk, shared);
      __syncthreads();  // (6) conv outputs, dt and decay are written before they are read
      if (raw_state) convert_raw_state(args.checkpoint_dtype, fresh, state);
      raw_state = false;
      visit_tokens(args, step, place, chunk, state, shared);
      __syncthreads();  // (8) sums are written before they are read
      store_outputs<T>(args, step, place, chunk, token_of, shared);
    }
  }
  if (materialize) {
    if (raw_state) convert_raw_state(args.checkpoint_dtype, fresh, state);
    const StateRows rows =
        state_rows(params.output.state, LLAMBA_FLOAT32,
                   batch_idx * params.output.state_stride_batch + place.head * params.output.state_stride_head +
                       place.dim * params.output.state_stride_dim,
                   params.output.state_stride_dim);
    store_state<kLanes>(rows, place, args.dstate, state);
  } else {
    zero_outputs<T>(args, batch_idx, place, step.valid ? step.ntokens : 0);
  }
}

}  // namespace llamba
