// mamba2_matmul_kernel -- a step of some heads of a sequence in closed form: for the step's token k on its path,
//   y_k = 2^E_k (S C_k) + sum over s of M_ks x_s + D x_k,   M_ks = (C_k . B_s) dt_s 2^(sum of log-decays after s up to k)
// with s over the live rows, the ancestors of k and k itself (Mamba-2, arXiv 2405.21060, section 6; the mask is a tree's).
// Grid     (batch x row blocks, nheads / heads)            Block  a warp a tile, 1 to 5; beyond dstate 128 two, 1 or 2
// Owns     one block owns 16 * tiles dims of `heads` heads that share B and C; it reads their checkpoint once
// Threads  a tile is 16 dims x up to 128 of dstate, in its warp's registers. Lane 4 g + t holds dims 2 g, 2 g + 1 at
//          n = 16 k + 4 t .. +3: rows g and g + 8 of the tensor core's A, whose column order is free and is chosen so
//          that a lane's are four neighbours in memory
// Shared   MatmulStorage: conv outputs of B, C (a row a token) and x (a column a token) as bfloat16 pieces, G, M
// Flow     1 state -> registers, raw inputs' ids; then for each head:  2 dt, conv of x; for the first of B and C, too
//          3 for the first G = C . B  4 M  5 y, eight tokens at a time  6 folded state -> checkpoint, next head's state ->
//          registers. kBulk (Hopper): bulk copies bring the next two heads' states into shared memory, from where they
//          go to registers after 4
// Barriers after 1, 2, 3, 4 and 6; in 5 if two warps share dims
// Numerics mamba2_pieces.cuh; sums of log-decays and the fold in fp32. Bits depend on the step's tokens and the fold
// Requires max_ntokens <= 64, shared memory for the session's rows        (checked in mamba2_matmul_launch.cu)
#pragma once

#include "mamba2_verify/mamba2_matmul_state.cuh"
#include "mamba2_verify/mamba2_pieces.cuh"

