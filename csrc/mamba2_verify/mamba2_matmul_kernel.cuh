// mamba2_matmul_kernel -- a step of one (sequence, head, dims) in closed form: for the step's token k on its path,
//   y_k = 2^E_k (S C_k) + sum over s of M_ks x_s + D x_k,   M_ks = (C_k . B_s) dt_s 2^(sum of log-decays after s up to k)
// with s over the live rows and the ancestors of k (Mamba-2, arXiv 2405.21060, section 6; the mask is a tree's).
// Grid     (row blocks, nheads, batch), the largest first            Block  1 to 5 warps
// Owns     one block owns dims 16 * warps * row block ... of checkpoint[slot, head]; it reads them once
// Threads  a warp owns 16 dims. Lane 4 g + t holds dims 2 g, 2 g + 1 of them at n = 16 k + 4 t .. +3, k < dstate / 16:
//          rows g and g + 8 of the tensor core's A, whose column order is free and is chosen so that a lane's are four
//          neighbours in memory
// Shared   MatmulStorage, below: conv outputs of B, C (rows of tokens) and x (columns of tokens) as bfloat16 pieces, M
// Flow     1 state -> registers  2 raw inputs' ids, dt  3 conv -> B, C, x; log-decay sums  4 M  5 y of eight tokens at
//          a time  6 folded state -> checkpoint
// Barriers after 2, 3 and 4
// Numerics a float is split into three bfloat16, which hold it exactly, a half into two: products of pieces are exact,
//          pairs below 2^-31 of the product are left out, sums are the tensor core's fp32
// Requires max_ntokens <= 64, shared memory for the session's rows        (checked in mamba2_matmul_launch.cu)
#pragma once

#include "mamba2_verify/mamba2_tokens.cuh"

namespace llamba {

constexpr int32_t kMostMatmulWarps = 5;

struct MatmulParams {
  llamba_mamba2_verify_args args;
  int32_t row_blocks;
};

// ---- pieces: bfloat16 numbers whose sum is a value of type T ----

template <typename T>
struct Pieces {
  static constexpr int kCount = sizeof(T) == 4 ? 3 : 2;
};
template <>
struct Pieces<bfloat16> {
  static constexpr int kCount = 1;
};

// pieces[i][at]: the i-th of low in bits 0 to 15, of high above. Cut off, so each remainder is exact.
template <int kCount, int kRegisters>
__device__ __forceinline__ void split_pair(float low, float high, int at, unsigned (&pieces)[kCount][kRegisters]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    pieces[i][at] = upper_halves(low, high);
    if (i + 1 < kCount) {
      low -= float_of(bits_of(low) & 0xffff0000u);
      high -= float_of(bits_of(high) & 0xffff0000u);
    }
  }
}

// A sum of products of pieces. The tensor core cuts its sums off, always towards zero: a long chain of them would drift
// by half a unit in the last place each time. So only the small products are chained; each step's products of the first
// pieces start from zero, and their sum is added by an ordinary, rounded addition.
struct PieceSum {
  float sum[4] = {}, small[4] = {};

  template <int kCountA, int kCountB>
  __device__ __forceinline__ void add(const unsigned (&a)[kCountA][4], const unsigned (&b)[kCountB][2], int used_of_a) {
#pragma unroll
    for (int i = kCountA - 1; i >= 0; --i) {
#pragma unroll
      for (int j = kCountB - 1; j >= 0; --j) {
        if (i + j > 0 && i + j <= 3 && i < used_of_a) mma_bf16(small, a[i], b[j]);
      }
    }
    float first[4] = {};
    mma_bf16(first, a[0], b[0]);
    for (int i = 0; i < 4; ++i) sum[i] += first[i];
  }
  __device__ __forceinline__ float total(int i) const { return sum[i] + small[i]; }
};

// ---- shared memory: sizes known at launch ----

