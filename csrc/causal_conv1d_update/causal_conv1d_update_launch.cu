// causal_conv1d_update on CUDA devices: one launch, as many blocks for each sequence as its channels need.
#include "causal_conv1d_update/causal_conv1d_update_check.h"
#include "causal_conv1d_update/causal_conv1d_update_kernel.cuh"
#include "common/cuda_check.h"

namespace llamba {
namespace {

template <typename T>
int launch_channels(const llamba_causal_conv1d_update_args& args, void* stream) {
  const int64_t blocks = args.batch * ((args.dim + kConvThreads - 1) / kConvThreads);
  if (blocks == 0 || args.ntokens == 0) return LLAMBA_OK;
  CUDA_CHECK("causal_conv1d_update", launch(causal_conv1d_update_kernel<T>, grid_of(blocks), dim3(kConvThreads), 0,
                                            static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_causal_conv1d_update_cuda(const llamba_causal_conv1d_update_args* args, void* stream) {
  const int status = check_causal_conv1d_update(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_channels<T>(*args, stream));
  return LLAMBA_OK;
}
