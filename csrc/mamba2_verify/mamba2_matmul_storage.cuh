// Shared memory of mamba2_matmul_kernel: arrays whose sizes are known at launch. Pitches are such that the eight rows of
// a fragment lie in different banks.
#pragma once

#include "common/host_device.h"
#include "mamba2_verify/mamba2_tokens.cuh"

namespace llamba {
namespace {

constexpr int32_t kMostWarpState = 128;  // of dstate, in a warp's registers
constexpr int32_t kStages = 2;           // heads whose states are on their way or there, if bulk copies bring them

struct MatmulStorage {
  uint64_t* arrived;           // [kStages] barriers of the bulk copies
  int32_t* inputs;             // [rows, kMostWidth]
  float *dt, *da;              // [rows]  da: the logarithm to base 2 of a token's decay
  float* folded;               // [rows]  what a folded token weighs in the new checkpoint
  float* E;                    // [tokens] the sum of log-decays since the checkpoint
  float *G, *M;                // [tokens, M_pitch]
  uint16_t *B, *C;             // [pieces, rows or tokens, n_pitch]
  uint16_t* x;                 // [pieces, dims, s_pitch]; a tile's dims in the order of A's rows
  float* halves;               // [tiles, 32, 4] S C of the upper half of dstate, if it has a warp of its own
  char* stages;                // [kStages, dims, stage_pitch bytes] states, a tile's dims in the order of A's rows
  int32_t rows, tokens, dims;  // padded to 16, to 8; 16 * tiles
  int32_t n_pitch, s_pitch, M_pitch, stage_pitch;

  // Returns the bytes. bulk: with stages for states of state_bytes an element.
  LLAMBA_HOST_DEVICE size_t lay_out(char* bytes, int pieces, int32_t padded_dstate, int32_t most_rows,
                                    int32_t most_tokens, int32_t tiles, bool bulk, int32_t dstate,
                                    int32_t state_bytes) {
    rows = (most_rows + 15) / 16 * 16, tokens = (most_tokens + 7) / 8 * 8, dims = 16 * tiles;
    n_pitch = padded_dstate + 16, s_pitch = rows + 8, M_pitch = rows + 8, stage_pitch = (dstate + 16) * state_bytes;
    size_t used = 0;
    const auto take = [bytes, &used](size_t count) {
      char* taken = bytes + used;
      used += (count + 15) / 16 * 16;
      return taken;
    };
    stages = take(bulk ? size_t{kStages} * dims * stage_pitch : 0);
    arrived = reinterpret_cast<uint64_t*>(take(sizeof(uint64_t) * kStages));
    inputs = reinterpret_cast<int32_t*>(take(sizeof(int32_t) * rows * kMostWidth));
    dt = reinterpret_cast<float*>(take(sizeof(float) * rows));
    da = reinterpret_cast<float*>(take(sizeof(float) * rows));
    folded = reinterpret_cast<float*>(take(sizeof(float) * rows));
    E = reinterpret_cast<float*>(take(sizeof(float) * tokens));
    G = reinterpret_cast<float*>(take(sizeof(float) * tokens * M_pitch));
    M = reinterpret_cast<float*>(take(sizeof(float) * tokens * M_pitch));
    B = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * rows * n_pitch));
    C = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * tokens * n_pitch));
    x = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * dims * s_pitch));
    halves = reinterpret_cast<float*>(take(padded_dstate > kMostWarpState ? sizeof(float) * tiles * 32 * 4 : 0));
    return used;
  }
};

// Where a dim of the block lies among A's rows: a lane's two dims are neighbours, but rows g and g + 8 of its tile.
LLAMBA_HOST_DEVICE int32_t row_in_tile(int32_t dim) { return dim / 16 * 16 + dim % 16 / 2 + 8 * (dim % 2); }

}  // namespace
}  // namespace llamba