struct MatmulStorage {
  int32_t* inputs;             // [rows, kMostWidth]
  float *dt, *da;              // [rows]  da: the logarithm to base 2 of a token's decay
  float* folded;               // [rows]  what a folded token weighs in the new checkpoint
  float* E;                    // [tokens]
  float* M;                    // [tokens, M_pitch]; first the sums of log-decays
  uint16_t *B, *C;             // [pieces, rows or tokens, n_pitch]
  uint16_t* x;                 // [pieces, dims, s_pitch]; a tile's dims in the order of A's rows
  int32_t rows, tokens, dims;  // padded: to 16, to 8, 16 * warps
  int32_t n_pitch, s_pitch, M_pitch;
  // Pitches: eight rows of a fragment lie in different banks.

  template <int kState>
  LLAMBA_HOST_DEVICE size_t lay_out(char* bytes, int pieces, int32_t most_rows, int32_t most_tokens, int32_t warps) {
    rows = (most_rows + 15) / 16 * 16, tokens = (most_tokens + 7) / 8 * 8, dims = 16 * warps;
    n_pitch = kState + 16, s_pitch = rows + 8, M_pitch = rows + 8;
    char* next = bytes;
    const auto take = [&next](size_t count) {
      char* taken = next;
      next += (count + 15) / 16 * 16;
      return taken;
    };
    inputs = reinterpret_cast<int32_t*>(take(sizeof(int32_t) * rows * kMostWidth));
    dt = reinterpret_cast<float*>(take(sizeof(float) * rows));
    da = reinterpret_cast<float*>(take(sizeof(float) * rows));
    folded = reinterpret_cast<float*>(take(sizeof(float) * rows));
    E = reinterpret_cast<float*>(take(sizeof(float) * tokens));
    M = reinterpret_cast<float*>(take(sizeof(float) * tokens * M_pitch));
    B = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * rows * n_pitch));
    C = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * tokens * n_pitch));
    x = reinterpret_cast<uint16_t*>(take(sizeof(uint16_t) * pieces * dims * s_pitch));
    return static_cast<size_t>(next - bytes);
  }
};

__device__ __forceinline__ int32_t row_in_tile(int32_t dim) { return dim / 16 * 16 + dim % 16 / 2 + 8 * (dim % 2); }

// ---- the state of a warp's 16 dims: [n / 16][dim 2 g or 2 g + 1][4] ----

template <int kState>
struct MatmulState {
  float v[kState / 16][2][4];
};

template <typename S>
__device__ __forceinline__ void load_four(const S* p, bool vector, float (&v)[4]) {
  S four[4];
  if (vector) {
    using Bits = typename std::conditional<sizeof(S) == 4, uint4, uint2>::type;
    const Bits bits = load_global_once(reinterpret_cast<const Bits*>(p));
    memcpy(four, &bits, sizeof(bits));
  } else {
    for (int i = 0; i < 4; ++i) four[i] = load_global(p + i);
  }
  for (int i = 0; i < 4; ++i) v[i] = to_float(four[i]);
}
template <typename S>
__device__ __forceinline__ void store_four(S* p, bool vector, const float (&v)[4]) {
  S four[4];
  for (int i = 0; i < 4; ++i) from_float(v[i], &four[i]);
  if (vector) {
    using Bits = typename std::conditional<sizeof(S) == 4, uint4, uint2>::type;
    Bits bits;
    memcpy(&bits, four, sizeof(bits));
    store_global(reinterpret_cast<Bits*>(p), bits);
  } else {
    for (int i = 0; i < 4; ++i) store_global(p + i, four[i]);
  }
}

// The lane's part of checkpoint[slot, head, dim + i], i < 2: where it is, and whether it may be read in vectors.
template <typename S>
struct LaneCheckpoint {
  S* row[2];
  bool exists[2], vector;

