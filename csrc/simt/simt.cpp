// The executor: schedules, rendezvous and asynchronous copies. See simt.h.
#include "simt/simt.h"

#include <cstdarg>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <vector>

#include "llamba.h"
#include "simt/fiber.h"
#include "simt/traffic.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl llamba_simt_switch
.hidden llamba_simt_switch
.type llamba_simt_switch,@function
llamba_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size llamba_simt_switch,.-llamba_simt_switch
)");
#endif

namespace llamba::simt {

ThreadPlace place;

namespace {

constexpr unsigned kMostThreads = 1024, kMostBarriers = 16;

struct AsyncCopy {
  void* shared;
  const void* global;
  size_t bytes;
  bool zero_instead;
};

struct MBarrier {
  unsigned count, pending;  // arrivals of a phase, and those still to come
  int64_t bytes = 0;        // expected and not yet there
  unsigned phase = 0;       // parity of the running phase
  std::vector<AsyncCopy> copies;
};

struct Thread {
  Fiber fiber;
  dim3 idx;
  unsigned linear;
  bool finished;
  const char* waits_for;  // nullptr: runnable
  std::vector<AsyncCopy> uncommitted;
  std::vector<std::vector<AsyncCopy>> groups;
};

struct Warp {
  const char* what = nullptr;  // the exchange at which the first lane of this round waits
  unsigned arrived = 0, round = 0;
  alignas(16) char values[2][32][kMostExchange];  // by round parity: a lane may be one exchange ahead of another
};

struct Barrier {
  unsigned arrived = 0, expected = 0;
  std::vector<Thread*> waiting;
};

struct Executor {
  std::mutex mutex;  // one launch at a time
  std::vector<std::unique_ptr<Thread>> threads;
  const std::function<void()>* kernel;
  std::mt19937_64 random{1};
  std::vector<Thread*> ready;
  std::vector<Warp> warps;
  Barrier barriers[kMostBarriers];
  std::map<uint64_t*, MBarrier> mbarriers;
  std::vector<Thread*> mbarrier_waiters;
  Thread* running;
  void* shared;
  size_t shared_size;
  std::string sentence;
  bool failed;
};

Executor& executor() {
  static Executor instance;
  return instance;
}

enum Order { kAscending, kDescending, kRandom };

void wake(Thread* thread) {
  thread->waits_for = nullptr;
  executor().ready.push_back(thread);
}

void wait(const char* what) {
  Thread* self = executor().running;
  self->waits_for = what;
  self->fiber.leave(false);
}

void thread_entry() {
  Executor& e = executor();
  Thread* self = e.running;
  self->fiber.arrived();
  (*e.kernel)();
  if (!self->uncommitted.empty() || !self->groups.empty()) {
    fail_block("a thread must wait for its asynchronous copies before it ends; got one that does not");
  }
  self->finished = true;
  self->fiber.leave(true);
  std::abort();
}

void land(const AsyncCopy& copy) {
  if (copy.zero_instead) {
    std::memset(copy.shared, 0, copy.bytes);
  } else {
    std::memcpy(copy.shared, copy.global, copy.bytes);
  }
}

void poison(void* shared, size_t bytes) { std::memset(shared, 0xff, bytes); }

void check_in_shared(const char* what, const void* pointer, size_t bytes) {
  const Executor& e = executor();
  const char *first = static_cast<const char*>(e.shared), *begin = static_cast<const char*>(pointer);
  if (begin < first || begin + bytes > first + e.shared_size) {
    fail_block("%s must stay inside the %zu bytes of shared memory; got offset %td and %zu bytes", what, e.shared_size,
               begin - first, bytes);
  }
}

std::string waiting_threads() {
  std::map<std::string, unsigned> counts;
  for (const auto& thread : executor().threads) {
    if (thread->linear == ~0u) continue;
    ++counts[thread->finished ? "finished" : thread->waits_for ? thread->waits_for : "runnable"];
  }
  std::string text;
  for (const auto& [what, count] : counts) {
    text += (text.empty() ? "" : ", ") + std::to_string(count) + " at " + what;
  }
  return text;
}

void complete_phase_if_due(MBarrier* barrier) {
  if (barrier->pending != 0 || barrier->bytes != 0) return;
  barrier->phase ^= 1;
  barrier->pending = barrier->count;
  Executor& e = executor();
  for (Thread* thread : e.mbarrier_waiters) wake(thread);  // each looks at its own barrier again
  e.mbarrier_waiters.clear();
}

void run_block(dim3 block_idx, dim3 block) {
  Executor& e = executor();
  const unsigned nthreads = block.x * block.y * block.z;
  std::unique_ptr<char, decltype(&std::free)> memory(
      static_cast<char*>(std::aligned_alloc(128, (e.shared_size + 127) / 128 * 128 + 128)), &std::free);
  // The block ends exactly where its allocation does, so that an overrun is AddressSanitizer's to see.
#ifdef LLAMBA_ASAN
  __asan_poison_memory_region(memory.get() + (e.shared_size + 7) / 8 * 8, 128);
#endif
  poison(memory.get(), e.shared_size);
  e.shared = memory.get();
  e.warps.assign((nthreads + 31) / 32, Warp());
  e.mbarriers.clear();
  e.mbarrier_waiters.clear();
  for (Barrier& barrier : e.barriers) barrier = Barrier();
  place.block_idx = block_idx;
  e.ready.clear();
  for (unsigned i = 0; i < e.threads.size(); ++i) e.threads[i]->linear = ~0u;
  for (unsigned i = 0; i < nthreads; ++i) {
    if (e.threads.size() <= i) e.threads.push_back(std::make_unique<Thread>());
    Thread& thread = *e.threads[i];
    thread.linear = i;
    thread.idx = dim3(i % block.x, i / block.x % block.y, i / (block.x * block.y));
    thread.finished = false;
    thread.waits_for = nullptr;
    thread.uncommitted.clear();
    thread.groups.clear();
    thread.fiber.prepare(thread_entry);
    e.ready.push_back(&thread);
  }
  const Order order = static_cast<Order>(e.random() % 3);
  unsigned finished = 0;
  size_t oldest = 0;  // of `ready`, for the ascending order
  while (finished < nthreads) {
    if (oldest >= e.ready.size()) {
      fail_block("every thread must get past its barriers; got a deadlock: %s", waiting_threads().c_str());
    }
    size_t pick = oldest;
    if (order == kDescending) pick = e.ready.size() - 1;
    if (order == kRandom) pick = oldest + e.random() % (e.ready.size() - oldest);
    Thread* thread = e.ready[pick];
    if (order == kAscending) {
      ++oldest;
      if (oldest == e.ready.size()) e.ready.clear(), oldest = 0;
    } else {
      e.ready[pick] = e.ready.back();
      e.ready.pop_back();
    }
    e.running = thread;
    place.thread_idx = thread->idx;
    thread->fiber.enter();
    e.running = nullptr;
    if (e.failed) break;
    finished += thread->finished;
  }
  traffic_end_block();
#ifdef LLAMBA_ASAN
  __asan_unpoison_memory_region(memory.get(), (e.shared_size + 127) / 128 * 128 + 128);
#endif
}

}  // namespace

void fail_block(const char* format, ...) {
  Executor& e = executor();
  char text[512], where[128] = "";
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof(text), format, list);
  va_end(list);
  if (e.running != nullptr) {
    std::snprintf(where, sizeof(where), " in thread %u of block (%u, %u, %u)", e.running->linear, place.block_idx.x,
                  place.block_idx.y, place.block_idx.z);
  }
  if (!e.failed) e.sentence = std::string(text) + where;
  e.failed = true;
  if (e.running != nullptr) {
    e.running->fiber.leave(true);  // abandons the block: kernels own nothing that needs an end
    std::abort();
  }
  throw std::exception();
}

