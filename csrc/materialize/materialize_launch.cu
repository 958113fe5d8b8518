// materialize on CUDA devices: mamba2_verify's recurrent kernel takes the live rows from the checkpoint to a state of
// their own.
#include "common/cuda_check.h"
#include "mamba2_verify/mamba2_check.h"
#include "mamba2_verify/mamba2_cuda.h"
#include "materialize/materialize_verify.h"

namespace llamba {
namespace {

int materialize(const llamba_materialize_args& args, cudaStream_t stream) {
  constexpr const char* kOp = "materialize";
  const llamba_mamba2_verify_args verify = as_verify(args);
  const int status = check_mamba2_sizes(kOp, verify);
  if (status != LLAMBA_OK || args.batch == 0) return status;
  Mamba2StateOutput output{};
  output.state = args.state;
  output.state_stride_batch = args.state_stride_batch;
  output.state_stride_head = args.state_stride_head;
  output.state_stride_dim = args.state_stride_dim;
  output.tail = args.tail;
  output.tail_stride_batch = args.tail_stride_batch;
  output.tail_stride_row = args.tail_stride_row;
  return mamba2_recurrent(kOp, verify, output, stream);
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_materialize_cuda(const llamba_materialize_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("materialize", args);
  return llamba::materialize(*args, static_cast<cudaStream_t>(stream));
}
