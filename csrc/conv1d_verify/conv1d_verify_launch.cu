// conv1d_verify on CUDA devices: checks that need no data, the block size, one launch.
#include "common/device_limits.h"
#include "conv1d_verify/conv1d_verify_check.h"
#include "conv1d_verify/conv1d_verify_kernel.cuh"

namespace llamba {
namespace {

constexpr const char* kOp = "conv1d_verify";

template <typename T>
int launch_conv1d(const llamba_conv1d_verify_args& args, cudaStream_t stream) {
  Conv1dParams params{args, 0};
  if (args.x_heads == args.nheads) {  // every channel of out has one of x: no head ends within two channels
    params.args.headdim *= args.nheads;
    params.args.nheads = params.args.x_heads = 1;
  }
  params.head_vectors = (params.args.headdim + kConvVector - 1) / kConvVector;
  const int64_t vectors = int64_t{params.args.nheads} * params.head_vectors;
  DeviceLimits limits;
  CUDA_CHECK(kOp, device_limits(&limits));
  const auto blocks = [&](int64_t threads) { return (vectors + threads - 1) / threads; };
  int64_t threads = kMostConvThreads;  // fewer where some multiprocessor would have no block
  while (threads > 32 && blocks(threads) * args.batch < limits.multiprocessors) threads /= 2;
  const dim3 grid = batch_grid(static_cast<unsigned>(blocks(threads)), static_cast<unsigned>(args.batch));
  CUDA_CHECK(kOp, launch(conv1d_verify_kernel<T>, grid, dim3(static_cast<unsigned>(threads)), sizeof(Conv1dStorage),
                         stream, params));
  return LLAMBA_OK;
}

int conv1d_verify(const llamba_conv1d_verify_args& args, cudaStream_t stream) {
  int status = check_conv1d_sizes(kOp, args);
  if (status != LLAMBA_OK || args.batch == 0) return status;
  LLAMBA_SWITCH_DTYPE(args.dtype, T, status = launch_conv1d<T>(args, stream));
  return status;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_conv1d_verify_cuda(const llamba_conv1d_verify_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("conv1d_verify", args);
  return llamba::conv1d_verify(*args, static_cast<cudaStream_t>(stream));
}
