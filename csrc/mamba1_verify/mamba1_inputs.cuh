// What mamba1_kernel has in shared memory: the chunk's dt, dt x, B and C, and how they come there.
#pragma once

#include "common/pairs.cuh"
#include "common/state.cuh"
#include "cursor/cursor_visits.cuh"
#include "mamba1_verify/mamba1_cuda.h"

namespace llamba {

constexpr int32_t kMostMamba1Threads = 128;

// How the channels of a block share the heads of B or of C.
struct HeadSharing {
  int32_t channels;  // of a head
  int32_t span;      // heads of a block, at most
};

struct Mamba1Params {
  llamba_mamba1_verify_args args;
  Mamba1StateOutput output;
  HeadSharing B, C;
  int32_t sequences;  // of a block
};

// Followed by: B [kPlaces, B.span, kState], C [kPlaces, C.span, kState]; for trees the committed state, 16 floats of
// each thread.
template <int kState>
struct alignas(16) Mamba1Storage {
  static constexpr int32_t kLanes = kState / 4, kPlaces = 8;
  static constexpr int32_t kChannels = kMostMamba1Threads / kLanes * kRows;
  float dt[kPlaces][kChannels];
  float dtx[kPlaces][kChannels];
  float y[kPlaces][kChannels];
  int32_t round[kPlaces];
  Step step;  // here it takes no registers
  TreeVisits tree;

  static constexpr size_t bytes(int32_t heads, int32_t threads, bool tree) {
    return sizeof(Mamba1Storage) + sizeof(float) * (size_t{kPlaces} * heads * kState + (tree ? 16 * threads : 0));
  }
};

namespace {

using Mamba1State = StateOf<1>;

// The kernel for 16 has no other.
template <int kState>
__device__ __forceinline__ int32_t dstate_of(const llamba_mamba1_verify_args& args) {
  return kState == 16 ? 16 : args.dstate;
}

// The B and C of the chunk.
struct Mamba1Heads {
  float *B, *C;  // [places, span, kState]
};

template <int kState>
__device__ __forceinline__ Mamba1Heads heads_after(Mamba1Storage<kState>& shared, const Mamba1Params& params) {
  auto* B = reinterpret_cast<float*>(&shared + 1);
  return {B, B + Mamba1Storage<kState>::kPlaces * params.B.span * kState};
}

// What a thread works on around the visits: two channels of every kGroups-th token.
template <int kState>
struct Mamba1Pair {
  static constexpr int32_t kGroups = kState / 4 * kPair / kRows;
  static constexpr int32_t kItems = Mamba1Storage<kState>::kPlaces / kGroups;
  int32_t c, left;  // the first channel, of the block's; how many there are from it on
  int32_t group;
  float bias[kPair], D[kPair];