  __device__ LaneCheckpoint(const llamba_mamba2_verify_args& args, int32_t slot, int32_t head, int32_t dim) {
    vector = true;
    for (int i = 0; i < 2; ++i) {
      row[i] = static_cast<S*>(args.checkpoint) + slot * args.checkpoint_stride_slot +
               head * args.checkpoint_stride_head + (dim + i) * args.checkpoint_stride_dim + threadIdx.x % 4 * 4;
      exists[i] = dim + i < args.headdim;
      vector &= reinterpret_cast<uintptr_t>(row[i]) % (4 * sizeof(S)) == 0;
    }
  }
};

template <typename S, int kState>
__device__ __forceinline__ void load_state(const llamba_mamba2_verify_args& args, int32_t slot, int32_t head,
                                           int32_t dim, MatmulState<kState>* state) {
  const LaneCheckpoint<S> lane(args, slot, head, dim);
#pragma unroll
  for (int k = 0; k < kState / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (16 * k < args.dstate && lane.exists[i]) load_four(lane.row[i] + 16 * k, lane.vector, state->v[k][i]);
    }
  }
}
template <typename S, int kState>
__device__ __forceinline__ void store_state(const llamba_mamba2_verify_args& args, int32_t slot, int32_t head,
                                            int32_t dim, const MatmulState<kState>& state) {
  const LaneCheckpoint<S> lane(args, slot, head, dim);
#pragma unroll
  for (int k = 0; k < kState / 16; ++k) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (16 * k < args.dstate && lane.exists[i]) store_four(lane.row[i] + 16 * k, lane.vector, state.v[k][i]);
    }
  }
}

// ---- stages ----

// A token's sums of log-decays from every earlier s (-1: the checkpoint) on its path; -infinity where s is not on it.
__device__ inline void sum_decays(const Mamba2Step& step, const MatmulStorage& shared) {
  const int32_t ntotal = step.live + step.ntokens;
  for (int32_t s = static_cast<int32_t>(threadIdx.x) - 1; s < shared.rows; s += blockDim.x) {
    float committed = 0.0f;  // after s up to the last live token
    for (int32_t t = s + 1; t < step.live; ++t) committed += shared.da[t];
    float folded = 0.0f;
    for (int32_t t = s + 1; t < step.fold; ++t) folded += shared.da[t];
    if (s >= 0) shared.folded[s] = s < step.fold ? shared.dt[s] * ex2_approx(folded) : ex2_approx(folded);
    for (int32_t k = 0; k < shared.tokens; ++k) {
      float sum = -INFINITY;
      if (k < step.ntokens && s < ntotal) {
        const int32_t t = step.live + k, parent = parent_of(step, t);
        if (s == t) {
          sum = 0.0f;
        } else if (s < step.live && parent < step.live) {
          sum = committed + shared.da[t];
        } else if (parent >= step.live && s < t) {
          sum = (s < 0 ? shared.E[parent - step.live] : shared.M[(parent - step.live) * shared.M_pitch + s]) +
                shared.da[t];
        }
      }
      if (s < 0) {
        shared.E[k] = sum;
      } else {
        shared.M[k * shared.M_pitch + s] = sum;
      }
    }
  }
}

// A lane's four neighbours (two registers of a fragment) from a row of pieces.
__device__ __forceinline__ uint2 load_fragment(const uint16_t* row) { return *reinterpret_cast<const uint2*>(row); }

