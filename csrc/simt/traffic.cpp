#include "simt/traffic.h"

#include <cstdint>
#include <map>
#include <set>
#include <tuple>
#include <unordered_set>

#include "llamba.h"
#include "simt/simt.h"

namespace llamba::simt {
namespace {

constexpr uintptr_t kSectorBytes = 32;

struct Traffic {
  bool counting = false;
  std::unordered_set<uintptr_t> loaded, stored;                                      // sectors of the launch
  std::map<std::tuple<unsigned, unsigned, unsigned>, std::set<uintptr_t>> requests;  // of a block: warp, site, turn
  std::map<std::tuple<unsigned, unsigned>, unsigned> turns;                          // of a block: thread, site
  uint64_t requested = 0;
};
Traffic traffic;

}  // namespace

void count_access(const void* global, size_t bytes, bool is_store, unsigned site) {
  if (!traffic.counting) return;
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned turn = traffic.turns[{thread, site}]++;
  auto& request = traffic.requests[{thread / 32, site, turn}];
  const uintptr_t first = reinterpret_cast<uintptr_t>(global);
  for (uintptr_t sector = first / kSectorBytes; sector <= (first + bytes - 1) / kSectorBytes; ++sector) {
    (is_store ? traffic.stored : traffic.loaded).insert(sector);
    request.insert(sector);
  }
}

void traffic_end_block() {
  for (const auto& [key, sectors] : traffic.requests) traffic.requested += sectors.size();
  traffic.requests.clear();
  traffic.turns.clear();
}

}  // namespace llamba::simt

extern "C" {

// counts[3]: distinct sectors loaded, distinct sectors stored, sectors requested; of all launches since the last call
// with start = 1.
LLAMBA_API void llamba_simt_traffic(int start, uint64_t* counts) {
  auto& traffic = llamba::simt::traffic;
  if (counts != nullptr) {
    counts[0] = traffic.loaded.size();
    counts[1] = traffic.stored.size();
    counts[2] = traffic.requested;
  }
  traffic.loaded.clear();
  traffic.stored.clear();
  traffic.requested = 0;
  traffic.counting = start != 0;
}
}
