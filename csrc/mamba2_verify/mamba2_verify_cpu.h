// What the CPU entry points hand to the kernel of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

constexpr int32_t kMaxWidth = 4;
constexpr int32_t kZeroRow = -1;  // of a window: before the first token

// One token of a step's work. Tokens come in order of the row table: the live rows, then the new tokens, so a token's
// parent comes before it. The state in hand when a token's turn comes is the previous token's (first: the checkpoint).
struct Mamba2Token {
  int32_t window[kMaxWidth];  // raw inputs of its conv, oldest first: a row id, kZeroRow, or -2 - i for new token i
  int32_t save;               // keep the state in hand as this branch state first; -1: no later token starts from it
  int32_t load;               // start from this branch state; -1: from the one in hand
  int32_t row;                // physical row of a new token, to be written
  bool round;                 // a 16-bit checkpoint would hold the state after this token: round it
};

// One sequence of the batch.
struct Mamba2Sequence {
  int32_t batch_idx;
  int32_t slot;
  int32_t live, fold, ntokens;
  bool fresh;  // the checkpoint reads as zero
  int32_t nbranches;
  const Mamba2Token* tokens;  // [live + ntokens]
  float* state;               // [nheads, headdim, dstate], receives the last token's state; or nullptr
  int64_t state_stride_head, state_stride_dim;
};

// Dims of a head are cut into blocks of sixteen: the work items of the parallel loop.
constexpr int32_t kBlock = 16;
// Floats of scratch that hold a token's pointers, so that what follows them is still aligned to whole vectors.
constexpr int32_t kInputFloats = 16;
static_assert(kMaxWidth * sizeof(void*) <= kInputFloats * sizeof(float), "a token's pointers must fit");

// Blocks [begin, end) of (head, block of dims): conv, scan, outputs; stores the new tokens' rows. scratch: 64-byte
// aligned.
LLAMBA_DECLARE_ISA(void mamba2_blocks(const llamba_mamba2_verify_args& args, const Mamba2Sequence& sequence,
                                      int64_t begin, int64_t end, float* scratch))

}  // namespace llamba
