// mamba2_verify, the arithmetic of one instruction set.
//   dt = softplus(dt + dt_bias);   state = exp(dt A) state + (dt x) B;   y = state . C + D x
// Work      an item is sixteen dims of one head of one sequence, taken from the checkpoint through all tokens of its
//           step. A thread's items are neighbours: the conv outputs of B, C and x are kept while the head group lasts
// Registers a tile of the state: kTileVecs vectors, rows of the block x vectors of dstate. Per token: one load of B for
//           all rows, a multiplication and a fused multiply-add per vector, one more for the product with C
// Branches  of a tree: a state that a later token starts from is kept in scratch, tile by tile, and loaded again there;
//           the checkpoint is read once
// Numerics  a token's results depend on the tokens on its own path alone. Every state element takes the same
//           operations in the same order whatever the window, the live rows, the fold or the tree; lane l of vector v
//           holds dstate index 16 v + l; the dot product with C adds the vectors in order, then the lanes in the fixed
//           tree of vec.h. Conv outputs are rounded to the activation dtype before use
#include "common/vec.h"
#include "conv1d_verify/conv1d_vec.h"
#include "mamba2_verify/mamba2_verify_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// The tile must fit the registers beside B and the decay: AVX-512 has 32 of one vec16, AVX2 16 of half a one.
constexpr int kTileVecs = kNativeLanes == 16 ? 16 : kNativeLanes == 8 ? 4 : 2;
// The checkpoint streams through once, faster than the processor foresees: each tile asks for what comes so much later.
constexpr int kPrefetchBytes = 4096;

struct Scratch {
  const void** inputs;  // [ntotal, width] see find_inputs
  float* x;             // [ntotal, x_stride] conv outputs of the current x head
  float* B;             // [ntotal, dstate]
  float* C;             // [ntokens, dstate]
  float* dtx;           // [ntotal, kBlock] dt x of the current block
  float* products;      // [ntokens, kBlock, kLanes] state times C, not yet summed over the lanes
  float* branches;      // [nbranches, kTileVecs, kLanes]
  float* dt;            // [ntotal] and up to a whole vector
  float* decay;         // [ntotal] and up to a whole vector
};

// ---- inputs ----

// Step sizes and decays of one head for all tokens; the new tokens' raw dt go to their rows if this call owns them.
template <typename T>
void prepare_dt(const llamba_mamba2_verify_args& args, const StepSequence& sequence, int32_t head, bool owns_rows,
                const Scratch& scratch) {
  T* slot_rows = static_cast<T*>(args.dt_rows) + sequence.slot * args.dt_rows_stride_slot + head;
  const T* new_tokens = static_cast<const T*>(args.dt) + sequence.batch_idx * args.dt_stride_batch + head;
  const float bias = args.dt_bias ? args.dt_bias[head] : 0.0f;
  for (int32_t t = 0; t < sequence.live + sequence.ntokens; ++t) {
    const StepToken& token = sequence.tokens[t];
    const T raw = t < sequence.live ? slot_rows[token.row * args.dt_rows_stride_row]
                                    : new_tokens[(t - sequence.live) * args.dt_stride_token];
    if (t >= sequence.live && owns_rows) slot_rows[token.row * args.dt_rows_stride_row] = raw;
    scratch.dt[t] = to_float(raw);
  }
  for (int32_t t = 0; t < sequence.live + sequence.ntokens; t += kLanes) {
    const vec16 dt = softplus(add(load(scratch.dt + t), broadcast(bias)));
    store(scratch.dt + t, dt);
    store(scratch.decay + t, exp(mul(dt, broadcast(args.A[head]))));
  }
}

// ---- scan ----

template <int kRows, int kVecs>
struct Tile {
  vec16 state[kRows][kVecs];

  LLAMBA_INLINE void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) state[r][v] = broadcast(0.0f);
    }
  }
  LLAMBA_INLINE void load_branch(const float* p) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) state[r][v] = load(p + (r * kVecs + v) * kLanes);
    }
  }
  template <typename S>
  LLAMBA_INLINE void load_from(const S* p, int64_t row_stride) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        __builtin_prefetch(reinterpret_cast<const char*>(p + r * row_stride + v * kLanes) + kPrefetchBytes);
        state[r][v] = load(p + r * row_stride + v * kLanes);
      }
    }
  }
  template <typename S>
  LLAMBA_INLINE void store_to(S* p, int64_t row_stride) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) store(p + r * row_stride + v * kLanes, state[r][v]);
    }
  }
  template <typename S>
  LLAMBA_INLINE void round_to() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) state[r][v] = rounded_to<S>(state[r][v]);
    }
  }
  // state = decay state + dtx B
  LLAMBA_INLINE void step(const float* dtx, const float* B, float decay) {
    const vec16 decay_lanes = broadcast(decay);
    vec16 dtx_lanes[kRows];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) dtx_lanes[r] = broadcast(dtx[r]);
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const vec16 B_lanes = load(B + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) state[r][v] = fma(dtx_lanes[r], B_lanes, mul(decay_lanes, state[r][v]));
    }
  }
  // products = (first tile of the row ? 0 : products) + state C
  LLAMBA_INLINE void multiply(const float* C, bool first, float* products) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      vec16 sum = mul(state[r][0], load(C));
      if (!first) sum = fma(state[r][0], load(C), load(products + r * kLanes));
