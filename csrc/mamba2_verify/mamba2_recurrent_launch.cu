// The recurrent algorithm on CUDA devices, for mamba2_verify and materialize: the block size, then one launch.
#include "common/device_limits.h"
#include "mamba2_verify/mamba2_recurrent_kernel.cuh"

namespace llamba {
namespace {

struct RecurrentShape {
  int32_t threads, row_blocks;  // row blocks of a head
};

// Blocks of a whole head, whose B and C are then worked out once; smaller ones where some multiprocessor would have no
// block, or where a head's last block would be mostly idle.
RecurrentShape choose_recurrent_shape(int64_t batch, int32_t nheads, int32_t headdim, int32_t padded_dstate, bool tree,
                                      int32_t multiprocessors) {
  const int32_t lanes = padded_dstate / kColumns;
  for (int32_t threads = tree ? kMostTreeThreads : kMostRecurrentThreads;; threads /= 2) {
    const int32_t rows = threads / lanes * kRows, row_blocks = (headdim + rows - 1) / rows;
    const bool fills = batch * nheads * row_blocks >= multiprocessors;
    const bool idle = row_blocks * rows * int64_t{4} > headdim * int64_t{5};
    if (threads == 64 || (fills && !idle)) return {threads, row_blocks};
  }
}

template <typename T, int kState>
int launch_recurrent(const char* op, const llamba_mamba2_verify_args& args, const Mamba2StateOutput& output,
                     cudaStream_t stream) {
  DeviceLimits limits;
  CUDA_CHECK(op, device_limits(&limits));
  const bool tree = args.parents != nullptr;
  const RecurrentShape shape =
      choose_recurrent_shape(args.batch, args.nheads, args.headdim, kState, tree, limits.multiprocessors);
  const Mamba2RecurrentParams params{args, output, shape.row_blocks};
  const auto blocks = static_cast<unsigned>(shape.row_blocks * args.nheads);
  const dim3 grid = batch_grid(blocks, static_cast<unsigned>(args.batch));
  const size_t shared = tree ? sizeof(RecurrentStorage<kState>) : offsetof(RecurrentStorage<kState>, committed);
  CUDA_CHECK(op, launch(mamba2_recurrent_kernel<T, kState>, grid, dim3(static_cast<unsigned>(shape.threads)), shared,
                        stream, params));
  return LLAMBA_OK;
}

template <typename T>
int launch_for_dstate(const char* op, const llamba_mamba2_verify_args& args, const Mamba2StateOutput& output,
                      cudaStream_t stream) {
  if (args.dstate <= 64) return launch_recurrent<T, 64>(op, args, output, stream);
  if (args.dstate <= 128) return launch_recurrent<T, 128>(op, args, output, stream);
  return launch_recurrent<T, 256>(op, args, output, stream);
}

}  // namespace

int mamba2_recurrent(const char* op, const llamba_mamba2_verify_args& args, const Mamba2StateOutput& output,
                     cudaStream_t stream) {
  if (args.parents != nullptr && args.max_ntokens > kMostTree) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at most %d with parents on CUDA; got %d", op, kMostTree,
                args.max_ntokens);
  }
  int status = LLAMBA_OK;
  LLAMBA_SWITCH_DTYPE(args.dtype, T, status = launch_for_dstate<T>(op, args, output, stream));
  return status;
}

}  // namespace llamba
