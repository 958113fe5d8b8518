// What the CPU entry point of attention_step asks of the kernels of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

constexpr int64_t kChunk = 256;  // keys: a chunk begins at a multiple of it, whatever the step

struct AttentionSizes {
  int64_t group;    // query heads per kv head
  int64_t padded;   // head_dim up to whole vectors
  int64_t partial;  // floats of one partial result: padded sums, the maximum, the total weight, padding
};

// The open step of one sequence. Query token t stands at position + depth(t) and sees the keys from first_seen to there:
// committed ones, then its path: of each depth d the step's token path[t][d].
struct AttentionSequence {
  int64_t batch_idx, slot, position, ntokens;
  int64_t nchunks;       // that any of its tokens sees
  const int32_t* depth;  // [ntokens] or nullptr, a chain: t
  const int32_t* path;   // [ntokens, ntokens] or nullptr, a chain: d
  float* partials;       // [kv_heads, nchunks, ntokens * group, partial]
};

[[maybe_unused]] static inline int64_t depth_of(const AttentionSequence& sequence, int64_t token) {
  return sequence.depth ? sequence.depth[token] : token;
}

// The first position that the token at `place` sees.
[[maybe_unused]] static inline int64_t first_seen(const llamba_attention_step_args& args, int64_t place) {
  return args.sliding_window > 0 && place >= args.sliding_window ? place - args.sliding_window + 1 : 0;
}

// The partial results of all queries of one kv head over one chunk of keys; of use for those that see some of it.
// scratch: ntokens * group * (padded + kChunk) + 16 * padded floats, of no use to anyone else.
LLAMBA_DECLARE_ISA(void attend_chunk(const llamba_attention_step_args& args, const AttentionSizes& sizes,
                                     const AttentionSequence& sequence, int64_t kv_head, int64_t chunk, float* scratch))
// out of heads [begin, end) of a sequence: its partial results put together in the order of the chunks.
LLAMBA_DECLARE_ISA(void combine_chunks(const llamba_attention_step_args& args, const AttentionSizes& sizes,
                                       const AttentionSequence& sequence, int64_t begin, int64_t end))

}  // namespace llamba
