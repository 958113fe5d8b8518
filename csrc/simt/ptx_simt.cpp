// mma.sync as the documents describe its fragments and as measurements describe its sums: eight products and the
// accumulator are aligned to the largest exponent, cut off below 2 bits more than a float holds, added as integers, and
// the sum is cut off to a float. (Fasi, Higham, Mikaitis, Pranesh: "Numerical behavior of NVIDIA tensor cores", 2021;
// A100 adds in eights. A device that adds better only comes closer.)
#include "simt/ptx_simt.h"

#include <algorithm>

namespace llamba {
namespace {

float sum_as_the_device(float c, const double (&products)[8]) {
  double largest = std::fabs(double(c));
  bool special = !std::isfinite(c);
  for (double product : products) {
    largest = std::max(largest, std::fabs(product));
    special |= !std::isfinite(product);
  }
  if (special) {
    for (double product : products) c += float(product);
    return c;
  }
  if (largest == 0.0) return 0.0f;
  const int exponent = std::ilogb(largest) - 23 - 2;  // of the last bit that is kept
  const double unit = std::ldexp(1.0, exponent);
  int64_t sum = static_cast<int64_t>(double(c) / unit);  // the conversion cuts off
  for (double product : products) sum += static_cast<int64_t>(product / unit);
  const double exact = double(sum) * unit;
  float result = static_cast<float>(exact);
  if (std::fabs(double(result)) > std::fabs(exact)) result = std::nextafter(result, 0.0f);
  return result;
}

double element(unsigned pair, int upper) { return to_float(bfloat16{uint16_t(upper ? pair >> 16 : pair & 0xffff)}); }

}  // namespace

void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  unsigned mine[6];
  std::memcpy(mine, a, sizeof(a));
  std::memcpy(mine + 4, b, sizeof(b));
  const char* all = static_cast<const char*>(simt::warp_exchange("mma.sync", mine, sizeof(mine)));
  const auto lane_registers = [&](unsigned lane) {
    return reinterpret_cast<const unsigned*>(all + lane * simt::kMostExchange);
  };
  const unsigned g = simt::lane() / 4, t = simt::lane() % 4;
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = g + 8 * (i / 2), column = 2 * t + i % 2;
    for (unsigned half = 0; half < 2; ++half) {  // columns 0 to 7 of a, then 8 to 15
      double products[8];
      for (unsigned k = 0; k < 8; ++k) {
        const unsigned* of_a = lane_registers(4 * (row % 8) + k / 2);
        const unsigned* of_b = lane_registers(4 * column + k / 2);
        products[k] = element(of_a[row / 8 + 2 * half], k % 2) * element(of_b[4 + half], k % 2);
      }
      d[i] = sum_as_the_device(d[i], products);
    }
  }
}

}  // namespace llamba
