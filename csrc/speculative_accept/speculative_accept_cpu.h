// What the CPU entry point of speculative_accept asks of the kernels of one instruction set.
#pragma once

#include "common/cpu_isa.h"
#include "llamba.h"

namespace llamba {

// Row i of a sequence's window, as read in one pass: p(token) = exp((logit - max) / temperature) / sum.
struct AcceptRow {
  float max;       // largest logit; NaN if any is NaN
  int32_t argmax;  // the lowest index of it
  double sum;      // sampling only
};

// Rows [begin, end) of batch * max_window; rows beyond a sequence's ntokens are neither read nor written.
LLAMBA_DECLARE_ISA(void accept_read_rows(const llamba_speculative_accept_args& args, int64_t begin, int64_t end,
                                         AcceptRow* rows))
// p(token) of row i of sequence b.
LLAMBA_DECLARE_ISA(double accept_probability(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b,
                                             int64_t i, int64_t token))
// A token of row i of sequence b by inverse CDF at u: from p, or (rejected) from (p - q)+ with draft i's q.
LLAMBA_DECLARE_ISA(int64_t accept_sample(const llamba_speculative_accept_args& args, const AcceptRow& row, int64_t b,
                                         int64_t i, bool rejected, double u))

}  // namespace llamba
