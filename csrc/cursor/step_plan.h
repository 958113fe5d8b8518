// The open steps of a batch on the CPU: refuses what would read or write outside the buffers, then plans which rows
// each token's conv reads, which states are kept for branches of a tree and where a 16-bit state is rounded.
#pragma once

#include <vector>

#include "common/parallel.h"
#include "cursor/step_tokens.h"

namespace llamba {

// What the structs of these operators have in common.
struct StepArgs {
  llamba_cursor cursor;
  const int32_t* slots;
  int32_t batch, max_ntokens;
  int32_t fold_every;      // 0: the operator keeps no state
  const int32_t* parents;  // or nullptr
  int64_t parents_stride_batch;
  const char* tokens;  // name of the argument that holds the new tokens
};

template <typename Args>
StepArgs step_args(const Args& args, int32_t fold_every, const char* tokens) {
  return {args.cursor, args.slots, args.batch, args.max_ntokens, fold_every, args.parents, args.parents_stride_batch,
          tokens};
}

// Kept between calls, so that a step allocates nothing.
class StepPlan {
 public:
  // Plans the sequences of the slots, or records a sentence: the first thing that a call does, so that a refused one
  // writes nothing. open: every slot must have an open step; else none, and the live rows alone are planned.
  int make(const char* op, const StepArgs& args, bool open);

  std::vector<StepSequence>& sequences() { return sequences_; }
  const std::vector<StepSequence>& sequences() const { return sequences_; }
  // visit(i, ntokens) for every batch entry: how many of its tokens are new; 0 for padding.
  template <typename Visit>
  void each_entry(int32_t batch, const Visit& visit) const {
    size_t next = 0;
    for (int32_t i = 0; i < batch; ++i) {
      const bool padding = next >= sequences_.size() || sequences_[next].batch_idx != i;
      visit(i, padding ? 0 : sequences_[next++].ntokens);
    }
  }
  int64_t count() const { return static_cast<int64_t>(sequences_.size()); }
  // Live and new ones of all sequences.
  int64_t tokens() const { return static_cast<int64_t>(tokens_.size()); }

 private:
  int check(const char* op, const StepArgs& args, int32_t i, bool open);
  void plan_sequence(const StepArgs& args, StepSequence* sequence);
  void add_branches(const int32_t* parents, StepSequence* sequence, StepToken* tokens);

  std::vector<StepSequence> sequences_;
  std::vector<StepToken> tokens_;
  std::vector<int32_t> branches_;  // per token of a sequence: its branch state, or -1; [0] is the committed context's
};

// run(sequence, begin, end, scratch) on pieces of the `items` work items of each sequence, on all threads; a piece has
// at least `grain` items, and its scratch, 64-byte aligned, floats_of(sequence) floats.
template <typename FloatsOf, typename Run>
void run_items(const StepPlan& plan, int64_t items, int64_t grain, const FloatsOf& floats_of, const Run& run) {
  int64_t floats = 0;
  for (const StepSequence& sequence : plan.sequences()) {
    const int64_t needed = floats_of(sequence);
    if (needed > floats) floats = needed;
  }
  const std::vector<StepSequence>& sequences = plan.sequences();
  parallel_for(0, static_cast<int64_t>(sequences.size()) * items, grain, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> scratch;  // kept between calls: a step allocates nothing
    if (static_cast<int64_t>(scratch.size()) < floats + 16) scratch.resize(floats + 16);
    float* aligned = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64);
    while (begin < end) {  // a piece may span several sequences
      const int64_t item = begin % items;
      const int64_t stop = item + (end - begin) < items ? item + (end - begin) : items;
      run(sequences[begin / items], item, stop, aligned);
      begin += stop - item;
    }
  });
}

// For materialize: the raw rows before the position of a slot go to its tail, oldest first, row_bytes each; zero where
// there is none, and for padding. rows: [capacity, row] of the slot. Strides in bytes.
void write_tail(const llamba_cursor& cursor, int32_t slot, const void* rows, int64_t row_stride, int64_t row_bytes,
                void* tail, int64_t tail_stride);

}  // namespace llamba
