#include "common/cpu_isa.h"

#include <cstdlib>
#include <cstring>

#include "llamba.h"

namespace llamba {
namespace {

Isa best_isa() {
#ifdef LLAMBA_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return __builtin_cpu_supports("avx512bf16") ? Isa::avx512bf16 : Isa::avx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    return Isa::avx2;
  }
#endif
  return Isa::generic;
}

constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512bf16"};  // in the order of Isa

// A set that the processor lacks is never forced: it would end the process with an illegal instruction. A name that is
// none is refused by llamba_kernels/_load.py; a C program gets the best set, and llamba_isa_cpu says which.
Isa chosen_isa() {
  const Isa best = best_isa();
  const char* forced = std::getenv("LLAMBA_CPU_ISA");
  if (forced == nullptr) return best;
  for (int i = 0; i <= static_cast<int>(best); ++i) {
    if (std::strcmp(forced, kNames[i]) == 0) return static_cast<Isa>(i);
  }
  return best;
}

const Isa isa = chosen_isa();  // when the library loads: what the environment says later changes nothing

}  // namespace

Isa cpu_isa() { return isa; }
}  // namespace llamba

extern "C" const char* llamba_isa_cpu(void) { return llamba::kNames[static_cast<int>(llamba::cpu_isa())]; }
