// silu_mul on CUDA devices: one launch, as many blocks for each row as its vectors need.
#include "common/cuda_check.h"
#include "silu_mul/silu_mul_check.h"
#include "silu_mul/silu_mul_kernel.cuh"

namespace llamba {
namespace {

template <typename T>
int launch_rows(const llamba_silu_mul_args& args, void* stream) {
  const int64_t rows = args.batch * args.ntokens;
  if (rows == 0 || args.width == 0) return LLAMBA_OK;
  const unsigned threads = row_threads<T>(args.width, kSiluMulThreads);
  const int64_t block_elements = int64_t{threads} * kVector<T>;
  const int64_t blocks_per_row = (args.width + block_elements - 1) / block_elements;
  CUDA_CHECK("silu_mul", launch(silu_mul_kernel<T>, grid_of(rows * blocks_per_row), dim3(threads), 0,
                                static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_silu_mul_cuda(const llamba_silu_mul_args* args, void* stream) {
  const int status = check_silu_mul(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_rows<T>(*args, stream));
  return LLAMBA_OK;
}
