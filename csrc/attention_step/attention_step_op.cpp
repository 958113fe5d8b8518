// Host function of attention_step: checks every tensor, fills the struct, runs it.
#include <utility>

#include "common/check.h"
#include "common/run.h"
#include "ops.h"

namespace llamba {

void attention_step(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& k_cache, const Tensor& v_cache,
                    const Tensor& cursor, const Tensor& slots, double scale, int64_t sliding_window,
                    const std::optional<Tensor>& parents, const Tensor& out) {
  constexpr const char* kOp = "attention_step";
  llamba_attention_step_args args{sizeof(args)};
  args.dtype = CHECK_FLOATING(q);
  CHECK_DIM(q, 4, 4);
  CHECK_STRIDE(q, -1, 1);
  CHECK_DIM(k_cache, 4, 4);
  const int64_t batch = q.size(0), ntokens = q.size(1), nheads = q.size(2), head_dim = q.size(3);
  const int64_t nslots = k_cache.size(0), kv_heads = k_cache.size(1), max_tokens = k_cache.size(2);
  CHECK_SHAPE(k_cache, nslots, kv_heads, max_tokens, head_dim);
  CHECK_SAME_SHAPE(v_cache, k_cache);
  CHECK_SHAPE(k, batch, ntokens, kv_heads, head_dim);
  CHECK_SAME_SHAPE(v, k);
  CHECK_SAME_SHAPE(out, q);
  for (const auto& [name, tensor] : {std::pair<const char*, const Tensor*>{"k", &k},
                                     {"v", &v},
                                     {"k_cache", &k_cache},
                                     {"v_cache", &v_cache},
                                     {"out", &out}}) {
    check_same_dtype(kOp, name, *tensor, "q", q);
    check_same_device(kOp, name, *tensor, "q", q);
    check_stride(kOp, name, *tensor, -1, 1);
  }
  CHECK_DIM(cursor, 2, 2);
  CHECK_DTYPE(cursor, Int);
  CHECK_SAME_DEVICE(cursor, q);
  CHECK_STRIDE(cursor, -1, 1);
  const int64_t cursor_columns = cursor.size(1);
  CHECK_SHAPE(cursor, nslots, cursor_columns);
  check_range(kOp, "columns of cursor", cursor_columns, LLAMBA_CURSOR_HEADER, INT32_MAX);
  CHECK_INDICES(slots, q, batch);
  if (parents.has_value()) {
    CHECK_INDICES(*parents, q, batch, ntokens);
    args.parents = static_cast<const int32_t*>(parents->const_data_ptr());
    args.parents_stride_batch = parents->stride(0);
  }
  CHECK_WRITTEN(k_cache, q, k, v, cursor, slots, parents);
  CHECK_WRITTEN(v_cache, q, k, v, k_cache, cursor, slots, parents);
  CHECK_WRITTEN(out, q, k, v, k_cache, v_cache, cursor, slots, parents);

  args.batch = batch;
  args.max_ntokens = ntokens;
  args.nheads = nheads;
  args.kv_heads = kv_heads;
  args.head_dim = head_dim;
  args.nslots = nslots;
  args.max_tokens = max_tokens;
  args.scale = CHECK_FLOAT(scale);
  args.sliding_window = sliding_window;
  args.q = q.const_data_ptr();
  args.q_stride_batch = q.stride(0);
  args.q_stride_token = q.stride(1);
  args.q_stride_head = q.stride(2);
  args.k = k.const_data_ptr();
  args.k_stride_batch = k.stride(0);
  args.k_stride_token = k.stride(1);
  args.k_stride_head = k.stride(2);
  args.v = v.const_data_ptr();
  args.v_stride_batch = v.stride(0);
  args.v_stride_token = v.stride(1);
  args.v_stride_head = v.stride(2);
  args.k_cache = k_cache.mutable_data_ptr();
  args.k_cache_stride_slot = k_cache.stride(0);
  args.k_cache_stride_head = k_cache.stride(1);
  args.k_cache_stride_token = k_cache.stride(2);
  args.v_cache = v_cache.mutable_data_ptr();
  args.v_cache_stride_slot = v_cache.stride(0);
  args.v_cache_stride_head = v_cache.stride(1);
  args.v_cache_stride_token = v_cache.stride(2);
  args.cursor = static_cast<const int32_t*>(cursor.const_data_ptr());
  args.cursor_stride_slot = cursor.stride(0);
  args.slots = static_cast<const int32_t*>(slots.const_data_ptr());
  args.out = out.mutable_data_ptr();
  args.out_stride_batch = out.stride(0);
  args.out_stride_token = out.stride(1);
  args.out_stride_head = out.stride(2);
  run(kOp, q, args, llamba_attention_step_cpu);
}

}  // namespace llamba
