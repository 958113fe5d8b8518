// attention_step on the CPU: checks every slot, stores the step's keys and values, then attends chunk by chunk.
#include "attention_step/attention_step_cpu.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "common/dtype.h"
#include "common/parallel.h"
#include "cursor/cursor_slots.h"

namespace llamba {
namespace {

constexpr const char* kOp = "attention_step";
// Products a thread should at least compute before a second thread is worth waking (about 10 us of work on one core).
constexpr int64_t kProductsPerPiece = 1 << 19;

int check_numbers(const llamba_attention_step_args& args) {
  LLAMBA_CHECK_SIZE(kOp, &args);
  LLAMBA_CHECK_DTYPE(kOp, &args);
  LLAMBA_CHECK_RANGE(kOp, &args, batch, 0, INT32_MAX);
  LLAMBA_CHECK_RANGE(kOp, &args, max_ntokens, 0, INT32_MAX);
  LLAMBA_CHECK_LEAST(kOp, &args, nheads, 1);
  LLAMBA_CHECK_LEAST(kOp, &args, kv_heads, 1);
  if (args.nheads % args.kv_heads != 0) {
    return fail(LLAMBA_VALUE_ERROR, "%s: kv_heads must divide nheads = %" PRId64 "; got %" PRId64, kOp, args.nheads,
                args.kv_heads);
  }
  LLAMBA_CHECK_RANGE(kOp, &args, head_dim, 1, 256);
  LLAMBA_CHECK_LEAST(kOp, &args, nslots, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, max_tokens, 0);
  LLAMBA_CHECK_LEAST(kOp, &args, sliding_window, 0);
  if (!std::isfinite(args.scale)) return fail(LLAMBA_VALUE_ERROR, "%s: scale must be finite; got %g", kOp, args.scale);
  return LLAMBA_OK;
}

// Refuses a step that does not fit the tensors, or whose tokens are no tree.
int check_step(const llamba_attention_step_args& args, int64_t i) {
  const int32_t slot = args.slots[i];
  const int32_t* header = args.cursor + slot * args.cursor_stride_slot;
  const int32_t position = header[kPosition], ntokens = header[kNtokens];
  const int status = check_open_step(kOp, header, slot);
  if (status != LLAMBA_OK) return status;
  if (ntokens > args.max_ntokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: q must hold the open step's %d tokens of slot %d; got %" PRId64, kOp, ntokens,
                slot, args.max_ntokens);
  }
  if (position < 0 || int64_t{position} + ntokens > args.max_tokens) {
    return fail(LLAMBA_VALUE_ERROR, "%s: slot %d must stay within max_tokens = %" PRId64 "; got %d + %d tokens", kOp,
                slot, args.max_tokens, position, ntokens);
  }
  const int32_t* parents = args.parents ? args.parents + i * args.parents_stride_batch : nullptr;
  return check_parents(kOp, parents, ntokens, slot);
}

// Depth of every token, and of every token the path from its root to itself: row `token` of [ntokens, ntokens].
void trace_tree(const int32_t* parents, int32_t ntokens, int32_t* depth, int32_t* path) {
  for (int32_t token = 0; token < ntokens; ++token) {
    const int32_t parent = parents[token];
    depth[token] = parent < 0 ? 0 : depth[parent] + 1;
    int32_t* own = path + int64_t{token} * ntokens;
    if (parent >= 0) std::memcpy(own, path + int64_t{parent} * ntokens, depth[token] * sizeof(int32_t));
    own[depth[token]] = token;
  }
}

// Stores the keys and values of tokens [begin, end), counted through ntokens, at position + token.
template <typename T>
void store_tokens(const llamba_attention_step_args& args, const AttentionSequence& sequence, int64_t begin,
                  int64_t end) {
  const size_t bytes = args.head_dim * sizeof(T);
  for (int64_t token = begin; token < end; ++token) {
    const int64_t row = sequence.position + token;
    for (int64_t head = 0; head < args.kv_heads; ++head) {
      const T* k = static_cast<const T*>(args.k) + sequence.batch_idx * args.k_stride_batch +
                   token * args.k_stride_token + head * args.k_stride_head;
      const T* v = static_cast<const T*>(args.v) + sequence.batch_idx * args.v_stride_batch +
                   token * args.v_stride_token + head * args.v_stride_head;
      T* k_row = static_cast<T*>(args.k_cache) + sequence.slot * args.k_cache_stride_slot +
                 head * args.k_cache_stride_head + row * args.k_cache_stride_token;
      T* v_row = static_cast<T*>(args.v_cache) + sequence.slot * args.v_cache_stride_slot +
                 head * args.v_cache_stride_head + row * args.v_cache_stride_token;
      std::memcpy(k_row, k, bytes);
      std::memcpy(v_row, v, bytes);
    }
  }
}

template <typename T>
void write_zero(const llamba_attention_step_args& args, int64_t i, int64_t first_token) {
  for (int64_t token = first_token; token < args.max_ntokens; ++token) {
    for (int64_t head = 0; head < args.nheads; ++head) {
      T* out = static_cast<T*>(args.out) + i * args.out_stride_batch + token * args.out_stride_token +
               head * args.out_stride_head;
      std::memset(out, 0, args.head_dim * sizeof(T));
    }
  }
}

// Grows and never shrinks: kept between calls, so that a step allocates nothing once the largest has been seen.
template <typename T>
T* at_least(std::vector<T>& storage, int64_t size) {
  if (static_cast<int64_t>(storage.size()) < size) storage.resize(size);
  return storage.data();
}

// Calls body(sequence, begin, end) for the items [begin, end) of each sequence, in parallel; items_of(sequence) many.
template <typename ItemsOf, typename Body>
void for_items(const std::vector<AttentionSequence>& sequences, int64_t grain, const ItemsOf& items_of,
               const Body& body) {
  int64_t count = 0;
  for (const AttentionSequence& sequence : sequences) count += items_of(sequence);
  const AttentionSequence* const all = sequences.data();
  parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    const AttentionSequence* sequence = all;
    for (int64_t first = 0; begin < end; first += items_of(*sequence), ++sequence) {
      const int64_t last = first + items_of(*sequence);
      if (begin >= last) continue;
      const int64_t stop = end < last ? end : last;
      body(*sequence, begin - first, stop - first);
      begin = stop;
    }
  });
}

