// slot_copy on CUDA devices: describes the buffers, kCopyBuffers for each launch, the cursor's table as one of them.
#include <algorithm>

#include "common/cuda_check.h"
#include "common/launch.cuh"
#include "slot_copy/slot_copy_check.h"
#include "slot_copy/slot_copy_kernel.cuh"

namespace llamba {
namespace {

// Dimensions that leave no gap are one, of the largest units that fit everywhere.
CopyBuffer described(const llamba_slot_buffer& buffer) {
  CopyBuffer result{};
  result.data = static_cast<char*>(buffer.data);
  result.slot_stride = buffer.strides[0] * buffer.element_size;
  result.sizes[0] = buffer.element_size;
  result.strides[0] = 1;
  result.token_dim = -1;
  int32_t last = 0;
  for (int32_t dim = buffer.ndim - 1; dim > 0; --dim) {
    const bool is_token = dim == buffer.token_dim;
    const int64_t size = is_token ? 1 : buffer.sizes[dim];  // of tokens: 1 times the position
    const int64_t stride = buffer.strides[dim] * buffer.element_size;
    if (size == 1 && !is_token) continue;
    if (last == result.token_dim || stride != result.sizes[last] * result.strides[last]) {
      ++last;
      result.sizes[last] = 1;
      result.strides[last] = stride;
    }
    result.sizes[last] *= size;
    if (is_token) result.token_dim = last;
  }
  result.ndim = last + 1;
  int64_t all = reinterpret_cast<intptr_t>(result.data) | result.slot_stride | result.sizes[0];
  for (int32_t dim = 1; dim <= last; ++dim) all |= result.strides[dim];
  result.unit = all % 16 == 0 ? 16 : all % 4 == 0 ? 4 : 1;
  result.sizes[0] /= result.unit;
  result.strides[0] = result.unit;
  return result;
}

llamba_slot_buffer cursor_buffer(const llamba_cursor& cursor) {
  llamba_slot_buffer buffer{cursor.data, sizeof(int32_t), 2, {}, {}, -1};
  buffer.sizes[0] = cursor.nslots;
  buffer.sizes[1] = LLAMBA_CURSOR_HEADER + table_size(cursor);
  buffer.strides[0] = cursor.slot_stride;
  buffer.strides[1] = 1;
  return buffer;
}

int slot_copy(const llamba_slot_copy_args& args, void* stream) {
  if (args.batch == 0 || args.cursor.nslots == 0) return LLAMBA_OK;
  CopyParams params{args.cursor, args.src, args.dst, args.batch, kMostTokens, {}};
  for (int64_t b = 0; b < args.nbuffers; ++b) {
    const llamba_slot_buffer& buffer = args.buffers[b];
    if (buffer.token_dim > 0) params.most_tokens = std::min(params.most_tokens, buffer.sizes[buffer.token_dim]);
  }
  int64_t most_units = 1;
  unsigned count = 0;
  for (int64_t b = 0; b <= args.nbuffers; ++b) {
    const bool is_cursor = b == args.nbuffers;
    const llamba_slot_buffer buffer = is_cursor ? cursor_buffer(args.cursor) : args.buffers[b];
    int64_t elements = 1;
    for (int32_t dim = 1; dim < buffer.ndim; ++dim) elements *= buffer.sizes[dim];
    if (elements == 0) continue;
    params.buffers[count] = described(buffer);
    most_units = std::max(most_units, elements * buffer.element_size / params.buffers[count].unit);
    if (++count < kCopyBuffers && !is_cursor) continue;
    constexpr int64_t kMostParts = 256, kMostPairs = 65535;  // fill any GPU; a grid's limit
    const int64_t parts = (most_units - 1) / (kCopyThreads * kCopyUnroll) + 1;
    const dim3 grid(static_cast<unsigned>(std::min(parts, kMostParts)), count,
                    static_cast<unsigned>(std::min(args.batch, kMostPairs)));
    CUDA_CHECK("slot_copy",
               launch(slot_copy_kernel, grid, dim3(kCopyThreads), 0, static_cast<cudaStream_t>(stream), params));
    most_units = 1;
    count = 0;
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_slot_copy_cuda(const llamba_slot_copy_args* args, void* stream) {
  const int status = llamba::check_slot_copy(args);
  return status == LLAMBA_OK ? llamba::slot_copy(*args, stream) : status;
}
