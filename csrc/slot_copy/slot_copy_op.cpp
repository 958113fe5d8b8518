// Host function of slot_copy: checks every tensor, describes the buffers, runs it.
#include <string>

#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

constexpr const char* kOp = "slot_copy";

llamba_slot_buffer checked_buffer(const std::string& text, const Tensor& buffer, int32_t token_dim,
                                  const Tensor& cursor, const Tensor& src, const Tensor& dst) {
  const char* name = text.c_str();
  check_dim(kOp, name, buffer, token_dim < 0 ? 1 : 4, token_dim < 0 ? LLAMBA_MAX_DIMS : 4);
  check_range(kOp, ("size of " + text + " in dimension 0").c_str(), buffer.size(0), cursor.size(0), cursor.size(0));
  check_same_device(kOp, name, buffer, "cursor", cursor);
  check_written(kOp, name, buffer, "cursor, src, dst", {cursor, src, dst}, false);
  llamba_slot_buffer result{};
  result.data = buffer.mutable_data_ptr();
  result.element_size = static_cast<int32_t>(buffer.element_size());
  result.ndim = static_cast<int32_t>(buffer.dim());
  result.token_dim = token_dim;
  for (int32_t dim = 0; dim < result.ndim; ++dim) {
    result.sizes[dim] = buffer.size(dim);
    result.strides[dim] = buffer.stride(dim);
  }
  return result;
}

}  // namespace

void slot_copy(const Tensor& cursor, const std::vector<Tensor>& states, const std::vector<Tensor>& kv,
               const Tensor& src, const Tensor& dst, int64_t width) {
  refuse_in_capture(kOp);
  CHECK_DIM(cursor, 2, 2);
  CHECK_DTYPE(cursor, Int);
  CHECK_STRIDE(cursor, -1, 1);
  CHECK_RANGE(width, 2, 4);
  CHECK_DIM(src, 1, 1);
  const int64_t batch = src.size(0);
  CHECK_DTYPE(src, Int);
  CHECK_STRIDE(src, -1, 1);
  CHECK_SAME_DEVICE(src, cursor);
  CHECK_INDICES(dst, cursor, batch);
  CHECK_WRITTEN(cursor, src, dst);
  std::vector<llamba_slot_buffer> buffers;
  std::vector<NamedTensor> named;
  constexpr int32_t kTokenDim = 2;  // of [nslots, kv_heads, max_tokens, head_dim]
  for (const Tensor& buffer : states) named.push_back({"states[" + std::to_string(named.size()) + "]", &buffer});
  for (const Tensor& buffer : kv) {
    named.push_back({"kv[" + std::to_string(named.size() - states.size()) + "]", &buffer});
  }
  for (const auto& [name, buffer] : named) {
    buffers.push_back(checked_buffer(name, *buffer, buffers.size() < states.size() ? -1 : kTokenDim, cursor, src, dst));
  }
  check_apart(kOp, named);
  llamba_slot_copy_args args{sizeof(args)};
  args.cursor = llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), cursor.size(0), cursor.stride(0),
                              static_cast<int32_t>(width),
                              static_cast<int32_t>(cursor.size(1) - LLAMBA_CURSOR_HEADER - (width - 1))};
  args.buffer_size = sizeof(llamba_slot_buffer);
  args.buffers = buffers.data();
  args.nbuffers = static_cast<int64_t>(buffers.size());
  args.src = static_cast<const int32_t*>(src.const_data_ptr());
  args.dst = static_cast<const int32_t*>(dst.const_data_ptr());
  args.batch = batch;
  run(kOp, cursor, args, llamba_slot_copy_cpu);
}

}  // namespace llamba