  __device__ __forceinline__ Mamba1Pair(const llamba_mamba1_verify_args& args, const StatePlace& place) {
    const int32_t pairs = blockDim.x / kGroups;
    c = threadIdx.x % pairs * kPair;
    group = threadIdx.x / pairs;
    left = place.ndims - c;
    for (int32_t j = 0; j < kPair; ++j) bias[j] = D[j] = 0.0f;
    if (args.dt_bias != nullptr) load_pair(args.dt_bias + place.dim + c, left, bias);
    if (args.D != nullptr) load_pair(args.D + place.dim + c, left, D);
  }
  __device__ __forceinline__ int32_t place_of(int32_t item) const { return item * kGroups + group; }
};

// The inputs of its tokens; z only of those that give an output.
template <typename T, int kItems>
struct TokenInputs {
  T x[kItems][kPair], dt[kItems][kPair], z[kItems][kPair];
  int32_t kept_row[kItems];  // where the row of a new token goes; -1: nowhere
};

template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ void load_inputs(const llamba_mamba1_verify_args& args, const Step& step,
                                            const StatePlace& place, const Mamba1Pair<kState>& pair, const Chunk& chunk,
                                            TokenOf token_of, TokenInputs<T, Mamba1Pair<kState>::kItems>& inputs) {
  const int32_t channel = place.dim + pair.c;
#pragma unroll
  for (int32_t i = 0; i < Mamba1Pair<kState>::kItems; ++i) {
    const int32_t p = pair.place_of(i);
    for (int32_t j = 0; j < kPair; ++j) inputs.x[i][j] = inputs.dt[i][j] = inputs.z[i][j] = T{};
    inputs.kept_row[i] = -1;
    if (p >= chunk.nplaces) continue;
    const int32_t token = token_of(p) - step.live, row = new_row(args, step, token);  // of a live token: its own
    if (token >= 0) {
      const int64_t batch_idx = step.batch_idx;
      load_pair(static_cast<const T*>(args.x) + batch_idx * args.x_stride_batch + token * args.x_stride_token + channel,
                pair.left, inputs.x[i]);
      load_pair(
          static_cast<const T*>(args.dt) + batch_idx * args.dt_stride_batch + token * args.dt_stride_token + channel,
          pair.left, inputs.dt[i]);
      if (args.z != nullptr && (chunk.emitted >> p & 1) != 0) {
        load_pair(
            static_cast<const T*>(args.z) + batch_idx * args.z_stride_batch + token * args.z_stride_token + channel,
            pair.left, inputs.z[i]);
      }
      inputs.kept_row[i] = row;
    } else if (row >= 0) {
      const int64_t slot = step.slot;
      load_pair(
          static_cast<const T*>(args.x_rows) + slot * args.x_rows_stride_slot + row * args.x_rows_stride_row + channel,
          pair.left, inputs.x[i]);
      load_pair(static_cast<const T*>(args.dt_rows) + slot * args.dt_rows_stride_slot + row * args.dt_rows_stride_row +
                    channel,
                pair.left, inputs.dt[i]);
    }
  }
}

// dt and dt x into shared memory; the raw x and dt of new tokens into their rows.
template <typename T, int kState>
__device__ __forceinline__ void prepare_inputs(const llamba_mamba1_verify_args& args, const Step& step,
                                               const StatePlace& place, const Mamba1Pair<kState>& pair,
                                               const Chunk& chunk,
                                               const TokenInputs<T, Mamba1Pair<kState>::kItems>& inputs,
                                               Mamba1Storage<kState>& shared) {
  const int32_t channel = place.dim + pair.c;
#pragma unroll
  for (int32_t i = 0; i < Mamba1Pair<kState>::kItems; ++i) {
    const int32_t p = pair.place_of(i), row = inputs.kept_row[i];
    if (p >= chunk.nplaces) continue;
    if (row >= 0) {
      const int64_t slot = step.slot;
      store_pair(static_cast<T*>(args.x_rows) + slot * args.x_rows_stride_slot + row * args.x_rows_stride_row + channel,
                 pair.left, inputs.x[i]);
      store_pair(
          static_cast<T*>(args.dt_rows) + slot * args.dt_rows_stride_slot + row * args.dt_rows_stride_row + channel,
          pair.left, inputs.dt[i]);
    }
    float dt[kPair], dtx[kPair];
#pragma unroll
    for (int32_t j = 0; j < kPair; ++j) {
      dt[j] = softplus(to_float(inputs.dt[i][j]) + pair.bias[j]);
      dtx[j] = dt[j] * to_float(inputs.x[i][j]);
    }
    memcpy(&shared.dt[p][pair.c], dt, sizeof(dt));
    memcpy(&shared.dtx[p][pair.c], dtx, sizeof(dtx));
  }
}

// ---- B and C: four neighbours at a time, dstate is a multiple of four ----

template <typename T>
struct QuadBits {
  using type = uint2;
};
template <>
struct QuadBits<float> {
  using type = uint4;
};

template <typename T>
__device__ __forceinline__ void load_quad(const T* p, T (&v)[4]) {
  using Bits = typename QuadBits<T>::type;
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Bits) == 0) {
    const Bits bits = load_global(reinterpret_cast<const Bits*>(p));
    memcpy(v, &bits, sizeof(bits));
  } else {
    for (int32_t j = 0; j < 4; ++j) v[j] = load_global(p + j);
  }
}
template <typename T>
__device__ __forceinline__ void store_quad(T* p, const T (&v)[4]) {
  using Bits = typename QuadBits<T>::type;
  if (reinterpret_cast<uintptr_t>(p) % sizeof(Bits) == 0) {
    Bits bits;
    memcpy(&bits, v, sizeof(bits));
    store_global(reinterpret_cast<Bits*>(p), bits);
  } else {
    for (int32_t j = 0; j < 4; ++j) store_global(p + j, v[j]);
  }
}

// Four of B or C on their way from global to shared memory.
template <typename T>
struct HeadQuad {
  const T* from;  // nullptr: nothing to do
  int32_t to;     // an index from the first of B on
  int64_t kept;   // an index of B_rows; -1: no row of it is kept, or not by this block
};

