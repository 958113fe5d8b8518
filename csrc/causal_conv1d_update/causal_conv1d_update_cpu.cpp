#include "causal_conv1d_update/causal_conv1d_update_cpu.h"

#include <algorithm>
#include <cinttypes>
#include <vector>

#include "causal_conv1d_update/causal_conv1d_update_check.h"
#include "common/dtype.h"
#include "common/parallel.h"

namespace llamba {
namespace {

constexpr const char* kOp = "causal_conv1d_update";
using Args = llamba_causal_conv1d_update_args;

// What another sequence's use of a slot or of an entry of windows rules out. Kept between calls: a step allocates
// nothing once its arrays have grown.
struct Uses {
  std::vector<char> read, written, entries;
  void clear(const Args& args) {
    read.assign(args.nslots, 0);
    written.assign(args.nslots, 0);
    entries.assign(args.nwindows, 0);
  }
};

bool is_padding(const Args& args, int64_t slot) { return slot < 0 || slot == args.pad_slot; }

int find_slot(const Args& args, int64_t i, const int32_t* block, const char* block_name, int64_t* slot) {
  *slot = i;
  const int64_t column = block ? block[i] : 0;
  if (column < 0 || column >= args.nblocks) {
    return fail(LLAMBA_VALUE_ERROR, "%s: %s must be 0 to %" PRId64 ", a column of conv_state_indices; got %" PRId64,
                kOp, block_name, args.nblocks - 1, column);
  }
  if (args.slots) *slot = args.slots[i * args.slots_stride_batch + column];
  return LLAMBA_OK;
}

int check_slot(const Args& args, int64_t slot, int64_t i) {
  if (slot >= 0 && slot < args.nslots) return LLAMBA_OK;
  return fail(LLAMBA_VALUE_ERROR,
              "%s: conv_state_indices must be below the slots of conv_state, %" PRId64 "; got %" PRId64
              " for sequence %" PRId64,
              kOp, args.nslots, slot, i);
}

int check_parents(const Args& args, const ConvSequence& sequence) {
  const int64_t offset = sequence.batch_idx * args.parents_stride_batch;
  for (int64_t t = 1; args.parents && t < sequence.ntokens; ++t) {
    const int64_t at = offset + t * args.parents_stride_token;
    const int64_t parent = args.parents_are_int64 ? static_cast<const int64_t*>(args.parents)[at]
                                                  : static_cast<const int32_t*>(args.parents)[at];
    if (parent < -1 || parent >= t) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: retrieve_parent_token must be -1 or an earlier token; got %" PRId64 " for token %" PRId64
                  " of sequence %" PRId64,
                  kOp, parent, t, sequence.batch_idx);
    }
  }
  return LLAMBA_OK;
}

// Column of the oldest input before token 0, and whether the state has room for what is to be kept.
int find_past(const Args& args, ConvSequence* sequence) {
  const int64_t before = args.width - 1, i = sequence->batch_idx;
  sequence->past = args.state_len - before;
  if (args.cache_seqlens) {
    const int64_t column = (args.cache_seqlens[i] - before) % args.state_len;
    sequence->past = column < 0 ? column + args.state_len : column;
  } else if (args.accepted) {
    const int64_t accepted = args.accepted[i], most = args.state_len - before + 1;
    if (accepted < 1 || accepted > most) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: num_accepted_tokens must be 1 to state_len - width + 2 = %" PRId64 "; got %" PRId64
                  " for sequence %" PRId64,
                  kOp, most, accepted, i);
    }
    if (before - 1 + sequence->ntokens > args.state_len) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: state_len must be at least width - 2 + the tokens of a sequence = %" PRId64
                  " with num_accepted_tokens; got %" PRId64,
                  kOp, before - 1 + sequence->ntokens, args.state_len);
    }
    sequence->past = accepted - 1;
  }
  return LLAMBA_OK;
}

int find_tokens(const Args& args, ConvSequence* sequence) {
  sequence->first_token = 0;
  sequence->ntokens = args.ntokens;
  if (!args.query_start) return LLAMBA_OK;
  const int64_t begin = args.query_start[sequence->batch_idx], end = args.query_start[sequence->batch_idx + 1];
  if (begin < 0 || begin > end || end > args.ntokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: query_start_loc must not descend, from at least 0 to at most the tokens of x, %" PRId64
                "; got %" PRId64 " before %" PRId64,
                kOp, args.ntokens, begin, end);
  }
  sequence->first_token = begin;
  sequence->ntokens = end - begin;
  return LLAMBA_OK;
}

