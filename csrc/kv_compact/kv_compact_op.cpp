// Host function of kv_compact: checks every tensor, fills the struct, runs it.
#include <string>
#include <vector>

#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void kv_compact(const std::vector<Tensor>& k_caches, const std::vector<Tensor>& v_caches, const Tensor& cursor,
                const Tensor& slots, const Tensor& accepted, const Tensor& path) {
  constexpr const char* kOp = "kv_compact";
  llamba_kv_compact_args args{sizeof(args)};
  CHECK_DIM(cursor, 2, 2);
  CHECK_DTYPE(cursor, Int);
  CHECK_STRIDE(cursor, -1, 1);
  check_range(kOp, "columns of cursor", cursor.size(1), LLAMBA_CURSOR_HEADER, INT32_MAX);
  const int64_t ncaches = k_caches.size();
  refuse_in_capture(kOp);
  check_range(kOp, "length of k_caches", ncaches, 1, INT32_MAX);
  check_range(kOp, "length of v_caches", v_caches.size(), ncaches, ncaches);
  CHECK_DIM(slots, 1, 1);
  CHECK_DTYPE(slots, Int);
  CHECK_SAME_DEVICE(slots, cursor);
  CHECK_STRIDE(slots, -1, 1);
  const int64_t batch = slots.size(0);
  CHECK_INDICES(accepted, cursor, batch);
  CHECK_DIM(path, 2, 2);
  const int64_t max_window = path.size(1);
  CHECK_INDICES(path, cursor, batch, max_window);

  std::vector<NamedTensor> caches;
  for (size_t i = 0; i < k_caches.size(); ++i) {
    caches.push_back({"k_caches[" + std::to_string(i) + "]", &k_caches[i]});
    caches.push_back({"v_caches[" + std::to_string(i) + "]", &v_caches[i]});
  }
  const Tensor& first = k_caches[0];
  check_dim(kOp, "k_caches[0]", first, 4, 4);
  args.dtype = check_floating(kOp, "k_caches[0]", first);
  const int64_t nslots = cursor.size(0), kv_heads = first.size(1), max_tokens = first.size(2), head_dim = first.size(3);
  std::vector<void*> data;
  std::vector<int64_t> strides;
  for (const NamedTensor& cache : caches) {
    const char* name = cache.name.c_str();
    check_shape(kOp, name, *cache.tensor, "(nslots, kv_heads, max_tokens, head_dim)",
                {nslots, kv_heads, max_tokens, head_dim});
    check_same_dtype(kOp, name, *cache.tensor, "k_caches[0]", first);
    check_same_device(kOp, name, *cache.tensor, "cursor", cursor);
    check_stride(kOp, name, *cache.tensor, -1, 1);
    check_written(kOp, name, *cache.tensor, "cursor, slots, accepted, path", {cursor, slots, accepted, path}, false);
    data.push_back(cache.tensor->mutable_data_ptr());
    for (int dim = 0; dim < 3; ++dim) strides.push_back(cache.tensor->stride(dim));
  }
  check_apart(kOp, caches);

  args.batch = batch;
  args.max_window = max_window;
  args.nslots = nslots;
  args.kv_heads = kv_heads;
  args.max_tokens = max_tokens;
  args.head_dim = head_dim;
  args.ncaches = static_cast<int64_t>(data.size());
  args.caches = data.data();
  args.cache_strides = strides.data();
  args.cursor = static_cast<const int32_t*>(cursor.const_data_ptr());
  args.cursor_stride_slot = cursor.stride(0);
  args.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  args.accepted = static_cast<const int32_t*>(accepted.const_data_ptr());
  args.path = static_cast<const int32_t*>(path.const_data_ptr());
  args.path_stride_batch = path.stride(0);
  run(kOp, cursor, args, llamba_kv_compact_cpu);
}

}  // namespace llamba
