// rms_norm on CUDA devices: one launch, one block for each row.
#include "common/cuda_check.h"
#include "rms_norm/rms_norm_check.h"
#include "rms_norm/rms_norm_kernel.cuh"

namespace llamba {
namespace {

template <typename T>
int launch_rows(const llamba_rms_norm_args& args, void* stream) {
  const int64_t rows = args.batch * args.ntokens * args.nheads;
  if (rows == 0 || args.width == 0) return LLAMBA_OK;
  CUDA_CHECK("rms_norm", launch(rms_norm_kernel<T>, grid_of(rows), dim3(row_threads<T>(args.width, kNormThreads)),
                                sizeof(NormStorage), static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_rms_norm_cuda(const llamba_rms_norm_args* args, void* stream) {
  const int status = check_rms_norm(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_rows<T>(*args, stream));
  return LLAMBA_OK;
}
