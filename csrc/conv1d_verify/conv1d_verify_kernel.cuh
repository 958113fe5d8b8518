// conv1d_verify_kernel -- SiLU of a causal depthwise conv of the step's tokens; what came before them is in the rows.
// Grid     (blocks of channels, batch up to 65535, the rest of the batch)       Block  32, 64 or 128 threads
// Owns     one block owns two channels a thread of one sequence's out; of the heads that read one head of x, the first
//          one's stores its raw inputs as rows
// Threads  an item is two channels of up to kPiece tokens (conv1d_item.cuh); a thread has the same channels in each piece
// Shared   of kPlaces tokens: ids of their raw inputs, their rows; the step
// Flow     1 cursor  2 per kPlaces tokens: ids  3 barrier  4 conv -> out, raw inputs -> rows
// Barriers 1 (after 1); 1 per kPlaces tokens (3), 1 more before all but the first
// Numerics fp32 sums, taps oldest first, fused; SiLU; one rounding. A token's bits depend on its path alone
// Requires x_heads divides nheads                              (checked in conv1d_verify_check.h)
// A slot that the CPU refuses cannot be reported from here: it is left alone, its out is zero.
#pragma once

#include "common/launch.cuh"
#include "conv1d_verify/conv1d_item.cuh"

namespace llamba {

constexpr int32_t kMostConvThreads = 128;
constexpr int32_t kConvPlaces = 32;

struct Conv1dParams {
  llamba_conv1d_verify_args args;
  int32_t head_vectors;  // kConvVector channels each; the last one of a head may be shorter
};

namespace {

struct Conv1dStorage {
  Step step;
  int32_t inputs[kConvPlaces * kMostWidth], rows[kConvPlaces];  // ids of the raw inputs; where they go, -1: nowhere
};

// A thread's channels.
struct Conv1dPlace {
  int32_t head, x_head, c;  // c: the first one, of a head
  bool keeps_rows;
};

template <typename T>
__device__ __forceinline__ T* out_of(const llamba_conv1d_verify_args& args, int32_t batch_idx,
                                     const Conv1dPlace& place) {
  return static_cast<T*>(args.out) + batch_idx * args.out_stride_batch + place.head * args.headdim + place.c;
}

// The conv of the thread's channels of tokens first ..., places of them.
template <typename T>
__device__ __forceinline__ void run_items(const llamba_conv1d_verify_args& args, const Conv1dPlace& place,
                                          int32_t head_vectors, int32_t first, int32_t places,
                                          const Conv1dStorage& shared) {
  // Taps and bias are those of the channels of out, the raw inputs those of x: conv_item knows one number for both.
  llamba_conv1d_verify_args of_x = args;
  const int64_t ahead = int64_t{place.head - place.x_head} * args.headdim;
  of_x.conv_weight = static_cast<const T*>(args.conv_weight) + ahead * args.conv_weight_stride_channel;
  if (args.conv_bias != nullptr) of_x.conv_bias = static_cast<const T*>(args.conv_bias) + ahead;
  const ConvPart part{place.x_head * args.headdim, args.headdim, 0, places, place.keeps_rows};
  T* out = out_of<T>(args, shared.step.batch_idx, place) + first * args.out_stride_token;
#pragma unroll 1
  for (int32_t piece = 0; piece * kPiece<T> < places; ++piece) {
    conv_item<T>(of_x, shared.step, shared.inputs, shared.rows, part, piece * head_vectors + place.c / kConvVector,
                 [&](int32_t at, int32_t c, const float (&y)[kConvVector]) {
                   T rounded[kConvVector];
                   for (int32_t j = 0; j < kConvVector; ++j) from_float(y[j], &rounded[j]);
                   store_pair(out + at * args.out_stride_token, args.headdim - c, rounded);
                 });
  }
}

}  // namespace

template <typename T>
__global__ void __launch_bounds__(kMostConvThreads, 6) conv1d_verify_kernel(Conv1dParams params) {
  const llamba_conv1d_verify_args& args = params.args;
  const int32_t batch_idx = batch_index();
  if (batch_idx >= args.batch) return;
  Conv1dStorage& shared = shared_storage<Conv1dStorage>();
  const int32_t vector = static_cast<int32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  const bool exists = vector < args.nheads * params.head_vectors;
  const int32_t heads_per_x = args.nheads / args.x_heads;
  Conv1dPlace place;
  place.head = vector / params.head_vectors;
  place.x_head = place.head / heads_per_x;
  place.c = vector % params.head_vectors * kConvVector;
  place.keeps_rows = place.head % heads_per_x == 0;

  if (threadIdx.x == 0) shared.step = read_step(args, batch_idx, true);
  __syncthreads();  // the step is written before it is read
  const Step& step = shared.step;
  const int32_t ntokens = step.valid ? step.ntokens : 0;
  for (int32_t first = 0; first < ntokens; first += kConvPlaces) {
    const int32_t places = ntokens - first < kConvPlaces ? ntokens - first : kConvPlaces;
    if (first > 0) __syncthreads();  // the ids of the tokens before are read before they are overwritten
    for (int32_t i = threadIdx.x; i < places * kMostWidth; i += blockDim.x) {
      const int32_t p = i / kMostWidth, tap = i % kMostWidth;
      if (tap < args.cursor.width) {
        shared.inputs[i] = find_input(args, step, step.live + first + p, args.cursor.width - 1 - tap);
      }
      if (tap == 0) shared.rows[p] = new_row(args, step, first + p);
    }
    __syncthreads();  // ids are written before they are read
    if (exists) run_items<T>(args, place, params.head_vectors, first, places, shared);
  }
  if (!exists) return;
  T* out = out_of<T>(args, batch_idx, place);
  for (int32_t t = ntokens; t < args.max_ntokens; ++t) {
    const T zeros[kConvVector] = {};
    store_pair(out + t * args.out_stride_token, args.headdim - place.c, zeros);
  }
}

}  // namespace llamba