template <typename T>
int attention_step(const llamba_attention_step_args& args) {
  static thread_local std::vector<AttentionSequence> sequences;
  static thread_local std::vector<int32_t> tree_storage;
  static thread_local std::vector<float> partial_storage;
  AttentionSizes sizes;
  sizes.group = args.nheads / args.kv_heads;
  sizes.padded = (args.head_dim + 15) / 16 * 16;
  sizes.partial = sizes.padded + 16;

  sequences.clear();
  int64_t tree_size = 0, partial_size = 0, tokens = 0, most_tokens = 0, most_chunks = 0;
  for (int64_t i = 0; i < args.batch; ++i) {
    if (args.slots[i] < 0) continue;
    const int32_t* header = args.cursor + args.slots[i] * args.cursor_stride_slot;
    AttentionSequence sequence{};
    sequence.batch_idx = i;
    sequence.slot = args.slots[i];
    sequence.position = header[kPosition];
    sequence.ntokens = header[kNtokens];
    sequence.nchunks = (sequence.position + sequence.ntokens - 1) / kChunk + 1;  // a tree may need fewer
    sequences.push_back(sequence);
    tokens += sequence.ntokens;
    most_tokens = sequence.ntokens > most_tokens ? sequence.ntokens : most_tokens;
    most_chunks = sequence.nchunks > most_chunks ? sequence.nchunks : most_chunks;
    tree_size += args.parents ? sequence.ntokens * (sequence.ntokens + 1) : 0;
    partial_size += args.kv_heads * sequence.nchunks * sequence.ntokens * sizes.group * sizes.partial;
  }
  int32_t* tree = at_least(tree_storage, tree_size);
  float* partials = at_least(partial_storage, partial_size);
  for (AttentionSequence& sequence : sequences) {
    sequence.partials = partials;
    partials += args.kv_heads * sequence.nchunks * sequence.ntokens * sizes.group * sizes.partial;
    if (args.parents == nullptr) continue;
    const int32_t* parents = args.parents + sequence.batch_idx * args.parents_stride_batch;
    trace_tree(parents, static_cast<int32_t>(sequence.ntokens), tree, tree + sequence.ntokens);
    sequence.depth = tree;
    sequence.path = tree + sequence.ntokens;
    tree += sequence.ntokens * (sequence.ntokens + 1);
  }

  const int64_t products_per_token = 2 * args.kv_heads * sizes.padded;  // a copy counts as a product here
  for_items(
      sequences, kProductsPerPiece / products_per_token + 1,
      [](const AttentionSequence& sequence) { return sequence.ntokens; },
      [&](const AttentionSequence& sequence, int64_t begin, int64_t end) {
        store_tokens<T>(args, sequence, begin, end);
      });
  const int64_t queries = most_tokens * sizes.group;
  const int64_t scratch_size = queries * (sizes.padded + kChunk) + 16 * sizes.padded;
  for_items(
      sequences, kProductsPerPiece / (2 * queries * sizes.padded * kChunk + 1) + 1,
      [&](const AttentionSequence& sequence) { return args.kv_heads * sequence.nchunks; },
      [&](const AttentionSequence& sequence, int64_t begin, int64_t end) {
        static thread_local std::vector<float> scratch_storage;
        float* scratch = at_least(scratch_storage, scratch_size);
        for (int64_t item = begin; item < end; ++item) {
          LLAMBA_CALL_ISA(attend_chunk, args, sizes, sequence, item / sequence.nchunks, item % sequence.nchunks,
                          scratch);
        }
      });
  const int64_t products_per_head = most_tokens * sizes.padded * most_chunks;
  for_items(
      sequences, kProductsPerPiece / (products_per_head + 1) + 1, [&](const AttentionSequence&) { return args.nheads; },
      [&](const AttentionSequence& sequence, int64_t begin, int64_t end) {
        LLAMBA_CALL_ISA(combine_chunks, args, sizes, sequence, begin, end);
      });

  size_t next = 0;
  for (int64_t i = 0; i < args.batch; ++i) {
    const bool padding = next >= sequences.size() || sequences[next].batch_idx != i;
    write_zero<T>(args, i, padding ? 0 : sequences[next++].ntokens);
  }
  return LLAMBA_OK;
}

int check_and_run(const llamba_attention_step_args& args) {
  int status = check_numbers(args);
  if (status == LLAMBA_OK) status = check_slots(kOp, args.slots, args.batch, args.nslots);
  for (int64_t i = 0; status == LLAMBA_OK && i < args.batch; ++i) {
    if (args.slots[i] >= 0) status = check_step(args, i);
  }
  if (status != LLAMBA_OK) return status;
  LLAMBA_SWITCH_DTYPE(args.dtype, T, return attention_step<T>(args));
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_attention_step_cpu(const llamba_attention_step_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::check_and_run(*args); });
}
