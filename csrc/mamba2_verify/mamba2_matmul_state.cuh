// The state of mamba2_matmul_kernel: which part of a head a lane has, and how it comes from the checkpoint and back.
#pragma once

#include <type_traits>

#include "mamba2_verify/mamba2_matmul_storage.cuh"

namespace llamba {
namespace {

template <int kState>
struct MatmulState {
  static constexpr int kSteps = (kState < kMostWarpState ? kState : kMostWarpState) / 16;
  float v[kSteps][2][4];  // [n / 16][dim 2 g or 2 g + 1][4]
};

// What a lane works on.
struct MatmulPlace {
  int32_t head, first_dim;  // of the block
  int32_t tile_row, dim;    // dim: the lane's first, of two
  int32_t first_n, steps;   // the warp's part of dstate, in sixteens
  int32_t g, t;
};

// ---- state: four neighbours at a time ----

template <typename S>
using FourBits = typename std::conditional<sizeof(S) == 4, uint4, uint2>::type;

template <typename S>
__device__ __forceinline__ void unpack_four(const FourBits<S>& bits, float (&v)[4]) {
  S four[4];
  memcpy(four, &bits, sizeof(bits));
  for (int i = 0; i < 4; ++i) v[i] = to_float(four[i]);
}

// The lane's part of checkpoint[slot, head, dim + i], i < 2: where it is, and whether it may be read in vectors.
template <typename S>
struct LaneCheckpoint {
  S* row[2];
  bool exists[2], vector;

  __device__ __forceinline__ LaneCheckpoint(const llamba_mamba2_verify_args& args, int32_t slot,
                                            const MatmulPlace& place) {
    vector = true;
    for (int i = 0; i < 2; ++i) {
      row[i] = static_cast<S*>(args.checkpoint) + slot * args.checkpoint_stride_slot +
               place.head * args.checkpoint_stride_head + (place.dim + i) * args.checkpoint_stride_dim + place.first_n +
               4 * place.t;
      exists[i] = place.dim + i < args.headdim;
      vector &= reinterpret_cast<uintptr_t>(row[i]) % (4 * sizeof(S)) == 0;
    }
  }
};

template <typename S, int kState>
__device__ __forceinline__ void load_state(const llamba_mamba2_verify_args& args, int32_t slot,
                                           const MatmulPlace& place, MatmulState<kState>* state) {
  const LaneCheckpoint<S> lane(args, slot, place);
#pragma unroll
  for (int k = 0; k < MatmulState<kState>::kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (k >= place.steps || !lane.exists[i]) continue;
      const S* p = lane.row[i] + 16 * k;
      if (lane.vector) {
        unpack_four<S>(load_global_once(reinterpret_cast<const FourBits<S>*>(p)), state->v[k][i]);
      } else {
        for (int j = 0; j < 4; ++j) state->v[k][i][j] = to_float(load_global(p + j));
      }
    }
  }
}
template <typename S, int kState>
__device__ __forceinline__ void load_staged_state(const char* stage, int32_t stage_pitch, const MatmulPlace& place,
                                                  MatmulState<kState>* state) {
#pragma unroll
  for (int k = 0; k < MatmulState<kState>::kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (k >= place.steps) continue;
      const S* row = reinterpret_cast<const S*>(stage + (place.tile_row + place.g + 8 * i) * stage_pitch);
      unpack_four<S>(*reinterpret_cast<const FourBits<S>*>(row + place.first_n + 16 * k + 4 * place.t), state->v[k][i]);
    }
  }
}
template <typename S, int kState>
__device__ __forceinline__ void store_state(const llamba_mamba2_verify_args& args, int32_t slot,
                                            const MatmulPlace& place, const MatmulState<kState>& state) {
  const LaneCheckpoint<S> lane(args, slot, place);
#pragma unroll
  for (int k = 0; k < MatmulState<kState>::kSteps; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (k >= place.steps || !lane.exists[i]) continue;
      S four[4];
      for (int j = 0; j < 4; ++j) from_float(state.v[k][i][j], &four[j]);
      if (lane.vector) {
        FourBits<S> bits;
        memcpy(&bits, four, sizeof(bits));
        store_global(reinterpret_cast<FourBits<S>*>(lane.row[i] + 16 * k), bits);
      } else {
        for (int j = 0; j < 4; ++j) store_global(lane.row[i] + 16 * k + j, four[j]);
      }
    }
  }
}

// Starts the copies of one head's states into a stage: the first warp's lanes, a row each at a time.
__device__ __forceinline__ void fetch_state(const llamba_mamba2_verify_args& args, const Step& step,
                                            const MatmulStorage& shared, int32_t head, int32_t first_dim, int32_t dims,
                                            int32_t state_bytes, int32_t stage) {
  const unsigned row_bytes = static_cast<unsigned>(args.dstate * state_bytes);
  if (threadIdx.x == 0) mbarrier_arrive_expect(shared.arrived() + stage, row_bytes * dims);
  __syncwarp();  // the barrier knows of the bytes before they come
  for (int32_t dim = threadIdx.x; dim < dims; dim += 32) {
    const int64_t element = step.slot * args.checkpoint_stride_slot + head * args.checkpoint_stride_head +
                            (first_dim + dim) * args.checkpoint_stride_dim;
    bulk_copy(shared.stage(stage) + row_in_tile(dim) * shared.at.stage_pitch,
              static_cast<const char*>(args.checkpoint) + element * state_bytes, row_bytes, shared.arrived() + stage);
  }
}

}  // namespace
}  // namespace llamba
