// gated_rms_norm on CUDA devices: one launch, one block for each group of each row.
#include "common/cuda_check.h"
#include "gated_rms_norm/gated_rms_norm_check.h"
#include "gated_rms_norm/gated_rms_norm_kernel.cuh"

namespace llamba {
namespace {

template <typename T>
int launch_groups(const llamba_gated_rms_norm_args& args, void* stream) {
  const int64_t groups = args.batch * args.ntokens * (args.width / args.group_size);
  if (groups == 0) return LLAMBA_OK;
  CUDA_CHECK("gated_rms_norm",
             launch(gated_rms_norm_kernel<T>, grid_of(groups), dim3(row_threads<T>(args.group_size, kGatedNormThreads)),
                    sizeof(GatedNormStorage), static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_gated_rms_norm_cuda(const llamba_gated_rms_norm_args* args, void* stream) {
  const int status = check_gated_rms_norm(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_groups<T>(*args, stream));
  return LLAMBA_OK;
}