// M = (C_k . B_s) dt_s 2^sum, by tiles of sixteen s and eight k, dealt to the warps.
template <typename T, int kState>
__device__ inline void make_M(const llamba_mamba2_verify_args& args, const Mamba2Step& step,
                              const MatmulStorage& shared) {
  constexpr int kPieces = Pieces<T>::kCount;
  const int32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int32_t s_tiles = (step.live + step.ntokens + 15) / 16, k_tiles = (step.ntokens + 7) / 8;
  for (int32_t tile = warp; tile < s_tiles * k_tiles; tile += warps) {
    const int32_t s = tile % s_tiles * 16 + g, k = tile / s_tiles * 8;
    PieceSum products;
    for (int32_t n = 4 * t; n < args.dstate; n += 16) {
      unsigned of_B[kPieces][4], of_C[kPieces][2];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const uint2 row = load_fragment(shared.B + (i * shared.rows + s) * shared.n_pitch + n);
        const uint2 below = load_fragment(shared.B + (i * shared.rows + s + 8) * shared.n_pitch + n);
        const uint2 column = load_fragment(shared.C + (i * shared.tokens + k + g) * shared.n_pitch + n);
        of_B[i][0] = row.x, of_B[i][1] = below.x, of_B[i][2] = row.y, of_B[i][3] = below.y;
        of_C[i][0] = column.x, of_C[i][1] = column.y;
      }
      products.add(of_B, of_C, kPieces);
    }
    for (int i = 0; i < 4; ++i) {
      const int32_t row = s + 8 * (i / 2), column = k + 2 * t + i % 2;
      float* entry = shared.M + column * shared.M_pitch + row;
      *entry = *entry == -INFINITY ? 0.0f : products.total(i) * (shared.dt[row] * ex2_approx(*entry));
    }
  }
}

// d[dim 2 g + i / 2, token k + 2 t + i % 2] of eight tokens from k.
template <typename T, int kState>
__device__ __forceinline__ void make_y(const llamba_mamba2_verify_args& args, const Mamba2Step& step,
                                       const MatmulStorage& shared, const MatmulState<kState>& state, int state_pieces,
                                       int32_t tile_row, int32_t k, float (&d)[4]) {
  constexpr int kPieces = Pieces<T>::kCount;
  const int32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  PieceSum products;
  if (step.position > 0) {
#pragma unroll
    for (int n = 0; n < kState / 16; ++n) {
      if (16 * n >= args.dstate) break;
      unsigned of_state[3][4], of_C[kPieces][2];
      split_pair(state.v[n][0][0], state.v[n][0][1], 0, of_state);
      split_pair(state.v[n][1][0], state.v[n][1][1], 1, of_state);
      split_pair(state.v[n][0][2], state.v[n][0][3], 2, of_state);
      split_pair(state.v[n][1][2], state.v[n][1][3], 3, of_state);
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const uint2 column = load_fragment(shared.C + (i * shared.tokens + k + g) * shared.n_pitch + 16 * n + 4 * t);
        of_C[i][0] = column.x, of_C[i][1] = column.y;
      }
      products.add(of_state, of_C, state_pieces);
    }
    for (int i = 0; i < 4; ++i) {
      const float decay = ex2_approx(shared.E[k + 2 * t + i % 2]);
      products.sum[i] *= decay;
      products.small[i] *= decay;
    }
  }
  for (int32_t s = 0; s < step.live + step.ntokens; s += 16) {
    unsigned of_x[kPieces][4], of_M[3][2];
    const float* M = shared.M + (k + g) * shared.M_pitch + s + 2 * t;
    split_pair(M[0], M[1], 0, of_M);
    split_pair(M[8], M[9], 1, of_M);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint16_t* x = shared.x + (i * shared.dims + tile_row + g) * shared.s_pitch + s + 2 * t;
      const uint16_t* below = x + 8 * shared.s_pitch;
      of_x[i][0] = *reinterpret_cast<const unsigned*>(x);
      of_x[i][1] = *reinterpret_cast<const unsigned*>(below);
      of_x[i][2] = *reinterpret_cast<const unsigned*>(x + 8);
      of_x[i][3] = *reinterpret_cast<const unsigned*>(below + 8);
    }
    products.add(of_x, of_M, kPieces);
  }
  for (int i = 0; i < 4; ++i) d[i] = products.total(i);
}

// The value whose pieces lie `stride` apart.
template <typename T>
__device__ __forceinline__ float sum_pieces(const uint16_t* piece, int32_t stride) {
  float sum = 0.0f;
#pragma unroll
  for (int i = Pieces<T>::kCount - 1; i >= 0; --i) sum += to_float(bfloat16{piece[i * stride]});
  return sum;
}

