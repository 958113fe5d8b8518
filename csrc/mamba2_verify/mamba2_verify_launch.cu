// mamba2_verify on CUDA devices: checks that need no data, then the algorithm's own launcher.
#include "common/cuda_check.h"
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_cuda.h"

namespace llamba {
namespace {

int mamba2_verify(const llamba_mamba2_verify_args& args, cudaStream_t stream) {
  constexpr const char* kOp = "mamba2_verify";
  const int status = check_mamba2_sizes(kOp, args);
  if (status != LLAMBA_OK) return status;
  if (args.max_ntokens < 1) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args.max_ntokens);
  }
  if (args.algorithm != LLAMBA_RECURRENT && args.algorithm != LLAMBA_MATMUL) {
    return fail(LLAMBA_VALUE_ERROR, "%s: algorithm must be recurrent or matmul; got code %d", kOp,
                static_cast<int>(args.algorithm));
  }
  if (args.batch == 0) return LLAMBA_OK;
  return args.algorithm == LLAMBA_MATMUL ? mamba2_matmul(args, stream) : mamba2_recurrent(kOp, args, {}, stream);
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba2_verify_cuda(const llamba_mamba2_verify_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("mamba2_verify", args);
  return llamba::mamba2_verify(*args, static_cast<cudaStream_t>(stream));
}
