// Shared memory of mamba2_matmul_kernel: arrays whose sizes are known at launch. The launcher lays them out; the kernel
// finds the offsets in its parameters, where they cost no registers. Pitches are such that the eight rows of a fragment
// lie in different banks.
#pragma once

#include "common/host_device.h"
#include "mamba2_verify/mamba2_tokens.cuh"

namespace llamba {

constexpr int32_t kMostWarpState = 128;  // of dstate, in a warp's registers
constexpr int32_t kStages = 2;           // heads whose states are on their way or there, if bulk copies bring them

struct MatmulLayout {
  int32_t rows, tokens, dims;  // padded to 16, to 8; 16 * tiles
  int32_t n_pitch, s_pitch, M_pitch, stage_pitch;
  int32_t stages, arrived, inputs, kept, dt, da, folded, E, G, M, B, C, x, end_of_x, halves;  // offsets in bytes
  int32_t bytes;
};

inline MatmulLayout lay_out_matmul(int pieces, int32_t padded_dstate, int32_t dstate, int32_t state_bytes,
                                   int32_t most_rows, int32_t most_tokens, int32_t tiles, bool bulk) {
  MatmulLayout at;
  at.rows = (most_rows + 15) / 16 * 16, at.tokens = (most_tokens + 7) / 8 * 8, at.dims = 16 * tiles;
  at.n_pitch = padded_dstate + 16, at.s_pitch = at.rows + 8, at.M_pitch = at.rows + 8;
  at.stage_pitch = (dstate + 16) * state_bytes;
  at.bytes = 0;
  const auto take = [&at](int64_t count) {
    const int32_t taken = at.bytes;
    at.bytes += static_cast<int32_t>((count + 15) / 16 * 16);
    return taken;
  };
  at.stages = take(bulk ? int64_t{kStages} * at.dims * at.stage_pitch : 0);
  at.arrived = take(sizeof(uint64_t) * kStages);
  at.inputs = take(sizeof(int32_t) * at.rows * kMostWidth);
  at.kept = take(sizeof(int32_t) * at.rows);
  at.dt = take(sizeof(float) * at.rows);
  at.da = take(sizeof(float) * at.rows);
  at.folded = take(sizeof(float) * at.rows);
  at.E = take(sizeof(float) * at.tokens);
  at.G = take(sizeof(float) * at.tokens * at.M_pitch);
  at.M = take(sizeof(float) * at.tokens * at.M_pitch);
  at.B = take(sizeof(uint16_t) * pieces * at.rows * at.n_pitch);
  at.C = take(sizeof(uint16_t) * pieces * at.tokens * at.n_pitch);
  at.x = take(sizeof(uint16_t) * pieces * at.dims * at.s_pitch);
  at.end_of_x = at.bytes;
  at.halves = take(padded_dstate > kMostWarpState ? sizeof(float) * tiles * 32 * 4 : 0);
  return at;
}

struct MatmulStorage {
  char* bytes;
  const MatmulLayout& at;

  template <typename T>
  __device__ __forceinline__ T* find(int32_t offset) const {
    return reinterpret_cast<T*>(bytes + offset);
  }
  // [kStages] barriers of the bulk copies
  __device__ __forceinline__ uint64_t* arrived() const { return find<uint64_t>(at.arrived); }
  // [rows, kMostWidth]
  __device__ __forceinline__ int32_t* inputs() const { return find<int32_t>(at.inputs); }
  // [rows] the physical row that keeps a new token's raw inputs; -1: none
  __device__ __forceinline__ int32_t* kept() const { return find<int32_t>(at.kept); }
  // [rows]; da: the logarithm to base 2 of a token's decay; folded: what a folded token weighs in the new checkpoint
  __device__ __forceinline__ float* dt() const { return find<float>(at.dt); }
  __device__ __forceinline__ float* da() const { return find<float>(at.da); }
  __device__ __forceinline__ float* folded() const { return find<float>(at.folded); }
  // [tokens] the sum of log-decays since the checkpoint
  __device__ __forceinline__ float* E() const { return find<float>(at.E); }
  // [tokens, M_pitch]
  __device__ __forceinline__ float* G() const { return find<float>(at.G); }
  __device__ __forceinline__ float* M() const { return find<float>(at.M); }
  // [pieces, rows or tokens, n_pitch]
  __device__ __forceinline__ uint16_t* B() const { return find<uint16_t>(at.B); }
  __device__ __forceinline__ uint16_t* C() const { return find<uint16_t>(at.C); }
  // [pieces, dims, s_pitch]; a tile's dims in the order of A's rows
  __device__ __forceinline__ uint16_t* x() const { return find<uint16_t>(at.x); }
  // [tiles, 32, 4] S C of the upper half of dstate, if it has a warp of its own
  __device__ __forceinline__ float* halves() const { return find<float>(at.halves); }
  // [dims, stage_pitch bytes] states, a tile's dims in the order of A's rows
  __device__ __forceinline__ char* stage(int32_t i) const { return bytes + at.stages + i * at.dims * at.stage_pitch; }
};

// Where a dim of the block lies among A's rows: a lane's two dims are neighbours, but rows g and g + 8 of its tile.
LLAMBA_HOST_DEVICE int32_t row_in_tile(int32_t dim) { return dim / 16 * 16 + dim % 16 / 2 + 8 * (dim % 2); }

}  // namespace llamba
