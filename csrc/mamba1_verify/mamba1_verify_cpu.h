// mamba1_verify's kernel of one instruction set, for its own CPU entry point and mamba1_materialize's.
#pragma once

#include "common/cpu_isa.h"
#include "cursor/step_tokens.h"
#include "llamba.h"

namespace llamba {

class StepPlan;

// The work items of a sequence: blocks of sixteen channels that share their B and their C head.
struct Mamba1Items {
  int32_t group;   // channels of neighbouring ones that share both
  int32_t blocks;  // of a group; the last may be shorter
  int64_t count;

  explicit Mamba1Items(const llamba_mamba1_verify_args& args) {
    int32_t a = args.d_inner / args.B_heads, b = args.d_inner / args.C_heads;
    while (b != 0) {  // Euclid
      const int32_t rest = a % b;
      a = b;
      b = rest;
    }
    group = a;
    blocks = (group + kBlock - 1) / kBlock;
    count = int64_t{args.d_inner / group} * blocks;
  }
};

// Items [begin, end): scan, outputs; stores the new tokens' rows. scratch: 64-byte aligned.
LLAMBA_DECLARE_ISA(void mamba1_blocks(const llamba_mamba1_verify_args& args, const Mamba1Items& items,
                                      const StepSequence& sequence, int64_t begin, int64_t end, float* scratch))
// Floats of a thread's scratch.
LLAMBA_DECLARE_ISA(int64_t mamba1_scratch_floats(const llamba_mamba1_verify_args& args, const StepSequence& sequence))

// Runs mamba1_blocks over planned sequences on all threads.
void mamba1_run(const llamba_mamba1_verify_args& args, const StepPlan& plan);

}  // namespace llamba