// Item i of the chunk's B, then C: a place, a head of those that the block reads, four of dstate.
template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ HeadQuad<T> head_quad(const Mamba1Params& params, const Step& step, const StatePlace& place,
                                                 const Chunk& chunk, TokenOf token_of, int32_t i) {
  const llamba_mamba1_verify_args& args = params.args;
  const int32_t dstate = dstate_of<kState>(args), quads = dstate / 4;
  const int32_t last = place.dim + place.ndims - 1;
  const int32_t first_B = place.dim / params.B.channels, of_B = last / params.B.channels - first_B + 1;
  const int32_t first_C = place.dim / params.C.channels, of_C = last / params.C.channels - first_C + 1;
  const int32_t begin_C = chunk.nplaces * of_B * quads;
  const bool is_B = i < begin_C;
  if (!is_B) i -= begin_C;
  const int32_t n = i % quads * 4, at = i / quads % (is_B ? of_B : of_C), p = i / quads / (is_B ? of_B : of_C);
  if (p >= chunk.nplaces) return {nullptr, 0, -1};
  const int32_t token = token_of(p) - step.live, head = (is_B ? first_B : first_C) + at;
  const int64_t batch_idx = step.batch_idx, column = int64_t{head} * dstate + n;
  if (!is_B) {  // a live token has no output
    if (token < 0) return {nullptr, 0, -1};
    const T* from = static_cast<const T*>(args.C) + batch_idx * args.C_stride_batch + token * args.C_stride_token;
    return {from + column, (Mamba1Storage<kState>::kPlaces * params.B.span + p * params.C.span + at) * kState + n, -1};
  }
  const int32_t row = new_row(args, step, token);  // of a live token: its own
  const int32_t to = (p * params.B.span + at) * kState + n;
  const int64_t kept = step.slot * args.B_rows_stride_slot + row * args.B_rows_stride_row + column;
  if (token < 0) return {row < 0 ? nullptr : static_cast<const T*>(args.B_rows) + kept, to, -1};
  const T* from = static_cast<const T*>(args.B) + batch_idx * args.B_stride_batch + token * args.B_stride_token;
  return {from + column, to, row >= 0 && head * params.B.channels >= place.dim ? kept : -1};
}

template <typename T, int kState, typename TokenOf>
__device__ __forceinline__ void stage_heads(const Mamba1Params& params, const Step& step, const StatePlace& place,
                                            const Chunk& chunk, TokenOf token_of, const Mamba1Heads& heads) {
  constexpr int kTogether = 2;  // loads under way at once
  const int32_t items = chunk.nplaces * (params.B.span + params.C.span) * (dstate_of<kState>(params.args) / 4);  // most
#pragma unroll 1
  for (int32_t i = threadIdx.x; i < items; i += kTogether * blockDim.x) {
    HeadQuad<T> quads[kTogether];
    T v[kTogether][4];
#pragma unroll
    for (int32_t k = 0; k < kTogether; ++k) {
      quads[k] = head_quad<T, kState>(params, step, place, chunk, token_of, i + k * blockDim.x);
      if (quads[k].from != nullptr) load_quad(quads[k].from, v[k]);
    }
#pragma unroll
    for (int32_t k = 0; k < kTogether; ++k) {
      if (quads[k].from == nullptr) continue;
      if (quads[k].kept >= 0) store_quad(static_cast<T*>(params.args.B_rows) + quads[k].kept, v[k]);
      float wide[4];
      for (int32_t j = 0; j < 4; ++j) wide[j] = to_float(v[k][j]);
      uint4 bits;
      memcpy(&bits, wide, sizeof(bits));
      *reinterpret_cast<uint4*>(heads.B + quads[k].to) = bits;
    }
  }
}

// What no B or C is ever written to: dstate up to kState.
template <int kState>
__device__ inline void zero_padding(const Mamba1Params& params, const Mamba1Heads& heads) {
  const int32_t rest = kState - params.args.dstate;
  const int32_t rows = Mamba1Storage<kState>::kPlaces * (params.B.span + params.C.span);  // of B, then of C
  for (int32_t i = threadIdx.x; i < rows * rest; i += blockDim.x) {
    heads.B[i / rest * kState + params.args.dstate + i % rest] = 0.0f;
  }
}

}  // namespace
}  // namespace llamba
