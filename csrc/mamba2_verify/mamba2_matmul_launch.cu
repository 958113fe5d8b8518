// mamba2_verify, closed form: how many warps a block has, and the launch.
#include "common/cuda_check.h"
#include "mamba2_verify/mamba2_cuda.h"
#include "mamba2_verify/mamba2_matmul_kernel.cuh"

namespace llamba {
namespace {

constexpr const char* kOp = "mamba2_verify";
constexpr int32_t kMostMatmulTokens = 64;

// Warps of a block, each with 16 dims: a whole head, up to five; as few as fill the GPU twice when the batch is small,
// since each block does the conv of B and C again.
int32_t choose_matmul_warps(int64_t sequences_and_heads, int32_t headdim, int32_t sm_count) {
  const int32_t tiles = (headdim + 15) / 16, blocks = tiles <= kMostMatmulWarps ? 1 : (tiles + 3) / 4;
  int32_t warps = (tiles + blocks - 1) / blocks;
  while (warps > 1 && sequences_and_heads * ((tiles + warps - 1) / warps) < 2 * sm_count) warps = (warps + 1) / 2;
  return warps;
}

template <typename T, int kState>
int launch_matmul(const llamba_mamba2_verify_args& args, cudaStream_t stream) {
  int32_t sm_count = 0, most_shared = 0;
  CUDA_CHECK(kOp, device_limits(&sm_count, &most_shared));
  const int32_t warps = choose_matmul_warps(int64_t{args.batch} * args.nheads, args.headdim, sm_count);
  MatmulStorage storage;
  const size_t shared =
      storage.lay_out<kState>(nullptr, Pieces<T>::kCount, args.cursor.capacity, args.max_ntokens, warps);
  if (shared > static_cast<size_t>(most_shared)) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: capacity of cursor must fit this GPU's %d bytes of shared memory with algorithm matmul; got %d, "
                "which needs %zu",
                kOp, most_shared, args.cursor.capacity, shared);
  }
  const int32_t row_blocks = (args.headdim + 16 * warps - 1) / (16 * warps);
  const dim3 grid(static_cast<unsigned>(int64_t{args.batch} * row_blocks), static_cast<unsigned>(args.nheads));
  CUDA_CHECK(kOp, launch(mamba2_matmul_kernel<T, kState>, grid, dim3(32 * warps), shared, stream,
                         MatmulParams{args, row_blocks}));
  return LLAMBA_OK;
}

template <typename T>
int choose_state(const llamba_mamba2_verify_args& args, cudaStream_t stream) {
  if (args.dstate <= 64) return launch_matmul<T, 64>(args, stream);
  if (args.dstate <= 128) return launch_matmul<T, 128>(args, stream);
  return launch_matmul<T, 256>(args, stream);
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
  LLAMBA_SWITCH_DTYPE(args.dtype, T, return choose_state<T>(args, stream));
  return LLAMBA_OK;
}

}  // namespace llamba
