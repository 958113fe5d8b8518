#include "checkpointing_ssu/checkpointing_ssu_cpu.h"

#include <algorithm>
#include <cinttypes>
#include <vector>

#include "checkpointing_ssu/checkpointing_ssu_check.h"
#include "common/dtype.h"
#include "common/parallel.h"

namespace llamba {
namespace {

constexpr const char* kOp = "checkpointing_ssu";
using Args = llamba_checkpointing_ssu_args;

int find_tokens(const Args& args, int64_t i, RingSequence* sequence) {
  int64_t ntokens = args.ntokens;
  sequence->batch_idx = i;
  if (args.cu_seqlens) {
    const int64_t begin = args.cu_seqlens[i], end = args.cu_seqlens[i + 1];
    if (begin < 0 || begin > end || end > args.ntokens) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: cu_seqlens must not descend, from at least 0 to at most the tokens of x, %" PRId64
                  "; got %" PRId64 " before %" PRId64,
                  kOp, args.ntokens, begin, end);
    }
    sequence->batch_idx = 0;
    sequence->first_token = begin;
    ntokens = end - begin;
  }
  if (ntokens > args.ring - args.window) {
    return fail(LLAMBA_VALUE_ERROR, "%s: max_seqlen must be at least the tokens of a sequence, %" PRId64 "; got %d",
                kOp, ntokens, args.ring - args.window);
  }
  sequence->ntokens = static_cast<int32_t>(ntokens);
  return LLAMBA_OK;
}

int64_t slot_of(const Args& args, int64_t i) {
  if (!args.slots) return i;
  return args.slots_are_int64 ? static_cast<const int64_t*>(args.slots)[i * args.slots_stride]
                              : static_cast<const int32_t*>(args.slots)[i * args.slots_stride];
}

// seen: [nslots], which an earlier sequence has.
int find_slot(const Args& args, int64_t i, std::vector<char>* seen, RingSequence* sequence, bool* padding) {
  const int64_t slot = slot_of(args, i);
  *padding = slot < 0 || slot == args.pad_slot;
  if (*padding) return LLAMBA_OK;
  if (slot >= args.nslots) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: state_batch_indices must be below the slots of state, %" PRId64 "; got %" PRId64
                " for sequence %" PRId64,
                kOp, args.nslots, slot, i);
  }
  if ((*seen)[slot]) {
    return fail(LLAMBA_VALUE_ERROR, "%s: state_batch_indices must name a slot at most once; got %" PRId64 " twice", kOp,
                slot);
  }
  (*seen)[slot] = 1;
  sequence->slot = slot;
  sequence->start = args.start[slot];
  sequence->previous = args.previous[slot];
  if (sequence->start < 0 || sequence->start >= args.ring) {
    return fail(LLAMBA_VALUE_ERROR, "%s: ring_start must be 0 to %d; got %d for slot %" PRId64, kOp, args.ring - 1,
                sequence->start, slot);
  }
  if (sequence->previous < 0 || sequence->previous > args.ring - sequence->ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: prev_num_accepted_tokens must be 0 to %d, what a ring of %d rows has beside %d tokens; got %d for "
                "slot %" PRId64,
                kOp, args.ring - sequence->ntokens, args.ring, sequence->ntokens, sequence->previous, slot);
  }
  sequence->write = sequence->previous + sequence->ntokens > args.window;
  return LLAMBA_OK;
}

template <typename T>
void write_zero(const Args& args, const RingSequence& sequence) {
  T* out = static_cast<T*>(args.out) + sequence.batch_idx * args.out_stride_batch;
  for (int64_t t = 0; t < sequence.ntokens; ++t) {
    for (int64_t head = 0; head < args.nheads; ++head) {
      T* row = out + (sequence.first_token + t) * args.out_stride_token + head * args.out_stride_head;
      std::fill_n(row, args.headdim, T{});
    }
  }
}

int checkpointing_ssu(const Args& args) {
  int status = check_checkpointing_ssu(&args);
  if (status != LLAMBA_OK) return status;
  if (!args.slots && args.batch > args.nslots) {
    return fail(LLAMBA_VALUE_ERROR, "%s: state must have a slot for each of %" PRId64 " sequences; got %" PRId64, kOp,
                args.batch, args.nslots);
  }
  static thread_local std::vector<RingSequence> sequences, padded;  // kept between calls: a step allocates nothing
  static thread_local std::vector<char> seen;
  sequences.clear();
  padded.clear();
  seen.assign(args.nslots, 0);
  int64_t most_tokens = 1, most_scratch = 0;
  for (int64_t i = 0; i < args.batch; ++i) {
    RingSequence sequence{};
    bool padding = false;
    status = find_tokens(args, i, &sequence);
    if (status == LLAMBA_OK) status = find_slot(args, i, &seen, &sequence, &padding);
    if (status != LLAMBA_OK) return status;
    if (sequence.ntokens == 0) continue;
    (padding ? padded : sequences).push_back(sequence);
    most_tokens = std::max<int64_t>(most_tokens, sequence.ntotal());
    most_scratch = std::max(most_scratch, ring_scratch(args, sequence));
  }
  for (const RingSequence& sequence : padded) {
    LLAMBA_SWITCH_DTYPE(args.dtype, T, write_zero<T>(args, sequence));
  }

  const int64_t head_size = int64_t{args.headdim} * args.dstate;
  const int64_t grain = kElementsPerThread * 4 / (head_size * most_tokens) + 1;  // a few instructions per element
  const RingSequence* const first = sequences.data();
  parallel_for(0, static_cast<int64_t>(sequences.size()) * args.nheads, grain, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> scratch;
    if (static_cast<int64_t>(scratch.size()) < most_scratch) scratch.resize(most_scratch);
    while (begin < end) {
      const int64_t head = begin % args.nheads, last = std::min<int64_t>(args.nheads, head + end - begin);
      LLAMBA_CALL_ISA(checkpointing_ssu_heads, args, first[begin / args.nheads], static_cast<int32_t>(head),
                      static_cast<int32_t>(last), scratch.data());
      begin += last - head;
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_checkpointing_ssu_cpu(const llamba_checkpointing_ssu_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::checkpointing_ssu(*args); });
}