template <typename T, int kState>
__device__ inline void fold_state(const llamba_mamba2_verify_args& args, const Mamba2Step& step,
                                  const MatmulStorage& shared, int32_t tile_row, MatmulState<kState>* state) {
  const int32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  float decay = 0.0f;
  for (int32_t s = 0; s < step.fold; ++s) decay += shared.da[s];
  decay = ex2_approx(decay);
#pragma unroll
  for (int n = 0; n < kState / 16; ++n) {
    for (int i = 0; i < 4; ++i) state->v[n][0][i] *= decay, state->v[n][1][i] *= decay;
  }
  for (int32_t s = 0; s < step.fold; ++s) {
    const uint16_t* x = shared.x + (tile_row + g) * shared.s_pitch + s;
    const float x0 = shared.folded[s] * sum_pieces<T>(x, shared.dims * shared.s_pitch);
    const float x1 = shared.folded[s] * sum_pieces<T>(x + 8 * shared.s_pitch, shared.dims * shared.s_pitch);
#pragma unroll
    for (int n = 0; n < kState / 16; ++n) {
      if (16 * n >= args.dstate) break;
      for (int i = 0; i < 4; ++i) {
        const float B = sum_pieces<T>(shared.B + s * shared.n_pitch + 16 * n + 4 * t + i, shared.rows * shared.n_pitch);
        state->v[n][0][i] = fmaf(x0, B, state->v[n][0][i]);
        state->v[n][1][i] = fmaf(x1, B, state->v[n][1][i]);
      }
    }
  }
}

