// What the CPU entry point hands to the kernel of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

// One sequence whose arguments hold. Token t of it is token first_token + t of x and out.
struct ConvSequence {
  int64_t batch_idx;
  int64_t first_token, ntokens;
  int64_t source, target;  // slots that the state is read from and written to
  int64_t entry;           // of windows
  int64_t past;            // column of the state with the oldest input before token 0
};

// Channels [begin, end) of one sequence.
LLAMBA_DECLARE_ISA(void conv1d_update_channels(const llamba_causal_conv1d_update_args& args,
                                               const ConvSequence& sequence, int64_t begin, int64_t end))

}  // namespace llamba
