// Threads for the CPU kernels. The library owns none: it calls the pool its host set (torch's own), or runs serially.
#pragma once

#include "llamba.h"

namespace llamba {

// A thread is worth waking from tens of microseconds of work: so many elements of an operator with some ten instructions
// for sixteen of them. Others count what they do, beside their parallel_for.
constexpr int64_t kElementsPerThread = 1 << 16;

extern llamba_parallel_for parallel_for_pointer;

// body(begin, end) over [begin, end), in pieces of at least `grain`.
template <typename Body>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Body& body) {
  if (begin >= end) return;
  parallel_for_pointer(
      begin, end, grain,
      [](int64_t piece_begin, int64_t piece_end, void* context) {
        (*static_cast<const Body*>(context))(piece_begin, piece_end);
      },
      const_cast<Body*>(&body));
}

}  // namespace llamba