void* shared_bytes() { return executor().shared; }
unsigned lane() { return executor().running->linear & 31; }

cudaError_t run(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel) {
  Executor& e = executor();
  const std::lock_guard<std::mutex> lock(e.mutex);
  e.failed = false;
  e.sentence.clear();
  e.kernel = &kernel;
  e.shared_size = shared_bytes;
  e.running = nullptr;
  place.block_dim = block;
  place.grid_dim = grid;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  try {
    const unsigned nthreads = block.x * block.y * block.z;
    if (nthreads == 0 || nthreads > kMostThreads || nthreads % 32 != 0) {
      fail_block("a block must have 32 to %u threads, whole warps; got %u", kMostThreads, nthreads);
    }
    if (blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
      fail_block("a grid must have 1 to 2147483647 x 65535 x 65535 blocks; got %u x %u x %u", grid.x, grid.y, grid.z);
    }
    if (shared_bytes > 227 * 1024) fail_block("shared memory must be at most 227 KiB; got %zu bytes", shared_bytes);
    // An odd multiplier walks through all blocks of a power of two, beyond the grid's end it skips: any order is legal.
    uint64_t span = 1;
    while (span < blocks) span *= 2;
    const uint64_t step = e.random() | 1, start = e.random();
    for (uint64_t i = 0; i < span && !e.failed; ++i) {
      const uint64_t index = (start + i * step) & (span - 1);
      if (index >= blocks) continue;
      run_block(dim3(unsigned(index % grid.x), unsigned(index / grid.x % grid.y), unsigned(index / grid.x / grid.y)),
                block);
    }
  } catch (const std::exception&) {
  }
  return e.failed ? cudaErrorLaunchFailure : cudaSuccess;
}

// ---- rendezvous ----

