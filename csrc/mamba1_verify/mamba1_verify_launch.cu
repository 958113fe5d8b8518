// mamba1_verify on CUDA devices, and what mamba1_materialize shares of it: the block size, then one launch.
#include "common/device_limits.h"
#include "mamba1_verify/mamba1_check.h"
#include "mamba1_verify/mamba1_kernel.cuh"

namespace llamba {
namespace {

constexpr size_t kSharedBytes = 48 * 1024;  // that every device gives a block unasked
constexpr int32_t kMostSequences = 4;       // of a block

HeadSharing share_heads(int32_t d_inner, int32_t heads, int32_t block_channels) {
  const int32_t channels = d_inner / heads;
  if (channels % block_channels == 0) return {channels, 1};
  const int32_t span = block_channels % channels == 0 ? block_channels / channels : (block_channels - 2) / channels + 2;
  return {channels, span < heads ? span : heads};
}

template <typename T, int kState>
int launch_mamba1(const char* op, const llamba_mamba1_verify_args& args, const Mamba1StateOutput& output,
                  cudaStream_t stream) {
  using Storage = Mamba1Storage<kState>;
  DeviceLimits limits;
  CUDA_CHECK(op, device_limits(&limits));
  // Large blocks ask for the same B and C less often; smaller ones where some multiprocessor would have no block, or
  // where many heads would not fit. While eight blocks remain for each multiprocessor, sequences share a block, which
  // then asks for A once.
  Mamba1Params params{args, output, {}, {}, 1};
  for (int32_t threads = kMostMamba1Threads;; threads /= 2) {
    const int32_t channels = threads / Storage::kLanes * kRows;
    const int64_t blocks = (args.d_inner + channels - 1) / channels;
    params.B = share_heads(args.d_inner, args.B_heads, channels);
    params.C = share_heads(args.d_inner, args.C_heads, channels);
    const size_t shared = Storage::bytes(params.B.span + params.C.span, threads, args.parents != nullptr);
    const bool fills = blocks * args.batch >= limits.multiprocessors && shared <= kSharedBytes;
    if (threads > 32 && !fills) continue;
    const auto groups = [&](int64_t sequences) { return (args.batch + sequences - 1) / sequences; };
    while (params.sequences < kMostSequences && blocks * groups(2 * params.sequences) >= 8 * limits.multiprocessors) {
      params.sequences *= 2;
    }
    const dim3 grid = batch_grid(static_cast<unsigned>(blocks), static_cast<unsigned>(groups(params.sequences)));
    CUDA_CHECK(op,
               launch(mamba1_kernel<T, kState>, grid, dim3(static_cast<unsigned>(threads)), shared, stream, params));
    return LLAMBA_OK;
  }
}

template <typename T>
int launch_for_dstate(const char* op, const llamba_mamba1_verify_args& args, const Mamba1StateOutput& output,
                      cudaStream_t stream) {
  if (args.dstate == 16) return launch_mamba1<T, 16>(op, args, output, stream);
  return launch_mamba1<T, 64>(op, args, output, stream);
}

}  // namespace

int mamba1_launch(const char* op, const llamba_mamba1_verify_args& args, const Mamba1StateOutput& output,
                  cudaStream_t stream) {
  if (args.parents != nullptr && args.max_ntokens > kMostTree) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at most %d with parents on CUDA; got %d", op, kMostTree,
                args.max_ntokens);
  }
  int status = LLAMBA_OK;
  LLAMBA_SWITCH_DTYPE(args.dtype, T, status = launch_for_dstate<T>(op, args, output, stream));
  return status;
}

namespace {

int mamba1_verify(const llamba_mamba1_verify_args& args, cudaStream_t stream) {
  constexpr const char* kOp = "mamba1_verify";
  const int status = check_mamba1_sizes(kOp, args);
  if (status != LLAMBA_OK) return status;
  if (args.max_ntokens < 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args.max_ntokens);
  }
  return args.batch == 0 ? LLAMBA_OK : mamba1_launch(kOp, args, {}, stream);
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba1_verify_cuda(const llamba_mamba1_verify_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("mamba1_verify", args);
  return llamba::mamba1_verify(*args, static_cast<cudaStream_t>(stream));
}
