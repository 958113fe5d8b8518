// mamba1_materialize on CUDA devices: mamba1_verify's kernel takes the live rows from the checkpoint to a state of their
// own.
#include "mamba1_materialize/mamba1_materialize_verify.h"
#include "mamba1_verify/mamba1_check.h"
#include "mamba1_verify/mamba1_cuda.h"

namespace llamba {
namespace {

int mamba1_materialize(const llamba_mamba1_materialize_args& args, cudaStream_t stream) {
  constexpr const char* kOp = "mamba1_materialize";
  const llamba_mamba1_verify_args verify = as_verify(args);
  const int status = check_mamba1_sizes(kOp, verify);
  if (status != LLAMBA_OK || args.batch == 0) return status;
  Mamba1StateOutput output{};
  output.state = args.state;
  output.state_stride_batch = args.state_stride_batch;
  output.state_stride_channel = args.state_stride_channel;
  output.rows = args.rows;
  output.rows_stride_slot = args.rows_stride_slot;
  output.rows_stride_row = args.rows_stride_row;
  output.x_dim = args.x_dim;
  output.tail = args.tail;
  output.tail_stride_batch = args.tail_stride_batch;
  output.tail_stride_row = args.tail_stride_row;
  return mamba1_launch(kOp, verify, output, stream);
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_mamba1_materialize_cuda(const llamba_mamba1_materialize_args* args, void* stream) {
  LLAMBA_CHECK_SIZE("mamba1_materialize", args);
  return llamba::mamba1_materialize(*args, static_cast<cudaStream_t>(stream));
}
