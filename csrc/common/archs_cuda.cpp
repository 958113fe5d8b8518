// What libllamba_cuda.so was built for; setup.py defines LLAMBA_CUDA_ARCHS.
#include "llamba.h"

extern "C" const char* llamba_archs_cuda(void) { return LLAMBA_CUDA_ARCHS; }
