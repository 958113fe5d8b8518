// Host functions of cursor_reset, cursor_begin, cursor_commit and cursor_rollback.
#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {
namespace {

// cursor: [nslots, HEADER + width-1 + capacity] int32; slots and values: [batch] int32 beside it.
llamba_cursor checked_cursor(const char* kOp, const Tensor& cursor, const Tensor& slots, int64_t width) {
  CHECK_DIM(cursor, 2, 2);
  CHECK_DTYPE(cursor, Int);
  CHECK_STRIDE(cursor, -1, 1);
  CHECK_RANGE(width, 2, 4);
  CHECK_DIM(slots, 1, 1);
  CHECK_DTYPE(slots, Int);
  CHECK_STRIDE(slots, -1, 1);
  CHECK_SAME_DEVICE(slots, cursor);
  const int64_t capacity = cursor.size(1) - LLAMBA_CURSOR_HEADER - (width - 1);
  return llamba_cursor{static_cast<int32_t*>(cursor.mutable_data_ptr()), cursor.size(0), cursor.stride(0),
                       static_cast<int32_t>(width), static_cast<int32_t>(capacity)};
}

llamba_session checked_session(const char* kOp, int64_t fold_every, int64_t max_rollback, int64_t max_window) {
  constexpr int64_t kMost = 1 << 20;  // far above any use; keeps the sums below in range
  CHECK_RANGE(fold_every, 1, kMost);
  CHECK_RANGE(max_rollback, 0, kMost);
  CHECK_RANGE(max_window, 1, kMost);
  return llamba_session{static_cast<int32_t>(fold_every), static_cast<int32_t>(max_rollback),
                        static_cast<int32_t>(max_window)};
}

const int32_t* int32_data(const Tensor& tensor) { return static_cast<const int32_t*>(tensor.const_data_ptr()); }

}  // namespace

void cursor_reset(const Tensor& cursor, const Tensor& slots, const std::optional<Tensor>& prompt, int64_t width,
                  int64_t fold_every, int64_t max_rollback, int64_t max_window) {
  constexpr const char* kOp = "cursor_reset";
  llamba_cursor_reset_args args{sizeof(args)};
  args.cursor = checked_cursor(kOp, cursor, slots, width);
  const int64_t batch = slots.size(0);
  args.session = checked_session(kOp, fold_every, max_rollback, max_window);
  if (prompt.has_value()) CHECK_INDICES(*prompt, slots, batch);
  CHECK_WRITTEN(cursor, slots, prompt);
  args.slots = int32_data(slots);
  args.prompt = prompt.has_value() ? int32_data(*prompt) : nullptr;
  args.batch = batch;
  run(kOp, cursor, args, llamba_cursor_reset_cpu);
}

void cursor_begin(const Tensor& cursor, const Tensor& slots, const Tensor& ntokens, int64_t width, int64_t fold_every,
                  int64_t max_rollback, int64_t max_window) {
  constexpr const char* kOp = "cursor_begin";
  llamba_cursor_begin_args args{sizeof(args)};
  args.cursor = checked_cursor(kOp, cursor, slots, width);
  const int64_t batch = slots.size(0);
  args.session = checked_session(kOp, fold_every, max_rollback, max_window);
  CHECK_INDICES(ntokens, slots, batch);
  CHECK_WRITTEN(cursor, slots, ntokens);
  args.slots = int32_data(slots);
  args.ntokens = int32_data(ntokens);
  args.batch = batch;
  run(kOp, cursor, args, llamba_cursor_begin_cpu);
}

void cursor_commit(const Tensor& cursor, const Tensor& slots, const Tensor& accepted, const std::optional<Tensor>& path,
                   int64_t width) {
  constexpr const char* kOp = "cursor_commit";
  llamba_cursor_commit_args args{sizeof(args)};
  args.cursor = checked_cursor(kOp, cursor, slots, width);
  const int64_t batch = slots.size(0);
  CHECK_INDICES(accepted, slots, batch);
  CHECK_WRITTEN(cursor, slots, accepted);
  args.slots = int32_data(slots);
  args.accepted = int32_data(accepted);
  if (path.has_value()) {
    CHECK_DIM(*path, 2, 2);
    const int64_t length = path->size(1);
    CHECK_INDICES(*path, cursor, batch, length);
    CHECK_WRITTEN(cursor, *path);
    static const int32_t kNoPath = 0;  // torch has no address for an empty tensor, but nullptr would mean a chain
    args.path = path->numel() > 0 ? int32_data(*path) : &kNoPath;
    args.path_stride_batch = path->stride(0);
    args.path_length = length;
  }
  args.batch = batch;
  run(kOp, cursor, args, llamba_cursor_commit_cpu);
}

void cursor_rollback(const Tensor& cursor, const Tensor& slots, const Tensor& n, int64_t width, int64_t fold_every,
                     int64_t max_rollback, int64_t max_window) {
  constexpr const char* kOp = "cursor_rollback";
  llamba_cursor_rollback_args args{sizeof(args)};
  args.cursor = checked_cursor(kOp, cursor, slots, width);
  const int64_t batch = slots.size(0);
  args.session = checked_session(kOp, fold_every, max_rollback, max_window);
  CHECK_INDICES(n, slots, batch);
  CHECK_WRITTEN(cursor, slots, n);
  args.slots = int32_data(slots);
  args.n = int32_data(n);
  args.batch = batch;
  run(kOp, cursor, args, llamba_cursor_rollback_cpu);
}

}  // namespace llamba
