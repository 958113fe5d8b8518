#include <cinttypes>
#include <cstring>
#include <vector>

#include "common/parallel.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"
#include "slot_copy/slot_copy_check.h"

namespace llamba {
namespace {

constexpr const char* kOp = "slot_copy";

int check(const llamba_slot_copy_args& args) {
  int status = check_slot_copy(&args);
  if (status == LLAMBA_OK) status = check_slots(kOp, args.dst, args.batch, args.cursor.nslots, "dst");
  if (status != LLAMBA_OK) return status;
  int64_t first_kv = 0;
  while (first_kv < args.nbuffers && args.buffers[first_kv].token_dim < 0) ++first_kv;
  std::vector<char> is_dst(args.cursor.nslots, 0);
  for (int64_t i = 0; i < args.batch; ++i) {
    if ((args.src[i] < 0) != (args.dst[i] < 0)) {
      return fail(LLAMBA_VALUE_ERROR, "%s: src and dst must both be slots or both be padding; got %d and %d", kOp,
                  args.src[i], args.dst[i]);
    }
    if (args.dst[i] >= 0) is_dst[args.dst[i]] = 1;
  }
  for (int64_t i = 0; i < args.batch; ++i) {
    const int32_t slot = args.src[i];
    if (slot < 0) continue;
    if (slot >= args.cursor.nslots) {
      return fail(LLAMBA_VALUE_ERROR, "%s: src must be below nslots = %" PRId64 "; got %d at index %" PRId64, kOp,
                  args.cursor.nslots, slot, i);
    }
    if (is_dst[slot]) {
      return fail(LLAMBA_VALUE_ERROR, "%s: src must name no slot of dst; got %d in both", kOp, slot);
    }
    status = check_slot(kOp, args.cursor, slot);
    if (status != LLAMBA_OK) return status;
    const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
    if (header[kNtokens] != kNoStep) {
      return fail(LLAMBA_VALUE_ERROR, "%s: src slot %d must have no open step (commit it first); got one of %d tokens",
                  kOp, slot, header[kNtokens]);
    }
    for (int64_t b = 0; b < args.nbuffers; ++b) {
      const llamba_slot_buffer& buffer = args.buffers[b];
      if (buffer.token_dim >= 0 && header[kPosition] > buffer.sizes[buffer.token_dim]) {
        return fail(LLAMBA_VALUE_ERROR, "%s: kv must hold the %d tokens of slot %d; got %" PRId64 " in kv[%" PRId64 "]",
                    kOp, header[kPosition], slot, buffer.sizes[buffer.token_dim], b - first_kv);
      }
    }
  }
  return LLAMBA_OK;
}

// Dimensions `dim` and on; runs without gaps are copied at once.
void copy_part(const llamba_slot_buffer& buffer, const int64_t* sizes, int32_t dim, const char* from, char* to) {
  int64_t run = buffer.element_size;  // bytes of the dimensions from `dense` on, which leave no gaps
  int32_t dense = buffer.ndim;
  while (dense > dim && (sizes[dense - 1] == 1 || buffer.strides[dense - 1] * buffer.element_size == run)) {
    run *= sizes[--dense];
  }
  if (dense == dim) {
    std::memcpy(to, from, run);
    return;
  }
  const int64_t stride = buffer.strides[dim] * buffer.element_size;
  for (int64_t i = 0; i < sizes[dim]; ++i) copy_part(buffer, sizes, dim + 1, from + i * stride, to + i * stride);
}

void copy_buffer(const llamba_slot_buffer& buffer, int32_t src, int32_t dst, int32_t position) {
  int64_t sizes[LLAMBA_MAX_DIMS];
  for (int32_t dim = 0; dim < buffer.ndim; ++dim) sizes[dim] = dim == buffer.token_dim ? position : buffer.sizes[dim];
  for (int32_t dim = 1; dim < buffer.ndim; ++dim) {
    if (sizes[dim] == 0) return;
  }
  char* data = static_cast<char*>(buffer.data);
  const int64_t stride = buffer.strides[0] * buffer.element_size;
  copy_part(buffer, sizes, 1, data + src * stride, data + dst * stride);
}

int slot_copy(const llamba_slot_copy_args& args) {
  const int status = check(args);
  if (status != LLAMBA_OK) return status;
  parallel_for(0, args.batch * args.nbuffers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t i = item / args.nbuffers;
      if (args.src[i] < 0) continue;
      const int32_t position = args.cursor.data[args.src[i] * args.cursor.slot_stride + kPosition];
      copy_buffer(args.buffers[item % args.nbuffers], args.src[i], args.dst[i], position);
    }
  });
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.src[i] < 0) continue;
    const int32_t* from = args.cursor.data + args.src[i] * args.cursor.slot_stride;
    std::memcpy(args.cursor.data + args.dst[i] * args.cursor.slot_stride, from,
                (LLAMBA_CURSOR_HEADER + table_size(args.cursor)) * sizeof(int32_t));
  }
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_slot_copy_cpu(const llamba_slot_copy_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::slot_copy(*args); });
}
