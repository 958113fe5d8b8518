// mamba1_verify, the arithmetic of one instruction set.
//   dt = softplus(dt + dt_bias);   state = exp(dt A) state + (dt x) B;   y = (state . C + D x) silu(z)
// Work      an item is sixteen channels of one sequence that share B and C, taken from the checkpoint through all tokens
//           of its step. A thread's items are neighbours: B and C are widened once while their head lasts
// Registers a tile of the state: rows of the block x vectors of dstate, and A log2(e) of the same rows. Per token and
//           vector an exponential, a multiplication, a fused multiply-add; one more multiplication for new tokens
// Branches  of a tree: a state that a later token starts from is kept in scratch, tile by tile, and loaded again there;
//           the checkpoint is read once
// Numerics  a token's results depend on the tokens on its own path alone. Every state element takes the same
//           operations in the same order whatever the window, the live rows, the fold or the tree; lane l of vector v
//           holds dstate index 16 v + l; the dot product with C adds the vectors in order, then the lanes in the fixed
//           tree of vec.h
#include "common/vec.h"
#include "conv1d_verify/conv1d_vec.h"
#include "mamba1_verify/mamba1_verify_cpu.h"

namespace llamba {
namespace LLAMBA_ISA {
namespace {

// The tile must fit the registers beside the exponential's own: AVX-512 has 32 of one vec16, AVX2 16 of half a one.
constexpr int kTileVecs = kNativeLanes == 16 ? 4 : kNativeLanes == 8 ? 2 : 1;
template <int kVecs>
constexpr int kTileRows = kTileVecs > kVecs ? kTileVecs / kVecs : 1;
// Checkpoint and A stream through once, faster than the processor foresees: each tile asks for what comes so much later.
constexpr int kPrefetchBytes = 4096;
constexpr int32_t kMaxVecs = 4;
constexpr float kLog2e = 1.44269504088896341f;

struct Scratch {
  float* B;         // [ntotal, dstate] of the current head
  float* C;         // [ntokens, dstate] of the current head
  float* dt;        // [ntotal, kBlock] of the current block
  float* dtx;       // [ntotal, kBlock] dt x
  float* x;         // [ntokens, kBlock]
  float* products;  // [ntokens, kBlock, kLanes] state times C, not yet summed over the lanes
  float* branches;  // [nbranches, tile]
};

// Columns of one of the inputs that are kept as rows: where the tokens' are. They start at the channels in question.
template <typename T>
struct Columns {
  const T* new_tokens;  // [ntokens] of the batch entry
  int64_t token_stride;
  T* rows;  // [capacity] of the slot
  int64_t row_stride;

  LLAMBA_INLINE const T* operator()(const StepSequence& sequence, int32_t t) const {
    return t < sequence.live ? rows + sequence.tokens[t].row * row_stride
                             : new_tokens + (t - sequence.live) * token_stride;
  }
  LLAMBA_INLINE void keep(const StepSequence& sequence, int32_t count) const {
    store_rows<T>(sequence, new_tokens, token_stride, rows, row_stride, 0, count);
  }
};

// ---- inputs ----

// Step sizes, dt x, and the new tokens' x.
template <typename T>
void prepare_block(const llamba_mamba1_verify_args& args, const StepSequence& sequence, int32_t channel, int lanes,
                   const Columns<T>& x_columns, const Columns<T>& dt_columns, const Scratch& scratch) {
  const vec16 bias = args.dt_bias ? load_first(args.dt_bias + channel, lanes) : broadcast(0.0f);
  for (int32_t t = 0; t < sequence.live + sequence.ntokens; ++t) {
    const vec16 dt = softplus(add(load_first(dt_columns(sequence, t), lanes), bias));
    const vec16 x = load_first(x_columns(sequence, t), lanes);
    store(scratch.dt + t * kBlock, dt);
    store(scratch.dtx + t * kBlock, mul(dt, x));
    if (t >= sequence.live) store(scratch.x + (t - sequence.live) * kBlock, x);
  }
}

// ---- scan ----

template <int kRows, int kVecs>
struct Tile {
  vec16 state[kRows][kVecs];
  vec16 A[kRows][kVecs];  // times log2(e): exp(dt A) is 2^(dt that)

  LLAMBA_INLINE void clear() {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) state[r][v] = broadcast(0.0f);
    }
  }
  LLAMBA_INLINE void load_A(const float* p, int64_t row_stride) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 16
      for (int v = 0; v < kVecs; ++v) {
        __builtin_prefetch(reinterpret_cast<const char*>(p + r * row_stride + v * kLanes) + kPrefetchBytes);
        A[r][v] = mul(load(p + r * row_stride + v * kLanes), broadcast(kLog2e));
      }
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
  // state = exp(dt A) state + dtx B
  LLAMBA_INLINE void step(const float* dt, const float* dtx, const float* B) {
#pragma GCC unroll 16
    for (int v = 0; v < kVecs; ++v) {
      const vec16 B_lanes = load(B + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const vec16 decay = exp2(mul(broadcast(dt[r]), A[r][v]));
        state[r][v] = fma(broadcast(dtx[r]), B_lanes, mul(decay, state[r][v]));
      }
    }
  }
  LLAMBA_INLINE void multiply(const float* C, float* products) const {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      vec16 sum = mul(state[r][0], load(C));
#pragma GCC unroll 16
      for (int v = 1; v < kVecs; ++v) sum = fma(state[r][v], load(C + v * kLanes), sum);
      store(products + r * kLanes, sum);
    }
  }
};

