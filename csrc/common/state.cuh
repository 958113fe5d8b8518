// The state in the registers of a recurrent kernel: a thread has kRows dims, and of each kFours times four neighbours of
// dstate, which its kLanes lanes share: lane l has n = 4 (c kLanes + l) + j, c < kFours, j < 4.
#pragma once

#include "common/math.cuh"

namespace llamba {
namespace {

constexpr int32_t kRows = 4;
template <int kFours>
using StateOf = float[kRows][4 * kFours];

// The part of the state that a block owns, and the part of that which a thread owns.
struct StatePlace {
  int32_t head, dim, ndims;  // dims dim to dim + ndims - 1 of a head; Mamba-1: channels, and no head
  int32_t row, lane;         // the thread's first row among them; its lane among those that share its rows
};

// Where the block's rows lie in global memory.
struct StateRows {
  char* data;  // [ndims, dstate]
  int64_t row_bytes;
  llamba_dtype dtype;
  bool whole;  // four elements are one access
};

template <typename Data>
__device__ __forceinline__ StateRows state_rows(Data* data, llamba_dtype dtype, int64_t offset, int64_t stride_dim) {
  const int32_t size = dtype == LLAMBA_FLOAT32 ? 4 : 2;
  StateRows rows;
  rows.data = reinterpret_cast<char*>(data) + offset * size;
  rows.row_bytes = stride_dim * size;
  rows.dtype = dtype;
  rows.whole = (reinterpret_cast<uintptr_t>(rows.data) | static_cast<uintptr_t>(rows.row_bytes)) % (4 * size) == 0;
  return rows;
}

// at(pointer, r, c): for each four elements that the thread has, c < kFours.
template <int kLanes, int kFours, int kSize, typename At>
__device__ __forceinline__ void for_each_four(const StateRows& rows, const StatePlace& place, int32_t dstate, At at) {
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
    for (int32_t c = 0; c < kFours; ++c) {
      const int32_t n = 4 * (c * kLanes + place.lane);
      if (place.row + r < place.ndims && n < dstate) at(rows.data + (place.row + r) * rows.row_bytes + n * kSize, r, c);
    }
  }
}

// The raw bits, four 16-bit elements in two floats: not converted here, so that nothing waits for them yet.
template <int kLanes, int kCount>
__device__ __forceinline__ void load_raw_state(const StateRows& rows, const StatePlace& place, int32_t dstate,
                                               float (&state)[kRows][kCount]) {
  constexpr int kFours = kCount / 4;
  if (rows.dtype == LLAMBA_FLOAT32 && rows.whole) {
    for_each_four<kLanes, kFours, 4>(rows, place, dstate, [&](const char* p, int32_t r, int32_t c) {
      const uint4 four = load_global_once(reinterpret_cast<const uint4*>(p));
      memcpy(&state[r][4 * c], &four, sizeof(four));
    });
  } else if (rows.dtype == LLAMBA_FLOAT32) {
    for_each_four<kLanes, kFours, 4>(rows, place, dstate, [&](const char* p, int32_t r, int32_t c) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) state[r][4 * c + j] = load_global(reinterpret_cast<const float*>(p) + j);
    });
  } else if (rows.whole) {
    for_each_four<kLanes, kFours, 2>(rows, place, dstate, [&](const char* p, int32_t r, int32_t c) {
      const uint2 four = load_global_once(reinterpret_cast<const uint2*>(p));
      memcpy(&state[r][4 * c], &four, sizeof(four));
    });
  } else {
    for_each_four<kLanes, kFours, 2>(rows, place, dstate, [&](const char* p, int32_t r, int32_t c) {
      uint16_t four[4];
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) four[j] = load_global(reinterpret_cast<const uint16_t*>(p) + j);
      memcpy(&state[r][4 * c], four, sizeof(four));
    });
  }
}

