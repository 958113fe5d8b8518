// One kernel source, several instruction sets. A file named *_isa.cpp is compiled once per set with
// -DLLAMBA_ISA=<namespace>; everything in it lives in that namespace or has internal linkage, so that the linker can
// never hand an AVX-512 copy of an inline function to an AVX2 machine. Such files include no C++ library templates.
// avx512bf16 is AVX-512 with products of bfloat16 pairs. Only a source that says __AVX512BF16__ is compiled for it and
// called by LLAMBA_CALL_ISA_BF16; of all others the avx512 kernel runs there, which would be the same code.
#pragma once

namespace llamba {

enum class Isa { generic, avx2, avx512, avx512bf16 };  // each includes the ones before it

// The best set this processor has, or the one LLAMBA_CPU_ISA names. Decided when the library loads.
Isa cpu_isa();

}  // namespace llamba

// LLAMBA_DECLARE_ISA(void kernel(const Args&)): declares kernel in every instruction set's namespace.
// LLAMBA_CALL_ISA(kernel, args...): calls the one for this processor.
// The same with _BF16: for a kernel that exists for avx512bf16, too.
#ifdef LLAMBA_X86
#define LLAMBA_DECLARE_ISA(...)      \
  namespace generic { __VA_ARGS__; } \
  namespace avx2 { __VA_ARGS__; }    \
  namespace avx512 { __VA_ARGS__; }
#define LLAMBA_DECLARE_ISA_BF16(...) \
  LLAMBA_DECLARE_ISA(__VA_ARGS__)    \
  namespace avx512bf16 { __VA_ARGS__; }
#define LLAMBA_CALL_ISA(kernel, ...)                      \
  (cpu_isa() >= Isa::avx512 ? avx512::kernel(__VA_ARGS__) \
   : cpu_isa() == Isa::avx2 ? avx2::kernel(__VA_ARGS__)   \
                            : generic::kernel(__VA_ARGS__))
#define LLAMBA_CALL_ISA_BF16(kernel, ...) \
  (cpu_isa() == Isa::avx512bf16 ? avx512bf16::kernel(__VA_ARGS__) : LLAMBA_CALL_ISA(kernel, __VA_ARGS__))
#else
#define LLAMBA_DECLARE_ISA(...) \
  namespace generic { __VA_ARGS__; }
#define LLAMBA_DECLARE_ISA_BF16(...) LLAMBA_DECLARE_ISA(__VA_ARGS__)
#define LLAMBA_CALL_ISA(kernel, ...) generic::kernel(__VA_ARGS__)
#define LLAMBA_CALL_ISA_BF16(kernel, ...) generic::kernel(__VA_ARGS__)
#endif
