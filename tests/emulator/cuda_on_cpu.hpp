// Runs CUDA kernels on a CPU, line by line as they stand: every thread of a block is a fiber, and a
// fiber gives way wherever threads may wait for each other (a vote, a shuffle, a barrier) and, in an
// order that a seed decides, at atomics.
//
// It finds what a CPU can find: wrong results, collectives that not all lanes reach, barriers that not
// all threads reach (a message and abort, where a GPU hangs), reads of dynamic shared memory that
// nobody wrote (it holds 0xCD), lock-free code that depends on who comes first. It does not model
// caches, memory ordering or time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __shared__ static  // one block at a time, so one copy will do
#define CXR_DYNAMIC_SHARED(name) unsigned char* name = emulator::dynamic_shared()
#define __CUDA_ARCH__ 900

namespace emulator {

struct Index {
  unsigned x = 0, y = 0, z = 0;
};

struct Warp {
  // Two generations of values: a lane may still read the last while a faster one writes the next.
  uint64_t values[2][32];
  unsigned arrived = 0, present = 0;
  unsigned long generation = 0;
  const char* operation = nullptr;
};

struct Fiber {
  jmp_buf state;
  ucontext_t birth;
  std::unique_ptr<char[]> stack;
  bool born = false, finished = true;
  Index thread;
};

constexpr size_t kStackBytes = 128 << 10;

inline std::vector<std::unique_ptr<Fiber>> fibers;
inline std::vector<Warp> warps;
inline jmp_buf scheduler_state;
inline Fiber* running = nullptr;
inline Index block_index, block_size, grid_size;
inline unsigned waiting_at_barrier = 0;
inline unsigned long barrier_generation = 0, progress = 0;
inline std::vector<unsigned char> shared_pool;
inline std::mt19937 chance;
inline std::string kernel_name;
inline void (*thread_body)(void*) = nullptr;
inline void* thread_arguments = nullptr;

[[noreturn]] inline void fail(const std::string& what) {
  std::fprintf(stderr, "emulator: kernel %s, block %u: %s\n", kernel_name.c_str(), block_index.x,
               what.c_str());
  std::abort();
}

inline unsigned char* dynamic_shared() { return shared_pool.data(); }

inline void give_way() {
  Fiber* self = running;
  if (_setjmp(self->state) == 0) _longjmp(scheduler_state, 1);
}

inline void fiber_main() {
  for (;;) {
    thread_body(thread_arguments);
    running->finished = true;
    ++progress;
    give_way();
  }
}

inline void resume(Fiber& fiber) {
  running = &fiber;
  if (_setjmp(scheduler_state) != 0) return;
  if (fiber.born) _longjmp(fiber.state, 1);
  fiber.born = true;
  fiber.stack.reset(new char[kStackBytes]);
  getcontext(&fiber.birth);
  fiber.birth.uc_stack.ss_sp = fiber.stack.get();
  fiber.birth.uc_stack.ss_size = kStackBytes;
  fiber.birth.uc_link = nullptr;
  makecontext(&fiber.birth, fiber_main, 0);
  setcontext(&fiber.birth);
}

inline void run_block(unsigned threads) {
  while (fibers.size() < threads) fibers.push_back(std::make_unique<Fiber>());
  warps.assign((threads + 31) / 32, Warp{});
  waiting_at_barrier = 0;
  for (unsigned i = 0; i < threads; ++i) {
    fibers[i]->finished = false;
    fibers[i]->thread = {i, 0, 0};
    warps[i / 32].present |= 1u << (i % 32);
  }
  std::vector<unsigned> order(threads);
  for (unsigned i = 0; i < threads; ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), chance);
  for (unsigned long last = progress - 1; last != progress;) {
    last = progress;
    for (unsigned i : order) {
      if (!fibers[i]->finished) resume(*fibers[i]);
    }
  }
  for (unsigned i = 0; i < threads; ++i) {
    if (!fibers[i]->finished)
      fail("threads wait for each other for ever (thread " + std::to_string(i) + ")");
  }
}

// Hands every lane of the warp the 32 values; all 32 lanes must come with the same operation.
inline const uint64_t* exchange(unsigned mask, uint64_t value, const char* operation) {
  if (mask != 0xffffffffu) fail(std::string(operation) + " with a partial mask");
  Warp& warp = warps[running->thread.x / 32];
  const unsigned lane = running->thread.x % 32;
  if (warp.present != 0xffffffffu) fail(std::string(operation) + " in a block of partial warps");
  if (warp.arrived && std::strcmp(warp.operation, operation) != 0) {
    fail(std::string("lanes diverge: ") + warp.operation + " meets " + operation);
  }
  warp.operation = operation;
  const unsigned long generation = warp.generation;
  warp.values[generation % 2][lane] = value;
  warp.arrived |= 1u << lane;
  ++progress;
  if (warp.arrived == warp.present) {
    warp.arrived = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) give_way();
  return warp.values[generation % 2];
}

template <class T>
uint64_t packed(T v) {
  uint64_t bits = 0;
  static_assert(sizeof(T) <= 8);
  std::memcpy(&bits, &v, sizeof(T));
  return bits;
}
template <class T>
T unpacked(uint64_t bits) {
  T v;
  std::memcpy(&v, &bits, sizeof(T));
  return v;
}