// Takes state rows `row` to `rows` of a block, kRows at a time, through all tokens. Returns the first row that is left.
// kTree: some token starts from a branch state.
template <typename S, int kRows, int kVecs, bool kTree>
int scan_rows(const llamba_mamba1_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
              int32_t channel, int row, int rows) {
  constexpr int64_t kTileFloats = int64_t{kRows} * kVecs * kLanes, kDstate = kVecs * kLanes;
  const int32_t live = sequence.live, ntotal = sequence.live + sequence.ntokens, fold = sequence.fold;
  const int64_t row_stride = args.checkpoint_stride_channel;
  const StepToken* tokens = sequence.tokens;
  S* checkpoint = static_cast<S*>(args.checkpoint) + sequence.slot * args.checkpoint_stride_slot + channel * row_stride;
  for (; row + kRows <= rows; row += kRows) {
    S* tile_rows = checkpoint + row * row_stride;
    Tile<kRows, kVecs> tile;
    tile.load_A(args.A + (channel + row) * args.A_stride_channel, args.A_stride_channel);
    if (sequence.fresh) {  // its checkpoint is not read at all: it may hold NaN
      tile.clear();
    } else {
      tile.load_from(tile_rows, row_stride);
    }
    const float *dt = scratch.dt + row, *dtx = scratch.dtx + row, *B = scratch.B;
    const auto advance = [&](int32_t t) __attribute__((always_inline)) {
      if (kTree && tokens[t].save >= 0) tile.store_to(scratch.branches + tokens[t].save * kTileFloats, kDstate);
      if (kTree && tokens[t].load >= 0) tile.load_branch(scratch.branches + tokens[t].load * kTileFloats);
      tile.step(dt, dtx, B);
      if (sizeof(S) == 2 && tokens[t].round) tile.template round_to<S>();
      dt += kBlock;
      dtx += kBlock;
      B += kDstate;
    };
    for (int32_t t = 0; t < fold; ++t) advance(t);
    if (fold > 0) tile.store_to(tile_rows, row_stride);
    for (int32_t t = fold; t < live; ++t) advance(t);
    const float* C = scratch.C;
    float* products = scratch.products + row * kLanes;
    for (int32_t t = live; t < ntotal; ++t, C += kDstate, products += kBlock * kLanes) {
      advance(t);
      tile.multiply(C, products);
    }
    if (sequence.state) {
      tile.store_to(sequence.state + (channel + row) * sequence.state_stride_dim, sequence.state_stride_dim);
    }
  }
  return row;
}

template <typename S, int kVecs, bool kTree>
void scan_block(const llamba_mamba1_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
                int32_t channel, int rows) {
  constexpr int kRows = kTileRows<kVecs>;
  const int row = scan_rows<S, kRows, kVecs, kTree>(args, sequence, scratch, channel, 0, rows);
  if (kRows > 1) scan_rows<S, 1, kVecs, kTree>(args, sequence, scratch, channel, row, rows);
}

template <typename S, bool kTree>
void scan_any(const llamba_mamba1_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
              int32_t channel, int rows) {
  switch (args.dstate / kLanes) {
    case 1: return scan_block<S, 1, kTree>(args, sequence, scratch, channel, rows);
    case 2: return scan_block<S, 2, kTree>(args, sequence, scratch, channel, rows);
    case 3: return scan_block<S, 3, kTree>(args, sequence, scratch, channel, rows);
    default: return scan_block<S, kMaxVecs, kTree>(args, sequence, scratch, channel, rows);
  }
}

template <typename T>
void write_outputs(const llamba_mamba1_verify_args& args, const StepSequence& sequence, const Scratch& scratch,
                   int32_t channel, int lanes) {
  T* out = static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch + channel;
  const T* z = static_cast<const T*>(args.z);
  if (z) z += sequence.batch_idx * args.z_stride_batch + channel;
  const vec16 D = args.D ? load_first(args.D + channel, lanes) : broadcast(0.0f);
  for (int32_t i = 0; i < sequence.ntokens; ++i) {
    vec16 products[kLanes];
    for (int r = 0; r < kLanes; ++r) products[r] = load(scratch.products + (i * kBlock + r) * kLanes);
    vec16 y = add(sum_each(products), mul(D, load(scratch.x + i * kBlock)));
    if (z) y = mul(y, silu(load_first(z + i * args.z_stride_token, lanes)));
    store_first(out + i * args.out_stride_token, y, lanes);
  }
}