template <typename T, int kState>
__global__ void __launch_bounds__(32 * kMostMatmulWarps) mamba2_matmul_kernel(MatmulParams params) {
  constexpr int kPieces = Pieces<T>::kCount;
  const llamba_mamba2_verify_args& args = params.args;
  const int32_t batch_idx = blockIdx.x / params.row_blocks, head = blockIdx.y;
  const int32_t warps = blockDim.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const int32_t first_dim = blockIdx.x % params.row_blocks * 16 * warps, tile_row = threadIdx.x / 32 * 16;
  const int32_t dim = first_dim + tile_row + 2 * g;  // and the one after it
  const Mamba2Step step = read_step(args, batch_idx, true);

  MatmulState<kState> state = {};
  if (step.valid && step.position > 0) {
    LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, load_state<S>(args, step.slot, head, dim, &state));
  }
  MatmulStorage shared;
  shared.lay_out<kState>(reinterpret_cast<char*>(&shared_storage<uint4>()), kPieces, args.cursor.capacity,
                         args.max_ntokens, warps);
  const int32_t ntokens = step.valid ? step.ntokens : 0, ntotal = step.valid ? step.live + ntokens : 0;
  if (step.valid) {
    find_inputs(args, step, shared.inputs);
    // Padding of the fragments: zero pieces, so that what lies there adds nothing.
    unsigned* padding = reinterpret_cast<unsigned*>(shared.B);
    const int32_t words =
        static_cast<int32_t>((reinterpret_cast<char*>(shared.x + kPieces * shared.dims * shared.s_pitch) -
                              reinterpret_cast<char*>(padding)) /
                             4);
    for (int32_t i = threadIdx.x; i < words; i += blockDim.x) padding[i] = 0;
    __syncthreads();  // the ids of all raw inputs, and the zeros, before conv and dt

    for (int32_t i = threadIdx.x; i < shared.rows; i += blockDim.x) {
      const float dt = i < ntotal ? step_size<T>(args, step, shared.inputs, i, head, first_dim == 0) : 0.0f;
      shared.dt[i] = dt;
      shared.da[i] = dt * load_global(args.A + head) * kLog2e;
    }
    const int32_t heads_per_x = args.nheads / args.x_heads, heads_per_B = args.nheads / args.B_heads,
                  heads_per_C = args.nheads / args.C_heads;
    const int32_t B_channel = args.x_heads * args.headdim, C_channel = B_channel + args.B_heads * args.dstate;
    const auto token = [](int32_t i) { return i; };
    const auto keep_row = [&](uint16_t* kept, int32_t pitch, int32_t row, int32_t c, const float (&y)[kConvVector]) {
      unsigned pieces[kPieces][1];
      split_pair(y[0], y[1], 0, pieces);
      for (int i = 0; i < kPieces; ++i)
        *reinterpret_cast<unsigned*>(kept + (i * pitch + row) * shared.n_pitch + c) = pieces[i][0];
    };
    const int32_t dims = args.headdim - first_dim < 16 * warps ? args.headdim - first_dim : 16 * warps;
    conv_part<T>(args, step, shared.inputs,
                 {head / heads_per_x * args.headdim + first_dim, dims, 0, ntotal, head % heads_per_x == 0}, token,
                 [&](int32_t visit, int32_t c, const float (&y)[kConvVector]) {
                   unsigned pieces[kPieces][1];
                   split_pair(y[0], y[1], 0, pieces);
                   for (int i = 0; i < kPieces; ++i) {
                     uint16_t* x = shared.x + (i * shared.dims + row_in_tile(c)) * shared.s_pitch + visit;
                     x[0] = static_cast<uint16_t>(pieces[i][0]);
                     x[8 * shared.s_pitch] = static_cast<uint16_t>(pieces[i][0] >> 16);
                   }
                 });
    conv_part<T>(args, step, shared.inputs,
                 {B_channel + head / heads_per_B * args.dstate, args.dstate, 0, ntotal,
                  first_dim == 0 && head % heads_per_B == 0},
                 token, [&](int32_t visit, int32_t c, const float (&y)[kConvVector]) {
                   keep_row(shared.B, shared.rows, visit, c, y);
                 });
    conv_part<T>(args, step, shared.inputs,
                 {C_channel + head / heads_per_C * args.dstate, args.dstate, step.live, ntokens,
                  first_dim == 0 && head % heads_per_C == 0},
                 token, [&](int32_t visit, int32_t c, const float (&y)[kConvVector]) {
                   keep_row(shared.C, shared.tokens, visit - step.live, c, y);
                 });
    __syncthreads();  // dt and the log-decays of all tokens, before they are summed
    sum_decays(step, shared);
    __syncthreads();  // B, C and the sums, before M
    make_M<T, kState>(args, step, shared);
    __syncthreads();  // M of all warps
  }

  T* out = static_cast<T*>(args.out) + batch_idx * args.out_stride_batch + head * args.out_stride_head + dim;
  const int state_pieces = args.checkpoint_dtype == LLAMBA_FLOAT32   ? 3
                           : args.checkpoint_dtype == LLAMBA_FLOAT16 ? 2
                                                                     : 1;
  const float D = args.D != nullptr ? load_global(args.D + head) : 0.0f;
  for (int32_t k = 0; k < args.max_ntokens; k += 8) {
    float d[4] = {};
    if (k < ntokens) make_y<T>(args, step, shared, state, state_pieces, tile_row, k, d);
    for (int i = 0; i < 2; ++i) {
      const int32_t token = k + 2 * t + i;
      if (token >= args.max_ntokens) continue;
      T pair[2] = {};
      for (int j = 0; j < 2 && token < ntokens; ++j) {
        const uint16_t* x = shared.x + (tile_row + g + 8 * j) * shared.s_pitch + step.live + token;
        from_float(fmaf(D, sum_pieces<T>(x, shared.dims * shared.s_pitch), d[i + 2 * j]), &pair[j]);
      }
      if (dim < args.headdim) store_vector(out + token * args.out_stride_token, args.headdim - dim, pair);
    }
  }
  if (step.valid && step.fold > 0) {
    fold_state<T>(args, step, shared, tile_row, &state);
    LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, store_state<S>(args, step.slot, head, dim, state));
  }
}

}  // namespace llamba
