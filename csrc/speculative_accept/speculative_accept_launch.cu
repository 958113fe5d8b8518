// speculative_accept on CUDA devices: one launch, one block for each sequence.
#include "common/cuda_check.h"
#include "speculative_accept/speculative_accept_check.h"
#include "speculative_accept/speculative_accept_kernel.cuh"

namespace llamba {
namespace {

template <typename T>
int launch_batch(const llamba_speculative_accept_args& args, void* stream) {
  if (args.batch == 0) return LLAMBA_OK;
  CUDA_CHECK("speculative_accept",
             launch(speculative_accept_kernel<T>, grid_of(args.batch), dim3(row_threads<T>(args.vocab, kAcceptThreads)),
                    sizeof(AcceptStorage), static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_speculative_accept_cuda(const llamba_speculative_accept_args* args, void* stream) {
  const int status = check_speculative_accept(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->dtype, T, return launch_batch<T>(*args, stream));
  return LLAMBA_OK;
}
