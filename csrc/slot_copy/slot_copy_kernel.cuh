// slot_copy_kernel -- slot dst[i] of every buffer, the cursor among them, becomes a copy of slot src[i].
// Grid     (parts of a slot, buffers, pairs)       Block  256 threads
// Owns     the blocks of one (buffer, pair) own slot dst[pair] of that buffer
// Threads  the slot's units (16, 4 or 1 bytes), innermost dimension first, go round all threads of its blocks
// Shared   none
// Flow     1 look at src and its header  2 four units at a time: load, store
// Barriers none: no slot is both read and written
// Numerics none: bytes
// Requires parameters below 4 KB: more than kCopyBuffers buffers are several launches   (slot_copy_launch.cu)
// What the CPU refuses cannot be reported from here. A dst out of range is skipped. A src that is no slot without an
// open step, or that has more tokens than a buffer, leaves the buffers alone and marks dst broken (ntokens -1).
#pragma once

#include "common/ptx.cuh"
#include "cursor/cursor_edit.h"

namespace llamba {

constexpr int kCopyBuffers = 24;
constexpr unsigned kCopyThreads = 256;
constexpr int kCopyUnroll = 4;  // loads under way per thread

struct CopyBuffer {
  char* data;                                                // [nslots, ...]
  int64_t slot_stride;                                       // bytes, as all of these
  int64_t sizes[LLAMBA_MAX_DIMS], strides[LLAMBA_MAX_DIMS];  // of a slot, innermost first; sizes[0] counts units
  int32_t unit, ndim;
  int32_t token_dim;  // its size is to be multiplied by the position; -1: none
};

struct CopyParams {
  llamba_cursor cursor;
  const int32_t *src, *dst;  // [batch]
  int64_t batch;
  int64_t most_tokens;  // that every buffer can hold
  CopyBuffer buffers[kCopyBuffers];
};
static_assert(sizeof(CopyParams) < 4096, "kernel parameters stay below 4 KB");

__device__ __forceinline__ int64_t size_of(const CopyBuffer& buffer, int32_t dim, int64_t position) {
  return dim == buffer.token_dim ? buffer.sizes[dim] * position : buffer.sizes[dim];
}

__device__ __forceinline__ int64_t offset_of(const CopyBuffer& buffer, int64_t unit, int64_t position) {
  int64_t offset = 0;
  for (int32_t dim = 0; dim + 1 < buffer.ndim; ++dim) {
    const int64_t size = size_of(buffer, dim, position), rest = unit / size;
    offset += (unit - rest * size) * buffer.strides[dim];
    unit = rest;
  }
  return offset + unit * buffer.strides[buffer.ndim - 1];
}

template <typename Unit>
__device__ __forceinline__ void copy_units(const CopyBuffer& buffer, const char* from, char* to, int64_t position) {
  int64_t units = 1;
  for (int32_t dim = 0; dim < buffer.ndim; ++dim) units *= size_of(buffer, dim, position);
  const int64_t step = int64_t{gridDim.x} * kCopyThreads;
  for (int64_t i = int64_t{blockIdx.x} * kCopyThreads + threadIdx.x; i < units; i += kCopyUnroll * step) {
    Unit values[kCopyUnroll];
    int64_t offsets[kCopyUnroll];
#pragma unroll
    for (int j = 0; j < kCopyUnroll; ++j) {
      if (i + j * step >= units) continue;
      offsets[j] = offset_of(buffer, i + j * step, position);
      values[j] = load_global(reinterpret_cast<const Unit*>(from + offsets[j]));
    }
#pragma unroll
    for (int j = 0; j < kCopyUnroll; ++j) {
      if (i + j * step < units) store_global(reinterpret_cast<Unit*>(to + offsets[j]), values[j]);
    }
  }
}

__device__ __forceinline__ bool is_source(const CopyParams& params, int32_t src) {
  if (src < 0 || src >= params.cursor.nslots) return false;
  const int32_t* header = params.cursor.data + src * params.cursor.slot_stride;
  return header_is_valid(header, params.cursor) && header[kNtokens] == kNoStep &&
         header[kPosition] <= params.most_tokens;
}

__global__ void __launch_bounds__(kCopyThreads) slot_copy_kernel(CopyParams params) {
  const CopyBuffer& buffer = params.buffers[blockIdx.y];
  for (int64_t pair = blockIdx.z; pair < params.batch; pair += gridDim.z) {
    const int32_t src = load_global(params.src + pair), dst = load_global(params.dst + pair);
    if (dst < 0 || dst >= params.cursor.nslots) continue;
    if (!is_source(params, src)) {
      int32_t* header = params.cursor.data + dst * params.cursor.slot_stride;
      const bool is_cursor = buffer.data == reinterpret_cast<char*>(params.cursor.data);
      if (is_cursor && blockIdx.x == 0 && threadIdx.x == 0) header[kNtokens] = kBrokenStep;
      continue;
    }
    const int64_t position = params.cursor.data[src * params.cursor.slot_stride + kPosition];
    const char* from = buffer.data + src * buffer.slot_stride;
    char* to = buffer.data + dst * buffer.slot_stride;
    if (buffer.unit == 16) {
      copy_units<uint4>(buffer, from, to, position);
    } else if (buffer.unit == 4) {
      copy_units<uint32_t>(buffer, from, to, position);
    } else {
      copy_units<uint8_t>(buffer, from, to, position);
    }
  }
}

}  // namespace llamba