template <typename T>
void widen(const T* from, int32_t count, float* to) {  // count: a multiple of kLanes
  for (int32_t n = 0; n < count; n += kLanes) store(to + n, load(from + n));
}

template <typename T>
void run_blocks(const llamba_mamba1_verify_args& args, const Mamba1Items& items, const StepSequence& sequence,
                int64_t begin, int64_t end, float* floats) {
  const int32_t live = sequence.live, ntotal = live + sequence.ntokens, ntokens = sequence.ntokens;
  Scratch scratch;
  scratch.B = floats;
  scratch.C = scratch.B + int64_t{ntotal} * args.dstate;
  scratch.dt = scratch.C + int64_t{ntokens} * args.dstate;
  scratch.dtx = scratch.dt + int64_t{ntotal} * kBlock;
  scratch.x = scratch.dtx + int64_t{ntotal} * kBlock;
  scratch.products = scratch.x + int64_t{ntokens} * kBlock;
  scratch.branches = scratch.products + int64_t{ntokens} * kBlock * kLanes;

  const auto columns = [&](const void* tokens, int64_t stride_batch, int64_t token_stride, void* rows,
                           int64_t stride_slot, int64_t row_stride, int32_t column) {
    const T* entry = tokens ? static_cast<const T*>(tokens) + sequence.batch_idx * stride_batch + column : nullptr;
    return Columns<T>{entry, token_stride, static_cast<T*>(rows) + sequence.slot * stride_slot + column, row_stride};
  };
  const int32_t channels_per_B = args.d_inner / args.B_heads, channels_per_C = args.d_inner / args.C_heads;
  int32_t B_head = -1, C_head = -1;  // what the scratch holds
  for (int64_t item = begin; item < end; ++item) {
    const int32_t dim = static_cast<int32_t>(item % items.blocks) * kBlock;  // within the group
    const int32_t channel = static_cast<int32_t>(item / items.blocks) * items.group + dim;
    const int lanes = lanes_left(items.group - dim);
    const Columns<T> x = columns(args.x, args.x_stride_batch, args.x_stride_token, args.x_rows, args.x_rows_stride_slot,
                                 args.x_rows_stride_row, channel);
    const Columns<T> dt = columns(args.dt, args.dt_stride_batch, args.dt_stride_token, args.dt_rows,
                                  args.dt_rows_stride_slot, args.dt_rows_stride_row, channel);
    x.keep(sequence, lanes);
    dt.keep(sequence, lanes);
    if (B_head != channel / channels_per_B) {
      B_head = channel / channels_per_B;
      const Columns<T> B = columns(args.B, args.B_stride_batch, args.B_stride_token, args.B_rows,
                                   args.B_rows_stride_slot, args.B_rows_stride_row, B_head * args.dstate);
      for (int32_t t = 0; t < ntotal; ++t) widen(B(sequence, t), args.dstate, scratch.B + t * args.dstate);
      // Rows that several channels share are written by the first one's item, and only there.
      if (channel % channels_per_B == 0) B.keep(sequence, args.dstate);
    }
    if (ntokens > 0 && C_head != channel / channels_per_C) {
      C_head = channel / channels_per_C;
      const T* C = static_cast<const T*>(args.C) + sequence.batch_idx * args.C_stride_batch + C_head * args.dstate;
      for (int32_t i = 0; i < ntokens; ++i) {
        widen(C + i * args.C_stride_token, args.dstate, scratch.C + i * args.dstate);
      }
    }
    prepare_block<T>(args, sequence, channel, lanes, x, dt, scratch);
    if (sequence.nbranches > 0) {
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, scan_any<S, true>(args, sequence, scratch, channel, lanes));
    } else {
      LLAMBA_SWITCH_DTYPE(args.checkpoint_dtype, S, scan_any<S, false>(args, sequence, scratch, channel, lanes));
    }
    if (ntokens > 0) write_outputs<T>(args, sequence, scratch, channel, lanes);
  }
}

}  // namespace

int64_t mamba1_scratch_floats(const llamba_mamba1_verify_args& args, const StepSequence& sequence) {
  const int64_t ntotal = sequence.live + sequence.ntokens;
  return ntotal * (args.dstate + 2 * kBlock) + sequence.ntokens * (int64_t{args.dstate} + kBlock + kBlock * kLanes) +
         int64_t{sequence.nbranches} * kLanes * (kTileVecs > kMaxVecs ? kTileVecs : kMaxVecs);
}

void mamba1_blocks(const llamba_mamba1_verify_args& args, const Mamba1Items& items, const StepSequence& sequence,
                   int64_t begin, int64_t end, float* scratch) {
  LLAMBA_SWITCH_DTYPE(args.dtype, T, run_blocks<T>(args, items, sequence, begin, end, scratch));
}

}  // namespace LLAMBA_ISA
}  // namespace llamba
