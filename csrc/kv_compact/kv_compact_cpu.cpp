// kv_compact on the CPU: checks every slot, then moves rows; paths only go up, so each move reads what no earlier wrote.
#include <cstring>

#include "common/parallel.h"
#include "cursor/cursor_slots.h"

namespace llamba {
namespace {

constexpr const char* kOp = "kv_compact";

int check_numbers(const llamba_kv_compact_args& args) {
  LLAMBA_CHECK_SIZE(kOp, &args);
  LLAMBA_CHECK_DTYPE(kOp, &args);
  LLAMBA_CHECK_LEAST(kOp, &args, batch, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, max_window, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, nslots, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, kv_heads, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, max_tokens, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, head_dim, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, ncaches, 0);
  return check_slots(kOp, args.slots, args.batch, args.nslots);
}

int check_path(const llamba_kv_compact_args& args, int64_t i) {
  const int32_t slot = args.slots[i], accepted = args.accepted[i];
  const int32_t* header = args.cursor + slot * args.cursor_stride_slot;
  const int32_t position = header[kPosition], ntokens = header[kNtokens];
  if (ntokens <= kNoStep) {
    return fail(LLAMBA_VALUE_ERROR, "%s: slot %d must have an open step; got none (cursor_begin opens it)", kOp, slot);
  }
  if (position < 0 || int64_t{position} + ntokens > args.max_tokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: slot %d must stay within max_tokens = %" PRId64 "; got %d + %d tokens", kOp,
                slot, args.max_tokens, position, ntokens);
  }
  if (accepted < 0 || accepted > ntokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: accepted must be 0 to the open step's %d tokens; got %d for slot %d", kOp,
                ntokens, accepted, slot);
  }
  if (accepted > args.max_window) {
    return fail(LLAMBA_VALUE_ERROR, "%s: path must hold the %d accepted tokens of slot %d; got %" PRId64, kOp, accepted,
                slot, args.max_window);
  }
  int32_t before = -1;
  for (int32_t depth = 0; depth < accepted; ++depth) {
    const int32_t token = args.path[i * args.path_stride_batch + depth];
    if (token <= before || token >= ntokens) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: path must go up through the open step's tokens, 0 to %d; got %d after %d for slot %d", kOp,
                  ntokens - 1, token, before, slot);
    }
    before = token;
  }
  return LLAMBA_OK;
}

void move_rows(const llamba_kv_compact_args& args, int64_t cache, int64_t i, int64_t element_size) {
  const int64_t* strides = args.cache_strides + 3 * cache;  // slot, head, token
  const int32_t slot = args.slots[i];
  const int64_t position = args.cursor[slot * args.cursor_stride_slot + kPosition];
  char* rows = static_cast<char*>(args.caches[cache]) + (slot * strides[0] + position * strides[2]) * element_size;
  for (int32_t depth = 0; depth < args.accepted[i]; ++depth) {
    const int64_t token = args.path[i * args.path_stride_batch + depth];
    if (token == depth) continue;
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      char* head_rows = rows + head * strides[1] * element_size;
      std::memcpy(head_rows + depth * strides[2] * element_size, head_rows + token * strides[2] * element_size,
                  args.head_dim * element_size);
    }
  }
}

int kv_compact(const llamba_kv_compact_args& args) {
  int status = check_numbers(args);
  for (int64_t i = 0; status == LLAMBA_OK && i < args.batch; ++i) {
    if (args.slots[i] >= 0) status = check_path(args, i);
  }
  if (status != LLAMBA_OK || args.head_dim == 0) return status;  // memcpy takes no null pointer, not even for 0 bytes
  const int64_t element_size = args.dtype == LLAMBA_FLOAT32 ? 4 : 2;
  constexpr int64_t kCopiesPerThread = 1 << 18;  // elements
  const int64_t elements = args.max_window * args.kv_heads * args.head_dim;
  parallel_for(0, args.ncaches * args.batch, kCopiesPerThread / (elements + 1) + 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      if (args.slots[item % args.batch] >= 0) move_rows(args, item / args.batch, item % args.batch, element_size);
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_kv_compact_cpu(const llamba_kv_compact_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::kv_compact(*args); });
}
