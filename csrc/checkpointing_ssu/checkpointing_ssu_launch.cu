// checkpointing_ssu on CUDA devices: one launch, as many blocks for each head as its dims need.
#include "checkpointing_ssu/checkpointing_ssu_check.h"
#include "checkpointing_ssu/checkpointing_ssu_kernel.cuh"
#include "common/cuda_check.h"

namespace llamba {
namespace {

template <int kState>
int launch_heads(const llamba_checkpointing_ssu_args& args, void* stream) {
  constexpr int32_t kBlockRows = RingStorage<kState>::kBlockRows;
  const RingParams params{args, (args.headdim + kBlockRows - 1) / kBlockRows};
  const int64_t blocks = args.batch * args.nheads * params.row_blocks;
  if (blocks == 0 || args.ntokens == 0) return LLAMBA_OK;
  CUDA_CHECK("checkpointing_ssu", launch(checkpointing_ssu_kernel<kState>, grid_of(blocks), dim3(kRingThreads),
                                         sizeof(RingStorage<kState>), static_cast<cudaStream_t>(stream), params));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_checkpointing_ssu_cuda(const llamba_checkpointing_ssu_args* args, void* stream) {
  const int status = check_checkpointing_ssu(args);
  if (status != LLAMBA_OK) return status;
  if (args->dstate <= 64) return launch_heads<64>(*args, stream);
  if (args->dstate <= 128) return launch_heads<128>(*args, stream);
  return launch_heads<256>(*args, stream);
}
