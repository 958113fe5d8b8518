// What the CPU entry points of the operators that take a cursor's open step hand to the kernel of one instruction set.
#pragma once

#include "llamba.h"

namespace llamba {

constexpr int32_t kMaxWidth = 4;
constexpr int32_t kZeroRow = -1;  // of a window: before the first token

// One token of a step's work. Tokens come in order of the row table: the live rows, then the new tokens, so a token's
// parent comes before it. The state in hand when a token's turn comes is the previous token's (first: the checkpoint).
struct StepToken {
  int32_t window[kMaxWidth];  // raw inputs of its conv, oldest first: a row id, kZeroRow, or -2 - i for new token i
  int32_t save;               // keep the state in hand as this branch state first; -1: no later token starts from it
  int32_t load;               // start from this branch state; -1: from the one in hand
  int32_t row;                // physical row: of a live token, or that a new one is to be written to
  bool round;                 // a 16-bit checkpoint would hold the state after this token: round it
};

// One sequence of the batch.
struct StepSequence {
  int32_t batch_idx;
  int32_t slot;
  int32_t live, fold, ntokens;
  bool fresh;  // the checkpoint reads as zero
  int32_t nbranches;
  const StepToken* tokens;  // [live + ntokens]
  float* state;  // receives the last token's state, or nullptr: its strides are those of the checkpoint's dims
  int64_t state_stride_head, state_stride_dim;
};

// Channels of a work item: one vector of them.
constexpr int32_t kBlock = 16;

}  // namespace llamba