inline void maybe_give_way() {
  ++progress;
  if (chance() % 8 == 0) give_way();
}

template <class... Parameters, size_t... I>
void call(void (*kernel)(Parameters...), void** parameters, std::index_sequence<I...>) {
  kernel(*static_cast<std::remove_const_t<Parameters>*>(parameters[I])...);
}

struct Kernel {
  virtual ~Kernel() = default;
  virtual void run(void** parameters) const = 0;
};
template <class... Parameters>
struct KernelOf : Kernel {
  void (*function)(Parameters...);
  explicit KernelOf(void (*f)(Parameters...)) : function(f) {}
  void run(void** parameters) const override {
    call(function, parameters, std::index_sequence_for<Parameters...>{});
  }
};

inline void launch(const std::string& name, const Kernel& kernel, unsigned blocks, unsigned threads,
                   unsigned shared_bytes, void** parameters) {
  kernel_name = name;
  block_size = {threads, 1, 1};
  grid_size = {blocks, 1, 1};
  std::pair<const Kernel*, void**> bound{&kernel, parameters};
  thread_body = [](void* context) {
    const auto& [of, with] = *static_cast<std::pair<const Kernel*, void**>*>(context);
    of->run(with);
  };
  thread_arguments = &bound;
  for (unsigned b = 0; b < blocks; ++b) {
    block_index = {b, 0, 0};
    shared_pool.assign(shared_bytes + 16, 0xCD);
    run_block(threads);
  }
}

}  // namespace emulator

#define threadIdx (emulator::running->thread)
#define blockIdx emulator::block_index
#define blockDim emulator::block_size
#define gridDim emulator::grid_size

inline void __syncthreads() {
  using namespace emulator;
  const unsigned long generation = barrier_generation;
  ++progress;
  unsigned alive = 0;
  for (unsigned i = 0; i < block_size.x; ++i) alive += !fibers[i]->finished;
  if (alive != block_size.x) fail("a barrier after some threads have returned");
  if (++waiting_at_barrier == block_size.x) {
    waiting_at_barrier = 0;
    ++barrier_generation;
  }
  while (barrier_generation == generation) give_way();
}

template <class T>
T __shfl_sync(unsigned mask, T v, int lane) {
  return emulator::unpacked<T>(emulator::exchange(mask, emulator::packed(v), "shfl")[lane & 31]);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T v, int bits) {
  const unsigned self = threadIdx.x % 32;
  return emulator::unpacked<T>(emulator::exchange(mask, emulator::packed(v), "shfl_xor")[self ^ bits]);
}
template <class T>
T __shfl_up_sync(unsigned mask, T v, unsigned by) {
  const unsigned self = threadIdx.x % 32;
  return emulator::unpacked<T>(
      emulator::exchange(mask, emulator::packed(v), "shfl_up")[self >= by ? self - by : self]);
}
inline unsigned __ballot_sync(unsigned mask, bool v) {
  const uint64_t* all = emulator::exchange(mask, v, "ballot");
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= static_cast<unsigned>(all[i] != 0) << i;
  return bits;
}
inline bool __any_sync(unsigned mask, bool v) {
  const uint64_t* all = emulator::exchange(mask, v, "any");
  return std::any_of(all, all + 32, [](uint64_t one) { return one != 0; });
}
inline unsigned __reduce_min_sync(unsigned mask, unsigned v) {
  const uint64_t* all = emulator::exchange(mask, v, "reduce_min");
  return static_cast<unsigned>(*std::min_element(all, all + 32));
}

template <class T, class Change>
T atomically(T* at, Change change) {
  emulator::maybe_give_way();
  const T before = *at;
  *at = change(before);
  return before;
}
template <class T>
T atomicMin(T* at, T v) {
  return atomically(at, [v](T before) { return std::min(before, v); });
}
template <class T>
T atomicMax(T* at, T v) {
  return atomically(at, [v](T before) { return std::max(before, v); });
}
template <class T>
T atomicAdd(T* at, T v) {
  return atomically(at, [v](T before) { return before + v; });
}

template <class T>
T __ldg(const T* at) {
  return *at;
}
inline float __uint_as_float(unsigned v) { return emulator::unpacked<float>(v); }
inline unsigned __float_as_uint(float v) { return static_cast<unsigned>(emulator::packed(v)); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline int __popc(int v) { return __builtin_popcount(static_cast<unsigned>(v)); }
inline int __clz(int v) { return v ? __builtin_clz(static_cast<unsigned>(v)) : 32; }
inline int __ffs(int v) { return __builtin_ffs(v); }
inline unsigned __brev(unsigned v) {
  unsigned r = 0;
  for (int i = 0; i < 32; ++i) r |= (v >> i & 1u) << (31 - i);
  return r;
}
inline unsigned long long __brevll(unsigned long long v) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(v))) << 32 |
         __brev(static_cast<unsigned>(v >> 32));
}
using std::fmaxf;
using std::fminf;
using std::max;
using std::min;