#pragma GCC unroll 16
      for (int v = 1; v < kVecs; ++v) sum = fma(state[r][v], load(C + v * kLanes), sum);
      store(products + r * kLanes, sum);
    }
  }
};

// Takes state rows `row` to `rows` of a block, kRows at a time, columns column to column + 16 kVecs, through all tokens.
// Returns the first row that is left. kTree: some token starts from a branch state.
template <typename S, int kRows, int kVecs, bool kTree>
int scan_rows(const llamba_mamba2_verify_args& args, const StepSequence& sequence, const Scratch& scratch, int32_t head,
              int32_t dim, int row, int rows, int32_t column) {
  constexpr int64_t kTileFloats = int64_t{kRows} * kVecs * kLanes;
  const int32_t live = sequence.live, ntotal = sequence.live + sequence.ntokens, fold = sequence.fold;
  const int64_t row_stride = args.checkpoint_stride_dim, dstate = args.dstate;
  const StepToken* tokens = sequence.tokens;
  S* checkpoint = static_cast<S*>(args.checkpoint) + sequence.slot * args.checkpoint_stride_slot +
                  head * args.checkpoint_stride_head + dim * row_stride + column;
  for (; row + kRows <= rows; row += kRows) {
    S* tile_rows = checkpoint + row * row_stride;
    Tile<kRows, kVecs> tile;
    if (sequence.fresh) {  // its checkpoint is not read at all: it may hold NaN
      tile.clear();
    } else {
      tile.load_from(tile_rows, row_stride);
    }
    const float* dtx = scratch.dtx + row;
    const float* B = scratch.B + column;
    const auto advance = [&](int32_t t) __attribute__((always_inline)) {
      if (kTree && tokens[t].save >= 0) tile.store_to(scratch.branches + tokens[t].save * kTileFloats, kVecs * kLanes);
      if (kTree && tokens[t].load >= 0) tile.load_branch(scratch.branches + tokens[t].load * kTileFloats);
      tile.step(dtx, B, scratch.decay[t]);
      if (sizeof(S) == 2 && tokens[t].round) tile.template round_to<S>();
      dtx += kBlock;
      B += dstate;
    };
    for (int32_t t = 0; t < fold; ++t) advance(t);
    if (fold > 0) tile.store_to(tile_rows, row_stride);
    for (int32_t t = fold; t < live; ++t) advance(t);
    const float* C = scratch.C + column;
    float* products = scratch.products + row * kLanes;
    for (int32_t t = live; t < ntotal; ++t, C += dstate, products += kBlock * kLanes) {
      advance(t);
      tile.multiply(C, column == 0, products);
    }
    if (sequence.state) {
      float* state =
          sequence.state + head * sequence.state_stride_head + (dim + row) * sequence.state_stride_dim + column;
      tile.store_to(state, sequence.state_stride_dim);
    }
  }
  return row;
}

// All rows of a block, kVecs vectors of dstate wide from `column` on; what is left of dstate goes to narrower tiles.
template <typename S, int kVecs, bool kTree>
void scan_columns(const llamba_mamba2_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
                  int32_t head, int32_t dim, int rows, int32_t column) {
  constexpr int kRows = kTileVecs / kVecs;
  for (; column + kVecs * kLanes <= args.dstate; column += kVecs * kLanes) {
    const int row = scan_rows<S, kRows, kVecs, kTree>(args, sequence, scratch, head, dim, 0, rows, column);
    if (kRows > 1) scan_rows<S, 1, kVecs, kTree>(args, sequence, scratch, head, dim, row, rows, column);
  }
  if constexpr (kVecs > 1) scan_columns<S, kVecs / 2, kTree>(args, sequence, scratch, head, dim, rows, column);
}

template <typename T>
void write_outputs(const llamba_mamba2_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
                   const float* x, int64_t x_stride, int32_t head, int32_t dim, int rows) {
  T* out = static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch + head * args.out_stride_head + dim;
  const vec16 D = broadcast(args.D ? args.D[head] : 0.0f);
  for (int32_t i = 0; i < sequence.ntokens; ++i) {
    vec16 products[kLanes];
    for (int r = 0; r < kLanes; ++r) products[r] = load(scratch.products + (i * kBlock + r) * kLanes);
    const vec16 skip = mul(D, load(x + (sequence.live + i) * x_stride));
    store_first(out + i * args.out_stride_token, add(sum_each(products), skip), rows);
  }
}

