// mamba2_verify on CUDA devices: checks that need no data, then one algorithm.
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_cuda.h"

extern "C" int llamba_mamba2_verify_cuda(const llamba_mamba2_verify_args* args, void* stream) {
  constexpr const char* kOp = "mamba2_verify";
  LLAMBA_CHECK_SIZE(kOp, args);
  const int status = llamba::check_mamba2_sizes(kOp, *args);
  if (status != LLAMBA_OK) return status;
  if (args->max_ntokens < 1) {
    return llamba::fail(LLAMBA_VALUE_ERROR, "%s: max_ntokens must be at least 1; got %d", kOp, args->max_ntokens);
  }
  if (args->batch == 0) return LLAMBA_OK;
  return llamba::mamba2_matmul(*args, static_cast<cudaStream_t>(stream));
}
