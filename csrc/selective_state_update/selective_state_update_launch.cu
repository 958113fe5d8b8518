// selective_state_update on CUDA devices: one launch, as many blocks for each head as its rows need.
#include "common/cuda_check.h"
#include "selective_state_update/selective_state_update_check.h"
#include "selective_state_update/selective_state_update_kernel.cuh"

namespace llamba {
namespace {

template <typename S, int kVectors>
int launch_rows(const llamba_selective_state_update_args& args, void* stream) {
  SsuParams params{args, 1, 0};
  while (params.lanes < kWarpLanes && params.lanes * kVectors * kVector<S> < args.dstate) params.lanes *= 2;
  const int32_t rows = kSsuSlots<kVectors> * (kSsuThreads / params.lanes);
  params.blocks_per_head = (args.headdim + rows - 1) / rows;
  const int64_t blocks = args.batch * args.nheads * params.blocks_per_head;
  if (blocks == 0 || args.ntokens == 0) return LLAMBA_OK;
  CUDA_CHECK("selective_state_update", launch(selective_state_update_kernel<S, kVectors>, grid_of(blocks),
                                              dim3(kSsuThreads), 0, static_cast<cudaStream_t>(stream), params));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

using namespace llamba;

extern "C" int llamba_selective_state_update_cuda(const llamba_selective_state_update_args* args, void* stream) {
  const int status = check_ssu(args);
  if (status != LLAMBA_OK) return status;
  switch (args->state_dtype) {
    case LLAMBA_FLOAT32:
      return args->dstate <= kWarpLanes * kVector<float> ? launch_rows<float, 1>(*args, stream)
                                                         : launch_rows<float, 2>(*args, stream);
    case LLAMBA_BFLOAT16: return launch_rows<bfloat16, 1>(*args, stream);
    case LLAMBA_FLOAT16: return launch_rows<float16, 1>(*args, stream);
  }
  return LLAMBA_OK;
}