void block_barrier(unsigned id, unsigned threads) {
  Executor& e = executor();
  if (id >= kMostBarriers) fail_block("a named barrier must be one of 0 to 15; got %u", id);
  if (threads == 0 || threads % 32 != 0) fail_block("a barrier must be for whole warps; got %u threads", threads);
  Barrier& barrier = e.barriers[id];
  if (barrier.arrived == 0) barrier.expected = threads;
  if (barrier.expected != threads) {
    fail_block("barrier %u must be for the same threads everywhere; got %u and %u", id, barrier.expected, threads);
  }
  if (++barrier.arrived < threads) {
    barrier.waiting.push_back(e.running);
    static const char* const names[kMostBarriers] = {
        "barrier 0", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
        "barrier 8", "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};
    return wait(names[id]);
  }
  barrier.arrived = 0;
  for (Thread* thread : barrier.waiting) wake(thread);
  barrier.waiting.clear();
}

const void* warp_exchange(const char* what, const void* value, size_t bytes) {
  Executor& e = executor();
  const unsigned first = e.running->linear / 32 * 32, own = e.running->linear & 31;
  Warp& warp = e.warps[first / 32];
  if (bytes > kMostExchange) fail_block("%s must exchange at most 64 bytes a lane; got %zu", what, bytes);
  if (warp.arrived == 0) warp.what = what;
  if (std::strcmp(warp.what, what) != 0) {
    fail_block("all lanes of a warp must meet at one instruction; got %s and %s", warp.what, what);
  }
  char (*values)[kMostExchange] = warp.values[warp.round & 1];
  if (bytes > 0) std::memcpy(values[own], value, bytes);
  if (++warp.arrived < 32) {
    wait(what);
  } else {
    warp.arrived = 0;
    ++warp.round;
    for (unsigned l = 0; l < 32; ++l) {
      if (l != own) wake(e.threads[first + l].get());
    }
  }
  return values;
}

// ---- asynchronous copies ----

void async_copy(void* shared, const void* global, size_t bytes, bool zero_instead) {
  check_in_shared("cp.async", shared, bytes);
  if (reinterpret_cast<uintptr_t>(shared) % bytes != 0 || reinterpret_cast<uintptr_t>(global) % bytes != 0) {
    fail_block("cp.async must be aligned to its %zu bytes; got shared %p and global %p", bytes, shared, global);
  }
  poison(shared, bytes);
  executor().running->uncommitted.push_back({shared, global, bytes, zero_instead});
}

void async_commit() {
  Thread* self = executor().running;
  self->groups.push_back(std::move(self->uncommitted));
  self->uncommitted.clear();
}

void async_wait(unsigned groups_left) {
  Thread* self = executor().running;
  while (self->groups.size() > groups_left) {
    for (const AsyncCopy& copy : self->groups.front()) land(copy);
    self->groups.erase(self->groups.begin());
  }
}

void mbarrier_init(uint64_t* barrier, unsigned count) {
  check_in_shared("mbarrier.init", barrier, sizeof(*barrier));
  MBarrier fresh;
  fresh.count = fresh.pending = count;
  executor().mbarriers[barrier] = fresh;
}

static MBarrier& find_mbarrier(const char* what, uint64_t* barrier) {
  const auto found = executor().mbarriers.find(barrier);
  if (found == executor().mbarriers.end()) fail_block("%s must follow mbarrier.init; got a barrier without", what);
  return found->second;
}

void mbarrier_arrive(uint64_t* barrier, unsigned expected_bytes) {
  MBarrier& state = find_mbarrier("mbarrier.arrive", barrier);
  if (state.pending == 0) fail_block("mbarrier must get %u arrivals a phase; got more", state.count);
  state.bytes += expected_bytes;
  --state.pending;
  complete_phase_if_due(&state);
}

void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  MBarrier& state = find_mbarrier("mbarrier.try_wait", barrier);
  while (state.phase == (parity & 1)) {  // the phase that it waits for still runs
    if (state.pending == 0) {            // all that is missing is data: it lands now, not earlier
      for (const AsyncCopy& copy : state.copies) {
        land(copy);
        state.bytes -= int64_t(copy.bytes);
      }
      state.copies.clear();
      if (state.bytes != 0) {
        fail_block("mbarrier must be told the bytes that its copies bring; got a difference of %lld",
                   static_cast<long long>(state.bytes));
      }
      complete_phase_if_due(&state);
      continue;
    }
    executor().mbarrier_waiters.push_back(executor().running);
    wait("mbarrier.try_wait");
  }
}

void bulk_copy(void* shared, const void* global, unsigned bytes, uint64_t* barrier) {
  check_in_shared("cp.async.bulk", shared, bytes);
  if (bytes % 16 != 0 || reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    fail_block("cp.async.bulk must be aligned to 16 bytes; got %u bytes, shared %p, global %p", bytes, shared, global);
  }
  poison(shared, bytes);
  find_mbarrier("cp.async.bulk", barrier).copies.push_back({shared, global, bytes, false});
  count_access(global, bytes, false, 0);
}

}  // namespace llamba::simt

const char* cudaGetErrorString(cudaError_t) { return llamba::simt::executor().sentence.c_str(); }

extern "C" {
LLAMBA_API int llamba_simt_multiprocessors = 4;  // few: small tests see blocks of every size
LLAMBA_API int llamba_simt_shared_bytes = 227 * 1024;
LLAMBA_API int llamba_simt_arch = 90;
LLAMBA_API int llamba_simt_enabled = 1;  // 0: the operators' CPU kernels run instead; set by tests
LLAMBA_API void llamba_simt_seed(uint64_t seed) { llamba::simt::executor().random.seed(seed); }
}
