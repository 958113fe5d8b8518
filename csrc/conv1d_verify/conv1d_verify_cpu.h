// conv1d_verify's kernel of one instruction set, for its CPU entry point.
#pragma once

#include "common/cpu_isa.h"
#include "cursor/step_tokens.h"
#include "llamba.h"

namespace llamba {

// Vectors [begin, end) of (head, sixteen channels of out): conv and outputs; stores the new tokens' rows. scratch:
// 64-byte aligned.
LLAMBA_DECLARE_ISA(void conv1d_blocks(const llamba_conv1d_verify_args& args, const StepSequence& sequence,
                                      int64_t begin, int64_t end, float* scratch))
// Floats of a thread's scratch.
LLAMBA_DECLARE_ISA(int64_t conv1d_scratch_floats(const StepSequence& sequence))

}  // namespace llamba