template <typename S, int kCount>
__device__ __forceinline__ void convert_raw_state_of(float (&state)[kRows][kCount]) {
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
    for (int32_t c = 0; c < kCount / 4; ++c) {
      S four[4];
      memcpy(four, &state[r][4 * c], sizeof(four));
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) state[r][4 * c + j] = to_float(four[j]);
    }
  }
}
// What load_raw_state has loaded, as numbers; fresh: zeros instead, whatever it was.
template <int kCount>
__device__ __forceinline__ void convert_raw_state(llamba_dtype dtype, bool fresh, float (&state)[kRows][kCount]) {
  if (fresh) {
#pragma unroll
    for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
      for (int32_t j = 0; j < kCount; ++j) state[r][j] = 0.0f;
    }
  } else {
    LLAMBA_SWITCH_DTYPE(dtype, S, convert_raw_state_of<S>(state));
  }
}

template <typename S, int kLanes, int kCount>
__device__ __forceinline__ void store_as(const StateRows& rows, const StatePlace& place, int32_t dstate,
                                         const float (&state)[kRows][kCount]) {
  for_each_four<kLanes, kCount / 4, sizeof(S)>(rows, place, dstate, [&](char* p, int32_t r, int32_t c) {
    S four[4];
#pragma unroll
    for (int32_t j = 0; j < 4; ++j) from_float(state[r][4 * c + j], &four[j]);
    if (!rows.whole) {
#pragma unroll
      for (int32_t j = 0; j < 4; ++j) store_global(reinterpret_cast<S*>(p) + j, four[j]);
    } else if constexpr (sizeof(S) == 4) {
      uint4 bits;
      memcpy(&bits, four, sizeof(bits));
      store_global(reinterpret_cast<uint4*>(p), bits);
    } else {
      uint2 bits;
      memcpy(&bits, four, sizeof(bits));
      store_global(reinterpret_cast<uint2*>(p), bits);
    }
  });
}

template <int kLanes, int kCount>
__device__ __forceinline__ void store_state(const StateRows& rows, const StatePlace& place, int32_t dstate,
                                            const float (&state)[kRows][kCount]) {
  StatePlace here = place;  // the addresses that it was loaded from would take 16 registers all along
  here.row = opaque(place.row);
  here.lane = opaque(place.lane);
  LLAMBA_SWITCH_DTYPE(rows.dtype, S, (store_as<S, kLanes>(rows, here, dstate, state)));
}

template <typename S, int kCount>
__device__ __forceinline__ void round_as(float (&state)[kRows][kCount]) {
#pragma unroll
  for (int32_t r = 0; r < kRows; ++r) {
#pragma unroll
    for (int32_t j = 0; j < kCount; ++j) state[r][j] = rounded_to<S>(state[r][j]);
  }
}
// As a checkpoint of this dtype would hold it.
template <int kCount>
__device__ __forceinline__ void round_state(llamba_dtype dtype, float (&state)[kRows][kCount]) {
  LLAMBA_SWITCH_DTYPE(dtype, S, round_as<S>(state));
}

__device__ __forceinline__ void load_four(const float* shared, float (&v)[4]) {
  const uint4 bits = *reinterpret_cast<const uint4*>(shared);
  memcpy(v, &bits, sizeof(bits));
}

// The sums over kLanes lanes of each of the thread's kRows values; the lane gets that of the row that row_of_sum names.
// All lanes of a warp take part. Every row's sum is the same tree: over lanes that differ in their highest bit, and so on
// down.
template <int kLanes>
__device__ __forceinline__ float sum_lanes(const float (&sums)[kRows], int32_t lane) {
  // A lane gives away the rows that its partner keeps: 2 + 1 values are exchanged, not 4 + 4.
  const bool upper = (lane & kLanes / 2) != 0, odd = (lane & kLanes / 4) != 0;
  const float even_row = (upper ? sums[2] : sums[0]) + __shfl_xor_sync(~0u, upper ? sums[0] : sums[2], kLanes / 2);
  const float odd_row = (upper ? sums[3] : sums[1]) + __shfl_xor_sync(~0u, upper ? sums[1] : sums[3], kLanes / 2);
  float sum = (odd ? odd_row : even_row) + __shfl_xor_sync(~0u, odd ? even_row : odd_row, kLanes / 4);
#pragma unroll
  for (int32_t distance = kLanes / 8; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
  return sum;
}
template <int kLanes>
__device__ __forceinline__ int32_t row_of_sum(int32_t lane) {
  return lane / (kLanes / 4);
}

}  // namespace
}  // namespace llamba
