// mamba2_verify, closed form: how many warps a block has, and the launch.
#include "common/device_limits.h"
#include "mamba2_verify/mamba2_cuda.h"
#include "mamba2_verify/mamba2_matmul_kernel.cuh"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba2_verify";
constexpr int32_t kMostMatmulTokens = 64;

struct MatmulChoice {
  int32_t tiles, heads;  // of a block
  bool bulk;             // Hopper's bulk copies bring the states
};

// Tiles of sixteen dims: a whole head, if a block may have so many; fewer where some multiprocessor would have no block, though
// each block does the conv of its B and C again. Heads: while eight blocks remain for each multiprocessor, neighbours that share B and C
// share a block, which then does that conv once.
MatmulChoice choose_matmul(const llamba_mamba2_verify_args& args, int32_t sm_count, int32_t arch) {
  const int64_t pairs = int64_t{args.batch} * args.nheads;
  const int32_t tiles = (args.headdim + 15) / 16, most = most_tiles(args.dstate);
  const auto row_blocks = [tiles](int32_t per_block) { return (tiles + per_block - 1) / per_block; };
  const int32_t blocks = tiles <= most ? 1 : row_blocks(most < 4 ? most : 4);
  MatmulChoice choice{(tiles + blocks - 1) / blocks, 1, false};
  while (choice.tiles > 1 && pairs * row_blocks(choice.tiles) < sm_count) choice.tiles = (choice.tiles + 1) / 2;
  const int32_t heads_per_B = args.nheads / args.B_heads, heads_per_C = args.nheads / args.C_heads;
  for (int32_t heads : {2, 4}) {
    const bool shared = heads_per_B % heads == 0 && heads_per_C % heads == 0;
    if (shared && pairs / heads * row_blocks(choice.tiles) >= 8 * sm_count) choice.heads = heads;
  }
  const int64_t state_bytes = args.checkpoint_dtype == LLAMBA_FLOAT32 ? 4 : 2;
  const bool aligned =
      reinterpret_cast<uintptr_t>(args.checkpoint) % 16 == 0 && args.checkpoint_stride_slot * state_bytes % 16 == 0 &&
      args.checkpoint_stride_head * state_bytes % 16 == 0 && args.checkpoint_stride_dim * state_bytes % 16 == 0;
  choice.bulk = arch >= 90 && aligned && choice.heads > 1;
  return choice;
}

template <typename T, int kState>
MatmulLayout layout_of(const llamba_mamba2_verify_args& args, const MatmulChoice& choice, bool bulk) {
  const int32_t rows = args.cursor.capacity - (args.cursor.width - 1);  // live and new ones that a session can have
  const int32_t state_bytes = args.checkpoint_dtype == LLAMBA_FLOAT32 ? 4 : 2;
  return lay_out_matmul(Pieces<T>::kCount, kState, args.dstate, state_bytes, rows, args.max_ntokens, choice.tiles,
                        bulk);
}

template <typename T, int kState, bool kBulk>
int launch_matmul(const llamba_mamba2_verify_args& args, const MatmulChoice& choice, cudaStream_t stream) {
  const MatmulLayout layout = layout_of<T, kState>(args, choice, kBulk);
  const int32_t tiles = (args.headdim + 15) / 16, row_blocks = (tiles + choice.tiles - 1) / choice.tiles;
  const dim3 grid(static_cast<unsigned>(int64_t{args.batch} * row_blocks),
                  static_cast<unsigned>(args.nheads / choice.heads));
  const dim3 block(32 * choice.tiles * (kState > kMostWarpState ? 2 : 1));
  CUDA_CHECK(kOp, launch(mamba2_matmul_kernel<T, kState, kBulk>, grid, block, static_cast<size_t>(layout.bytes), stream,
                         MatmulParams{args, row_blocks, choice.tiles, choice.heads, layout}));
  return LLAMBA_OK;
}

// Where shared memory is short: first without the bulk copies' stages, then with fewer tiles, so that what is refused
// does not depend on the batch. The arithmetic is the same.
template <typename T, int kState>
int fit_and_launch(const llamba_mamba2_verify_args& args, MatmulChoice choice, const DeviceLimits& limits,
                   cudaStream_t stream) {
  const auto fits = [&](bool bulk) { return layout_of<T, kState>(args, choice, bulk).bytes <= limits.shared_bytes; };
  if constexpr (sizeof(T) == 2 && kState == 128) {
    if (choice.bulk && fits(true)) return launch_matmul<T, kState, true>(args, choice, stream);
  }
  while (choice.tiles > 1 && !fits(false)) choice.tiles = (choice.tiles + 1) / 2;
  if (!fits(false)) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: rows per slot must fit the %d bytes of shared memory of this GPU's blocks with algorithm matmul; "
                "got %d rows, for which %d bytes are needed",
                kOp, limits.shared_bytes, args.cursor.capacity, layout_of<T, kState>(args, choice, false).bytes);
  }
  return launch_matmul<T, kState, false>(args, choice, stream);
}

template <typename T>
int choose_kernel(const llamba_mamba2_verify_args& args, cudaStream_t stream) {
  DeviceLimits limits;
  CUDA_CHECK(kOp, device_limits(&limits));
  const MatmulChoice choice = choose_matmul(args, limits.multiprocessors, limits.arch);
  if (args.dstate <= 64) return fit_and_launch<T, 64>(args, choice, limits, stream);
  if (args.dstate <= 128) return fit_and_launch<T, 128>(args, choice, limits, stream);
  return fit_and_launch<T, 256>(args, choice, limits, stream);
}

}  // namespace

int mamba2_matmul(const llamba_mamba2_verify_args& args, cudaStream_t stream) {
  if (args.max_ntokens > kMostMatmulTokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at most %d with algorithm matmul; got %d", kOp,
                kMostMatmulTokens, args.max_ntokens);
  }
  if (args.nheads > 65535) {
    return fail(LLAMBA_VALUE_ERROR, "%s: nheads must be at most 65535 on CUDA; got %d", kOp, args.nheads);
  }
  LLAMBA_SWITCH_DTYPE(args.dtype, T, return choose_kernel<T>(args, stream));
  return LLAMBA_OK;
}

}  // namespace llamba
