// What the CPU entry point hands to the kernel of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

// One sequence whose arguments hold. Its tokens: `previous` of the ring, then `ntokens` new ones.
struct RingSequence {
  int64_t batch_idx;    // of the token tensors
  int64_t first_token;  // of the new ones
  int64_t slot;
  int32_t start, previous, ntokens;
  bool write;  // the state past the previous tokens is stored

  int32_t ntotal() const { return previous + ntokens; }
};

constexpr int32_t kRingBlock = 16;  // dims of a head that a tile of scratch holds

// Floats of scratch that a sequence takes: see RingScratch in checkpointing_ssu_isa.cpp.
inline int64_t ring_scratch(const llamba_checkpointing_ssu_args& args, const RingSequence& sequence) {
  const int64_t ntotal = sequence.ntotal(), ntokens = sequence.ntokens;
  const int64_t numbers = 2 * (ntotal + kRingBlock), inputs = ntotal * (args.dstate + kRingBlock);
  return numbers + inputs + ntokens * (args.dstate + kRingBlock * kRingBlock);
}

// Heads [begin, end) of one sequence, the rows of the rings that are theirs included.
LLAMBA_DECLARE_ISA(void checkpointing_ssu_heads(const llamba_checkpointing_ssu_args& args, const RingSequence& sequence,
                                                int32_t begin, int32_t end, float* scratch))

}  // namespace llamba
