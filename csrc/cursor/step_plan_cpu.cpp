#include <cstring>

#include "cursor/cursor_check.h"
#include "cursor/cursor_edit.h"
#include "cursor/cursor_slots.h"
#include "cursor/step_plan.h"

namespace llamba {

// Batch entry i as its slot describes it, not yet planned.
int StepPlan::check(const char* op, const StepArgs& args, int32_t i, bool open) {
  const int32_t slot = args.slots[i];
  int status = check_slot(op, args.cursor, slot);
  if (status != LLAMBA_OK) return status;
  const int32_t* header = args.cursor.data + slot * args.cursor.slot_stride;
  StepSequence sequence{};
  sequence.batch_idx = i;
  sequence.slot = slot;
  sequence.live = header[kLive];
  sequence.fresh = header[kPosition] == header[kLive];
  if (!open && header[kNtokens] != kNoStep) {
    return fail(LLAMBA_VALUE_ERROR,
                "%s: slot %d must have no open step (commit it, or reset the slot if the step failed); got one of %d "
                "tokens",
                op, slot, header[kNtokens]);
  }
  if (open) {
    status = check_open_step(op, header, slot);
    if (status != LLAMBA_OK) return status;
    if (header[kNtokens] > args.max_ntokens) {
      return fail(LLAMBA_VALUE_ERROR, "%s: %s must hold the open step's %d tokens of slot %d; got %d", op, args.tokens,
                  header[kNtokens], slot, args.max_ntokens);
    }
    const int32_t folded = header[kPosition] - header[kLive] + header[kFold];
    if (args.fold_every > 0 && header[kFold] > 0 && folded % args.fold_every != 0) {
      return fail(LLAMBA_VALUE_ERROR,
                  "%s: fold_every must be the session's, which divides the token that slot %d folds to, %d; got %d", op,
                  slot, folded, args.fold_every);
    }
    const int32_t* parents = args.parents ? args.parents + i * args.parents_stride_batch : nullptr;
    status = check_parents(op, parents, header[kNtokens], slot);
    if (status != LLAMBA_OK) return status;
    sequence.fold = header[kFold];
    sequence.ntokens = header[kNtokens];
  }
  sequences_.push_back(sequence);
  return LLAMBA_OK;
}

int StepPlan::make(const char* op, const StepArgs& args, bool open) {
  sequences_.clear();
  tokens_.clear();
  int status = check_slots(op, args.slots, args.batch, args.cursor.nslots);
  for (int32_t i = 0; status == LLAMBA_OK && i < args.batch; ++i) {
    if (args.slots[i] >= 0) status = check(op, args, i, open);
  }
  if (status != LLAMBA_OK) return status;
  size_t total = 0;
  for (const StepSequence& sequence : sequences_) total += sequence.live + sequence.ntokens;
  tokens_.reserve(total);  // the sequences point into it
  for (StepSequence& sequence : sequences_) plan_sequence(args, &sequence);
  return LLAMBA_OK;
}

void StepPlan::plan_sequence(const StepArgs& args, StepSequence* sequence) {
  const int32_t* header = args.cursor.data + sequence->slot * args.cursor.slot_stride;
  const int32_t* table = header + LLAMBA_CURSOR_HEADER;
  const int32_t* parents = args.parents ? args.parents + sequence->batch_idx * args.parents_stride_batch : nullptr;
  const int32_t width = args.cursor.width, live = sequence->live, fold_every = args.fold_every;
  const size_t first = tokens_.size();
  tokens_.resize(first + live + sequence->ntokens);
  StepToken* tokens = tokens_.data() + first;
  sequence->tokens = tokens;
  sequence->nbranches = 0;
  int32_t position = header[kPosition] - live;  // of the token in question
  for (int32_t t = 0; t < live; ++t, ++position) {
    for (int32_t tap = 0; tap < width; ++tap) tokens[t].window[tap] = table[t + tap];
    tokens[t].save = tokens[t].load = -1;
    tokens[t].row = table[width - 1 + t];
    tokens[t].round = fold_every > 0 && (position + 1) % fold_every == 0;
  }
  branches_.resize(sequence->ntokens);  // here: depth of each new token
  for (int32_t i = 0; i < sequence->ntokens; ++i) {
    StepToken& token = tokens[live + i];
    const int32_t parent = parents ? parents[i] : i - 1;
    branches_[i] = parent < 0 ? 0 : branches_[parent] + 1;
    // The parent's window, moved on by this token; that of the committed context is the end of tail and live rows.
    const int32_t* before = parent < 0 ? table + live - 1 : tokens[live + parent].window;
    for (int32_t tap = 0; tap + 1 < width; ++tap) token.window[tap] = before[tap + 1];
    token.window[width - 1] = -2 - i;
    token.save = token.load = -1;
    token.row = table[width - 1 + live + i];
    token.round = fold_every > 0 && (position + branches_[i] + 1) % fold_every == 0;
  }
  if (parents) add_branches(parents, sequence, tokens);
}

// A token whose parent is not the token before it starts from a branch state. That state is saved as soon as it is no
// longer in hand: before the token that follows the parent.
void StepPlan::add_branches(const int32_t* parents, StepSequence* sequence, StepToken* tokens) {
  const int32_t live = sequence->live;
  branches_.assign(sequence->ntokens, -1);  // by parent + 1; the last token is nobody's parent
  for (int32_t i = 0; i < sequence->ntokens; ++i) {
    if (parents[i] == i - 1) continue;
    int32_t& branch = branches_[parents[i] + 1];
    if (branch < 0) {
      branch = sequence->nbranches++;
      tokens[live + parents[i] + 1].save = branch;
    }
    tokens[live + i].load = branch;
  }
}

void write_tail(const llamba_cursor& cursor, int32_t slot, const void* rows, int64_t row_stride, int64_t row_bytes,
                void* tail, int64_t tail_stride) {
  const int32_t* header = slot < 0 ? nullptr : cursor.data + slot * cursor.slot_stride;
  const int32_t* table = header ? header + LLAMBA_CURSOR_HEADER + header[kLive] : nullptr;
  for (int32_t t = 0; t + 1 < cursor.width; ++t) {
    char* to = static_cast<char*>(tail) + t * tail_stride;
    if (table == nullptr || table[t] < 0) {
      std::memset(to, 0, row_bytes);
    } else {
      std::memcpy(to, static_cast<const char*>(rows) + table[t] * row_stride, row_bytes);
    }
  }
}

}  // namespace llamba
