// state_import on CUDA devices: one launch.
#include "common/cuda_check.h"
#include "state_import/state_import_check.h"
#include "state_import/state_import_kernel.cuh"

namespace llamba {
namespace {

template <typename S>
int launch_heads(const llamba_state_import_args& args, void* stream) {
  const int64_t blocks = args.batch * (args.nheads * import_dim_blocks(args) + args.cursor.width - 1);
  if (blocks == 0) return LLAMBA_OK;
  CUDA_CHECK("state_import", launch(state_import_kernel<S>, grid_of(blocks), dim3(kImportThreads), 0,
                                    static_cast<cudaStream_t>(stream), args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_state_import_cuda(const llamba_state_import_args* args, void* stream) {
  const int status = check_state_import(args);
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args->checkpoint_dtype, S, return launch_heads<S>(*args, stream));
  return LLAMBA_OK;
}
