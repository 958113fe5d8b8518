// THE recurrence of a Mamba-2 head, stated once. For each token, with the conv output x, B, C and the raw step dt:
//   dt    = softplus(dt + dt_bias)
//   state = exp(dt A) state + (dt x) B
//   y     = state . C + D x
// The state update is one multiplication and one fused multiply-add per element; see vec.h for the sixteen-lane form.
#pragma once

#include <math.h>

#include "common/host_device.h"

namespace llamba {
namespace {

// log(1 + e^x); the identity above 20, as in PyTorch, where the two agree to the last bit of a float.
[[maybe_unused]] LLAMBA_HOST_DEVICE float softplus(float x) { return x > 20.0f ? x : log1pf(expf(x)); }

[[maybe_unused]] LLAMBA_HOST_DEVICE float decay(float dt, float A) { return expf(dt * A); }

}  // namespace
}  // namespace llamba
