// How kernels are launched and how they get shared memory. Kernel files use only these two, never <<<>>> and never a
// static __shared__ array, so that the same source also runs under the executor of csrc/simt on the CPU.
#pragma once

#ifdef LLAMBA_SIMT
#include "simt/simt.h"
#else
#include <cuda_runtime.h>
#endif

namespace llamba {

// A kernel takes one struct by value. smem: bytes of its SharedStorage, 0 if it has none.
template <typename Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, dim3 block, size_t smem, cudaStream_t stream, Params params) {
#ifdef LLAMBA_SIMT
  return simt::run(grid, block, smem, [=] { kernel(params); });
#else
  constexpr size_t kDefaultShared = 48 * 1024;  // more must be asked for, per kernel
  if (smem > kDefaultShared) {
    const cudaError_t error = cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(smem));
    if (error != cudaSuccess) return error;
  }
  void* arguments[] = {&params};
  return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid, block, arguments, smem, stream);
#endif
}

// The block's dynamic shared memory as the kernel's SharedStorage struct.
template <typename Storage>
__device__ Storage& shared_storage() {
#ifdef LLAMBA_SIMT
  return *static_cast<Storage*>(simt::shared_bytes());
#else
  extern __shared__ __align__(128) unsigned char bytes[];
  return *reinterpret_cast<Storage*>(bytes);
#endif
}

// A grid of `blocks` for each of a batch's sequences; batch_index() may be beyond them.
constexpr unsigned kMostGridBatch = 65535;
inline dim3 batch_grid(unsigned blocks, unsigned batch) {
  return dim3(blocks, batch < kMostGridBatch ? batch : kMostGridBatch, (batch - 1) / kMostGridBatch + 1);
}
__device__ __forceinline__ int32_t batch_index() {
  return static_cast<int32_t>(blockIdx.y + blockIdx.z * kMostGridBatch);
}

}  // namespace llamba
