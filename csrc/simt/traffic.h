// Counts what kernels ask of global memory, in the device's unit: sectors of 32 bytes.
#pragma once

#include <cstddef>

namespace llamba::simt {

// Accesses of a warp's lanes at one site and turn are one request, as on the device: sectors that they share count once.
void traffic_end_block();

}  // namespace llamba::simt
