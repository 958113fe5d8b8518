// What the CPU entry point of argmax asks of the kernels of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

struct ArgmaxRow {
  float max;  // NaN if any logit is NaN
  int64_t argmax;
};

// Rows [begin, end) of batch * ntokens.
LLAMBA_DECLARE_ISA(void argmax_rows(const llamba_argmax_args& args, int64_t begin, int64_t end, ArgmaxRow* rows))

}  // namespace llamba