template <typename T>
void run_blocks(const llamba_mamba2_verify_args& args, const StepSequence& sequence, int64_t begin, int64_t end,
                float* floats) {
  const int32_t ntotal = sequence.live + sequence.ntokens, blocks = (args.headdim + kBlock - 1) / kBlock;
  const int64_t x_stride = int64_t{blocks} * kBlock;
  Scratch scratch;
  scratch.inputs = reinterpret_cast<const void**>(floats);
  scratch.x = floats + int64_t{ntotal} * kInputFloats;
  scratch.B = scratch.x + ntotal * x_stride;
  scratch.C = scratch.B + int64_t{ntotal} * args.dstate;
  scratch.dtx = scratch.C + int64_t{sequence.ntokens} * args.dstate;
  scratch.products = scratch.dtx + int64_t{ntotal} * kBlock;
  scratch.branches = scratch.products + int64_t{sequence.ntokens} * kBlock * kLanes;
  scratch.dt = scratch.branches + int64_t{sequence.nbranches} * kTileVecs * kLanes;
  scratch.decay = scratch.dt + (ntotal + kLanes - 1) / kLanes * kLanes;

  const int32_t heads_per_x = args.nheads / args.x_heads, heads_per_B = args.nheads / args.B_heads,
                heads_per_C = args.nheads / args.C_heads;
  const int32_t B_channel = args.x_heads * args.headdim, C_channel = B_channel + args.B_heads * args.dstate;
  const T* new_tokens = static_cast<const T*>(args.xBC) + sequence.batch_idx * args.xBC_stride_batch;
  T* slot_rows = static_cast<T*>(args.rows) + sequence.slot * args.rows_stride_slot;
  find_inputs<T>(sequence, args.cursor.width, slot_rows, args.rows_stride_row, new_tokens, args.xBC_stride_token,
                 scratch.inputs);
  const ConvWeights weights{args.conv_weight, args.conv_weight_stride_channel, args.conv_weight_stride_tap,
                            args.conv_bias, args.cursor.width};
  const auto conv = [&](int32_t channel, int32_t channels, int32_t first, float* out, int64_t stride) {
    convolve_any<T>(weights, {scratch.inputs, first, ntotal}, channel, channel, channels, out, stride);
  };
  const auto keep = [&](int32_t channel, int32_t channels) {
    store_rows<T>(sequence, new_tokens, args.xBC_stride_token, slot_rows, args.rows_stride_row, channel, channels);
  };
  int32_t x_head = -1, B_head = -1, C_head = -1, dt_head = -1;  // what the scratch holds
  for (int64_t item = begin; item < end; ++item) {
    const int32_t head = static_cast<int32_t>(item / blocks), dim = static_cast<int32_t>(item % blocks) * kBlock;
    const int rows = args.headdim - dim < kBlock ? args.headdim - dim : kBlock;
    if (x_head != head / heads_per_x) {
      x_head = head / heads_per_x;
      conv(x_head * args.headdim, args.headdim, 0, scratch.x, x_stride);
    }
    if (B_head != head / heads_per_B) {
      B_head = head / heads_per_B;
      conv(B_channel + B_head * args.dstate, args.dstate, 0, scratch.B, args.dstate);
    }
    if (C_head != head / heads_per_C) {
      C_head = head / heads_per_C;
      conv(C_channel + C_head * args.dstate, args.dstate, sequence.live, scratch.C, args.dstate);
    }
    if (dt_head != head) {
      dt_head = head;
      prepare_dt<T>(args, sequence, head, dim == 0, scratch);
    }
    // Rows that several heads share are written by the first head's item, and only there.
    if (head % heads_per_x == 0) keep(x_head * args.headdim + dim, rows);
    if (head % heads_per_B == 0 && dim == 0) keep(B_channel + B_head * args.dstate, args.dstate);
    if (head % heads_per_C == 0 && dim == 0) keep(C_channel + C_head * args.dstate, args.dstate);

    for (int32_t t = 0; t < ntotal; ++t) {
      store(scratch.dtx + t * kBlock, mul(broadcast(scratch.dt[t]), load(scratch.x + t * x_stride + dim)));
    }
    constexpr int kMostVecs = kTileVecs < 8 ? kTileVecs : 8;
    if (sequence.nbranches > 0) {
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S,
                          scan_columns<S, kMostVecs, true>(args, sequence, scratch, head, dim, rows, 0));
    } else {
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S,
                          scan_columns<S, kMostVecs, false>(args, sequence, scratch, head, dim, rows, 0));
    }
    if (sequence.ntokens > 0) write_outputs<T>(args, sequence, scratch, scratch.x + dim, x_stride, head, dim, rows);
  }
}

}  // namespace

int64_t mamba2_scratch_floats(const llamba_mamba2_verify_args& args, const StepSequence& sequence) {
  const int64_t ntotal = sequence.live + sequence.ntokens, headdim = (args.headdim + kBlock - 1) / kBlock * kBlock;
  return ntotal * (kInputFloats + headdim + args.dstate + kBlock + 2) + 2 * kLanes +
         sequence.ntokens * (int64_t{args.dstate} + kBlock * kLanes) + int64_t{sequence.nbranches} * kTileVecs * kLanes;
}

void mamba2_blocks(const llamba_mamba2_verify_args& args, const StepSequence& sequence, int64_t begin, int64_t end,
                   float* scratch) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, run_blocks<T>(args, sequence, begin, end, scratch));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
