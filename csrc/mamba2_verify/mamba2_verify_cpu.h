// mamba2_verify's kernel of one instruction set, for its own CPU entry point and materialize's.
#pragma once

#include "common/cpu_isa.h"
#include "cursor/step_tokens.h"
#include "llamba.h"

namespace llamba {

class StepPlan;

// Blocks [begin, end) of (head, block of dims): conv, scan, outputs; stores the new tokens' rows. scratch: 64-byte
// aligned.
LLAMBA_DECLARE_ISA(void mamba2_blocks(const llamba_mamba2_verify_args& args, const StepSequence& sequence,
                                      int64_t begin, int64_t end, float* scratch))
// Floats of a thread's scratch.
LLAMBA_DECLARE_ISA(int64_t mamba2_scratch_floats(const llamba_mamba2_verify_args& args, const StepSequence& sequence))

// Runs mamba2_blocks over planned sequences on all threads.
void mamba2_run(const llamba_mamba2_verify_args& args, const StepPlan& plan);

}  // namespace llamba