int check_windows(const Args& args, const ConvSequence& sequence, Uses* uses) {
  if (sequence.entry < 0 || sequence.entry >= args.nwindows || uses->entries[sequence.entry]) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_state_indices (if None, conv_state_indices) must name one of the %" PRId64
                " entries of intermediate_conv_window for each sequence; got %" PRId64,
                kOp, args.nwindows, sequence.entry);
  }
  uses->entries[sequence.entry] = 1;
  if (sequence.ntokens > args.window_tokens) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: intermediate_conv_window must have an entry for each of %" PRId64 " tokens; got %" PRId64, kOp,
                sequence.ntokens, args.window_tokens);
  }
  return LLAMBA_OK;
}

// padding: nothing but out is to be written.
int plan_sequence(const Args& args, int64_t i, ConvSequence* sequence, bool* padding, Uses* uses) {
  sequence->batch_idx = i;
  int status = find_tokens(args, sequence);
  if (status == LLAMBA_OK) status = find_slot(args, i, args.source_block, "initial_state_idx", &sequence->source);
  if (status != LLAMBA_OK) return status;
  *padding = is_padding(args, sequence->source);
  if (*padding) return LLAMBA_OK;
  status = find_slot(args, i, args.target_block, "block_idx_last_scheduled_token", &sequence->target);
  if (status == LLAMBA_OK) status = check_slot(args, sequence->source, i);
  if (status == LLAMBA_OK) status = check_slot(args, sequence->target, i);
  if (status == LLAMBA_OK) status = find_past(args, sequence);
  if (status == LLAMBA_OK) status = check_parents(args, *sequence);
  if (status != LLAMBA_OK || sequence->ntokens == 0) return status;
  sequence->entry = args.window_entries ? args.window_entries[i] : sequence->source;
  if (args.nwindows > 0) status = check_windows(args, *sequence, uses);
  uses->read[sequence->source] |= sequence->source != sequence->target;
  uses->written[sequence->target] += uses->written[sequence->target] < 2;
  return status;
}

int check_uses(const Args& args, const Uses& uses) {
  for (int64_t slot = 0; slot < args.nslots; ++slot) {
    if (uses.written[slot] > 1 || (uses.written[slot] && uses.read[slot])) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: conv_state_indices must name a slot that is written for one sequence only; got %" PRId64
                  " for two",
                  kOp, slot);
    }
  }
  return LLAMBA_OK;
}

template <typename T>
void write_zero(const Args& args, const ConvSequence& sequence) {
  T* out = static_cast<T*>(args.out) + sequence.first_token * args.out_stride_token;
  if (!args.query_start) out += sequence.batch_idx * args.out_stride_batch;
  for (int64_t t = 0; t < sequence.ntokens; ++t) {
    for (int64_t c = 0; c < args.dim; ++c) out[t * args.out_stride_token + c * args.out_stride_channel] = T{};
  }
}

int causal_conv1d_update(const Args& args) {
  int status = check_causal_conv1d_update(&args);
  if (status != LLAMBA_OK) return status;
  if (!args.slots && args.batch > args.nslots) {
    return fail(LLAMBA_VALUE_ERROR, "%s: conv_state must have a slot for each of %" PRId64 " sequences; got %" PRId64,
                kOp, args.batch, args.nslots);
  }
  static thread_local std::vector<ConvSequence> sequences, padded;  // kept between calls, as uses
  static thread_local Uses uses;
  sequences.clear();
  padded.clear();
  uses.clear(args);
  for (int64_t i = 0; i < args.batch; ++i) {
    ConvSequence sequence{};
    bool padding = false;
    status = plan_sequence(args, i, &sequence, &padding, &uses);
    if (status != LLAMBA_OK) return status;
    if (sequence.ntokens > 0) (padding ? padded : sequences).push_back(sequence);
  }
  status = check_uses(args, uses);
  if (status != LLAMBA_OK) return status;
  for (const ConvSequence& sequence : padded) {
    LLAMBA_SWITCH_DTYPE(args.dtype, T, write_zero<T>(args, sequence));
  }

  constexpr int64_t kChannels = 256;  // an item's: their rows of a state are neighbours in memory
  const int64_t items = (args.dim + kChannels - 1) / kChannels;
  const int64_t most_tokens = args.query_start ? args.ntokens / (args.batch + 1) + 1 : args.ntokens;
  const int64_t grain = kElementsPerThread / (kChannels * 2 * (most_tokens + 1)) + 1;
  const ConvSequence* const first = sequences.data();
  parallel_for(0, static_cast<int64_t>(sequences.size()) * items, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t channel = item % items * kChannels;
      LLAMBA_CALL_ISA(conv1d_update_channels, args, first[item / items], channel,
                      std::min(channel + kChannels, args.dim));
    }
  });
  return LLAMBA_OK;
}

}  // namespace
}  // namespace llamba

extern "C" int llamba_causal_conv1d_update_cpu(const llamba_causal_conv1d_update_args* args) {
  return llamba::guarded(llamba::kOp, [&] { return llamba::causal_conv1d_update(*args); });
}