namespace llamba {

// Tiles of a block; beyond dstate 128 each has two warps.
constexpr int32_t most_tiles(int32_t padded_dstate) { return padded_dstate > kMostWarpState ? 2 : 5; }
constexpr int32_t most_matmul_threads(int32_t padded_dstate) {
  return 32 * most_tiles(padded_dstate) * (padded_dstate > kMostWarpState ? 2 : 1);
}

struct MatmulParams {
  llamba_mamba2_verify_args args;
  int32_t row_blocks, tiles, heads;  // of a block: tiles, heads
  MatmulLayout layout;
};

namespace {

// The channels of a block: of a head's x, and of the B and C that all its heads share.
struct MatmulChannels {
  ConvPart x, B, C;
};

__device__ __forceinline__ MatmulChannels channels_of(const llamba_mamba2_verify_args& args, const Step& step,
                                                      const MatmulPlace& place, int32_t dims) {
  const int32_t heads_per_x = args.nheads / args.x_heads, heads_per_B = args.nheads / args.B_heads,
                heads_per_C = args.nheads / args.C_heads, ntotal = step.live + step.ntokens;
  const int32_t first_B = args.x_heads * args.headdim, first_C = first_B + args.B_heads * args.dstate;
  const bool first_block = place.first_dim == 0;
  return {{place.head / heads_per_x * args.headdim + place.first_dim, dims, 0, ntotal, place.head % heads_per_x == 0},
          {first_B + place.head / heads_per_B * args.dstate, args.dstate, 0, ntotal,
           first_block && place.head % heads_per_B == 0},
          {first_C + place.head / heads_per_C * args.dstate, args.dstate, step.live, step.ntokens,
           first_block && place.head % heads_per_C == 0}};
}

// conv of x, and of B and C if `all`, into pieces: B and C a row a token, x a column.
template <typename T>
__device__ __forceinline__ void make_conv(const llamba_mamba2_verify_args& args, const Step& step,
                                          const MatmulStorage& shared, const MatmulChannels& channels, bool all) {
  constexpr int kPieces = Pieces<T>::kCount;
  const int32_t begin_B = conv_items<T>(channels.x), begin_C = begin_B + conv_items<T>(channels.B);
  const int32_t end = all ? begin_C + conv_items<T>(channels.C) : begin_B;
#pragma unroll 1
  for (int32_t item = threadIdx.x; item < end; item += blockDim.x) {
    const bool is_x = item < begin_B, is_B = item < begin_C;
    const ConvPart part = is_x ? channels.x : is_B ? channels.B : channels.C;
    const int32_t plane =
        is_x ? shared.at.dims * shared.at.s_pitch : (is_B ? shared.at.rows : shared.at.tokens) * shared.at.n_pitch;
    uint16_t* kept = is_x ? shared.x() : is_B ? shared.B() : shared.C() - step.live * shared.at.n_pitch;
    conv_item<T>(args, step, shared.inputs(), shared.kept(), part,
                 item - (is_x   ? 0
                         : is_B ? begin_B
                                : begin_C),
                 [&](int32_t token, int32_t c, const float (&y)[kConvVector]) {
                   unsigned pieces[kPieces][1];
                   split_pair(y[0], y[1], 0, pieces);
                   for (int i = 0; i < kPieces; ++i) {
                     if (is_x) {
                       uint16_t* column = kept + i * plane + row_in_tile(c) * shared.at.s_pitch + token;
                       column[0] = static_cast<uint16_t>(pieces[i][0]);
                       column[8 * shared.at.s_pitch] = static_cast<uint16_t>(pieces[i][0] >> 16);
                     } else {
                       uint16_t* row = kept + i * plane + token * shared.at.n_pitch + c;
                       *reinterpret_cast<unsigned*>(row) = pieces[i][0];
                     }
                   }
                 });
  }
}

// A lane's four neighbours from a row of pieces: two registers of a fragment.
__device__ __forceinline__ uint2 load_fragment(const uint16_t* row) { return *reinterpret_cast<const uint2*>(row); }

// The four values of such pieces, `stride` apart.
template <typename T>
__device__ __forceinline__ void sum_fragments(const uint16_t* row, int32_t stride, float (&values)[4]) {
#pragma unroll
  for (int i = Pieces<T>::kCount - 1; i >= 0; --i) {
    const uint2 pieces = load_fragment(row + i * stride);
    const float four[4] = {float_of(pieces.x << 16), float_of(pieces.x & 0xffff0000u), float_of(pieces.y << 16),
                           float_of(pieces.y & 0xffff0000u)};
    for (int j = 0; j < 4; ++j) values[j] = i == Pieces<T>::kCount - 1 ? four[j] : values[j] + four[j];
  }
}

// G = C . B, by tiles of sixteen s and eight k, dealt to the warps.
template <typename T>
__device__ inline void make_G(const llamba_mamba2_verify_args& args, const Step& step, const MatmulStorage& shared,
                              const MatmulPlace& place) {
  constexpr int kPieces = Pieces<T>::kCount;
  const int32_t g = place.g, t = place.t, warps = blockDim.x / 32;
  const int32_t s_tiles = (step.live + step.ntokens + 15) / 16, k_tiles = (step.ntokens + 7) / 8;
  for (int32_t tile = threadIdx.x / 32; tile < s_tiles * k_tiles; tile += warps) {
    const int32_t s = tile % s_tiles * 16 + g, k = tile / s_tiles * 8;
    PieceSum products;
#pragma unroll 1
    for (int32_t n = 4 * t; n < args.dstate; n += 16) {
      unsigned of_B[kPieces][4], of_C[kPieces][2];
#pragma unroll
      for (int i = 0; i < kPieces; ++i) {
        const uint2 row = load_fragment(shared.B() + (i * shared.at.rows + s) * shared.at.n_pitch + n);
        const uint2 below = load_fragment(shared.B() + (i * shared.at.rows + s + 8) * shared.at.n_pitch + n);
        const uint2 column = load_fragment(shared.C() + (i * shared.at.tokens + k + g) * shared.at.n_pitch + n);
        of_B[i][0] = row.x, of_B[i][1] = below.x, of_B[i][2] = row.y, of_B[i][3] = below.y;
        of_C[i][0] = column.x, of_C[i][1] = column.y;
      }
      products.add(of_B, of_C, kPieces);
    }
    for (int i = 0; i < 4; ++i) {
      shared.G()[(k + 2 * t + i % 2) * shared.at.M_pitch + s + 8 * (i / 2)] = products.total(i);
    }
  }
}

// M, E and `folded`: a thread has one s (-1: the checkpoint) and goes through the tokens, parents first. Until the end
// M holds the sum of log-decays after s; -infinity where s is not on the token's path.
__device__ inline void make_M(const Step& step, const MatmulStorage& shared) {
  const int32_t ntotal = step.live + step.ntokens;
  for (int32_t s = static_cast<int32_t>(threadIdx.x) - 1; s < shared.at.rows; s += blockDim.x) {
    float folded = 0.0f, committed = 0.0f;  // after s up to the last folded, the last live token
    for (int32_t t = s + 1; t < step.fold; ++t) folded += shared.da()[t];
    for (int32_t t = s + 1; t < step.live; ++t) committed += shared.da()[t];
    if (s >= 0) shared.folded()[s] = shared.dt()[s] * ex2_approx(folded);
    float* column = s < 0 ? shared.E() : shared.M() + s;
    const int32_t pitch = s < 0 ? 1 : shared.at.M_pitch;
    float sum = committed;  // of the token before
    for (int32_t k = 0; k < step.ntokens; ++k) {
      const int32_t t = step.live + k, parent = parent_of(step, t);
      if (parent < step.live) {
        sum = s < step.live ? committed : -INFINITY;
      } else if (parent != t - 1) {
        sum = column[(parent - step.live) * pitch];
      }
      sum = s == t ? 0.0f : s < t ? sum + shared.da()[t] : -INFINITY;
      column[k * pitch] = sum;
    }
    if (s < 0) continue;
    for (int32_t k = 0; k < shared.at.tokens; ++k) {
      float* entry = shared.M() + k * shared.at.M_pitch + s;
      const bool on_path = k < step.ntokens && s < ntotal && *entry != -INFINITY;
      *entry = on_path ? shared.G()[k * shared.at.M_pitch + s] * (shared.dt()[s] * ex2_approx(*entry)) : 0.0f;
    }
  }
}

// 2^E (S C) of eight tokens from k: the warp's part of dstate.
template <typename T, int kState>
__device__ __forceinline__ void add_state(const MatmulStorage& shared, const MatmulPlace& place,
                                          const MatmulState<kState>& state, int state_pieces, int32_t k,
                                          PieceSum* products) {
  constexpr int kPieces = Pieces<T>::kCount;
#pragma unroll
  for (int n = 0; n < MatmulState<kState>::kSteps; ++n) {
    if (n >= place.steps) break;
    unsigned of_state[3][4], of_C[kPieces][2];
    split_pair(state.v[n][0][0], state.v[n][0][1], 0, of_state);
    split_pair(state.v[n][1][0], state.v[n][1][1], 1, of_state);
    split_pair(state.v[n][0][2], state.v[n][0][3], 2, of_state);
    split_pair(state.v[n][1][2], state.v[n][1][3], 3, of_state);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint2 column = load_fragment(shared.C() + (i * shared.at.tokens + k + place.g) * shared.at.n_pitch +
                                         place.first_n + 16 * n + 4 * place.t);
      of_C[i][0] = column.x, of_C[i][1] = column.y;
    }
    products->add(of_state, of_C, state_pieces);
  }
  for (int i = 0; i < 4; ++i) {
    const float decay = ex2_approx(shared.E()[k + 2 * place.t + i % 2]);
    products->sum[i] *= decay;
    products->small[i] *= decay;
  }
}

// M x of eight tokens from k.
template <typename T>
__device__ __forceinline__ void add_tokens(const Step& step, const MatmulStorage& shared, const MatmulPlace& place,
                                           int32_t k, PieceSum* products) {
  constexpr int kPieces = Pieces<T>::kCount;
#pragma unroll 1
  for (int32_t s = 0; s < step.live + step.ntokens; s += 16) {
    unsigned of_x[kPieces][4], of_M[3][2];
    const float* M = shared.M() + (k + place.g) * shared.at.M_pitch + s + 2 * place.t;
    split_pair(M[0], M[1], 0, of_M);
    split_pair(M[8], M[9], 1, of_M);
#pragma unroll
    for (int i = 0; i < kPieces; ++i) {
      const uint16_t* x =
          shared.x() + (i * shared.at.dims + place.tile_row + place.g) * shared.at.s_pitch + s + 2 * place.t;
      const uint16_t* below = x + 8 * shared.at.s_pitch;
      of_x[i][0] = *reinterpret_cast<const unsigned*>(x);
      of_x[i][1] = *reinterpret_cast<const unsigned*>(below);
      of_x[i][2] = *reinterpret_cast<const unsigned*>(x + 8);
      of_x[i][3] = *reinterpret_cast<const unsigned*>(below + 8);
    }
    products->add(of_x, of_M, kPieces);
  }
}

template <typename T, int kState>
__device__ __forceinline__ void fold_state(const Step& step, const MatmulStorage& shared, const MatmulPlace& place,
                                           MatmulState<kState>* state) {
  float decay = 0.0f;
  for (int32_t s = 0; s < step.fold; ++s) decay += shared.da()[s];
  decay = ex2_approx(decay);
#pragma unroll
  for (int n = 0; n < MatmulState<kState>::kSteps; ++n) {
    for (int i = 0; i < 4; ++i) state->v[n][0][i] *= decay, state->v[n][1][i] *= decay;
  }
#pragma unroll 1
  for (int32_t s = 0; s < step.fold; ++s) {
    const uint16_t* x = shared.x() + (place.tile_row + place.g) * shared.at.s_pitch + s;
    const float x0 = shared.folded()[s] * sum_pieces<T>(x, shared.at.dims * shared.at.s_pitch);
    const float x1 = shared.folded()[s] * sum_pieces<T>(x + 8 * shared.at.s_pitch, shared.at.dims * shared.at.s_pitch);
    const uint16_t* B = shared.B() + s * shared.at.n_pitch + place.first_n + 4 * place.t;
#pragma unroll
    for (int n = 0; n < MatmulState<kState>::kSteps; ++n) {
      if (n >= place.steps) break;
      float values[4];
      sum_fragments<T>(B + 16 * n, shared.at.rows * shared.at.n_pitch, values);
      for (int i = 0; i < 4; ++i) {
        state->v[n][0][i] = fmaf(x0, values[i], state->v[n][0][i]);
        state->v[n][1][i] = fmaf(x1, values[i], state->v[n][1][i]);
      }
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_y(const llamba_mamba2_verify_args& args, const Step& step,
                                        const MatmulStorage& shared, const MatmulPlace& place, int32_t k, float D,
                                        const PieceSum& products) {
  T* out = static_cast<T*>(args.out) + step.batch_idx * args.out_stride_batch + place.head * args.out_stride_head;
  for (int i = 0; i < 2; ++i) {
    const int32_t token = k + 2 * place.t + i;
    if (token >= args.max_ntokens || place.dim >= args.headdim) continue;
    T pair[kConvVector] = {};
    for (int j = 0; j < 2 && step.valid && token < step.ntokens; ++j) {
      const uint16_t* x = shared.x() + (place.tile_row + place.g + 8 * j) * shared.at.s_pitch + step.live + token;
      from_float(fmaf(D, sum_pieces<T>(x, shared.at.dims * shared.at.s_pitch), products.total(i + 2 * j)), &pair[j]);
    }
    store_pair(out + token * args.out_stride_token + place.dim, args.headdim - place.dim, pair);
  }
}

}  // namespace

template <typename T, int kState, bool kBulk>
__global__ void __launch_bounds__(most_matmul_threads(kState), 1) mamba2_matmul_kernel(MatmulParams params) {
  if (kBulk && !kHasBulkCopies) return;
  constexpr bool kHalves = kState > kMostWarpState;
  const llamba_mamba2_verify_args& args = params.args;
  const int32_t warp = threadIdx.x / 32, state_bytes = args.checkpoint_dtype == LLAMBA_FLOAT32 ? 4 : 2;
  const int state_pieces = args.checkpoint_dtype == LLAMBA_FLOAT32   ? 3
                           : args.checkpoint_dtype == LLAMBA_FLOAT16 ? 2
                                                                     : 1;
  MatmulPlace place;
  place.head = blockIdx.y * params.heads;
  place.first_dim = blockIdx.x % params.row_blocks * 16 * params.tiles;
  place.tile_row = warp % params.tiles * 16;
  place.first_n = warp / params.tiles * kMostWarpState;
  const int32_t rest = (args.dstate - place.first_n) / 16;
  place.steps = rest < MatmulState<kState>::kSteps ? rest : MatmulState<kState>::kSteps;
  place.g = threadIdx.x % 32 / 4, place.t = threadIdx.x % 4;
  place.dim = place.first_dim + place.tile_row + 2 * place.g;
  const int32_t left = args.headdim - place.first_dim, dims = left < 16 * params.tiles ? left : 16 * params.tiles;
  Step step = read_step(args, blockIdx.x / params.row_blocks, true);
  step.valid = step.valid && step.live + step.ntokens <= params.layout.rows;
  const bool has_state = step.valid && step.position > 0;
  const int32_t ntokens = step.valid ? step.ntokens : 0, ntotal = step.valid ? step.live + ntokens : 0;

  const MatmulStorage shared{reinterpret_cast<char*>(&shared_storage<uint4>()), params.layout};
  MatmulState<kState> state = {};
  if (!kBulk && has_state) {  // on its way while conv and M are made
    LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, load_state<S>(args, step.slot, place, &state));
  }
  if (step.valid) {
    if (kBulk && has_state && threadIdx.x < 32) {
      if (threadIdx.x < kStages) mbarrier_init(shared.arrived() + threadIdx.x, 1);
      mbarrier_init_fence();
      __syncwarp();
      for (int32_t i = 0; i < kStages && i < params.heads; ++i) {
        fetch_state(args, step, shared, place.head + i, place.first_dim, dims, state_bytes, i);
      }
    }
    find_inputs(args, step, shared.inputs());
    for (int32_t i = threadIdx.x; i < ntotal; i += blockDim.x) {
      shared.kept()[i] = i < step.live ? -1 : new_row(args, step, i - step.live);
    }
    // Padding of the fragments: zero pieces, so that what lies there adds nothing.
    uint4* padding = shared.find<uint4>(shared.at.B);
    const int32_t vectors = (shared.at.end_of_x - shared.at.B) / static_cast<int32_t>(sizeof(uint4));
    for (int32_t i = threadIdx.x; i < vectors; i += blockDim.x) padding[i] = uint4{0, 0, 0, 0};
    __syncthreads();  // the ids of all raw inputs, the zeros and the bulk copies' barriers, before their first use
  }

#pragma unroll 1
  for (int32_t i = 0;; ++i) {
    if (step.valid) {
      const float A = load_global(args.A + place.head);
      for (int32_t j = threadIdx.x; j < shared.at.rows; j += blockDim.x) {
        const float dt =
            j < ntotal ? step_size<T>(args, step, shared.inputs(), j, place.head, place.first_dim == 0) : 0.0f;
        shared.dt()[j] = dt;
        shared.da()[j] = dt * A * kLog2e;
      }
      make_conv<T>(args, step, shared, channels_of(args, step, place, dims), i == 0);
      if (i == 0) {
        __syncthreads();  // B and C, before G
        make_G<T>(args, step, shared, place);
      }
      __syncthreads();  // dt, G and x, before M and y
      make_M(step, shared);
      __syncthreads();  // M, E and folded of all tokens
      if (kBulk && has_state) {
        mbarrier_wait(shared.arrived() + i % kStages, i / kStages % 2);
        LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S,
                            load_staged_state<S>(shared.stage(i % kStages), shared.at.stage_pitch, place, &state));
      }
    }
    const float D = args.D != nullptr ? load_global(args.D + place.head) : 0.0f;
#pragma unroll 1
    for (int32_t k = 0; k < args.max_ntokens; k += 8) {
      PieceSum products;
      if (has_state && k < ntokens) add_state<T>(shared, place, state, state_pieces, k, &products);
      if (kHalves) {  // the upper half's warp hands its sums to the lower half's
        float* sums = shared.halves() + (place.tile_row / 16 * 32 + threadIdx.x % 32) * 4;
        if (place.first_n > 0) {
          for (int j = 0; j < 4; ++j) sums[j] = products.total(j);
        }
        __syncthreads();  // the sums are there
        if (place.first_n == 0) {
          for (int j = 0; j < 4; ++j) products.sum[j] += sums[j];
        }
        __syncthreads();  // they are read, before those of the next tokens
      }
      if (place.first_n > 0) continue;
      if (k < ntokens) add_tokens<T>(step, shared, place, k, &products);
      store_y<T>(args, step, shared, place, k, D, products);
    }
    if (step.valid && step.fold > 0) {
      fold_state<T>(step, shared, place, &state);
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, store_state<S>(args, step.slot, place, state));
    }
    if (i + 1 == params.heads) break;
    __syncthreads();  // x, dt, M and the stage are read, before the next head's
    if (kBulk && has_state && i + kStages < params.heads && threadIdx.x < 32) {
      fetch_state(args, step, shared, place.head + kStages, place.first_dim, dims, state_bytes, i % kStages);
    }
    ++place.head;
    if (!has_state) state = {};
    if (!kBulk && has_state) {
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, load_state<S>(args, step.slot, place, &state));
    }
  }
}

}  // namespace llamba
