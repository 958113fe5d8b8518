// rope on CUDA devices: one launch, as many blocks for each token as the items of its heads need.
#include "common/cuda_check.h"
#include "rope/rope_check.h"
#include "rope/rope_kernel.cuh"

namespace llamba {
namespace {

template <typename T>
int launch_tokens(const llamba_rope_args& args, void* stream) {
  const int64_t blocks = args.batch * args.ntokens * rope_blocks_per_token<T>(args);
  if (blocks == 0) return LLAMBA_OK;
  CUDA_CHECK("rope",
             launch(rope_kernel<T>, grid_of(blocks), dim3(kRopeThreads), 0, static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_rope_cuda(const llamba_rope_args* args, void* stream) {
  const int status = check_rope(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_tokens<T>(*args, stream));
  return LLAMBA_OK;
}
