// Ground floor of the device code: warps, reductions, and floats that order like integers.
//
// No standard header is included, so that NVRTC compiles the same lines as nvcc; the emulator of
// tests/emulator provides the intrinsics on a CPU.
#pragma once

#include "parameters.hpp"

// `blocks` of `threads` each share a multiprocessor: the compiler may use as many registers as that
// leaves.
#define CXR_KERNEL(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#ifndef CXR_DYNAMIC_SHARED
#define CXR_DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
#endif

namespace cxr::gpu {

constexpr unsigned kAllLanes = 0xffffffffu;

__device__ inline float infinity() { return __uint_as_float(0x7f800000u); }
__device__ inline float not_a_number() { return __uint_as_float(0x7fc00000u); }

__device__ inline bool is_finite(float v) { return (__float_as_uint(v) & 0x7f800000u) != 0x7f800000u; }

// Maps floats that are not NaN to unsigned integers of the same order (-0 just below 0), which the
// integer reductions of a warp take in one instruction.
__device__ inline unsigned order_of(float v) {
  const unsigned bits = __float_as_uint(v);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
__device__ inline float of_order(unsigned key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

__device__ inline unsigned warp_min(unsigned v) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(kAllLanes, v);
#else
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned other = __shfl_xor_sync(kAllLanes, v, offset);
    v = other < v ? other : v;
  }
  return v;
#endif
}

__device__ inline float warp_least(float v) { return of_order(warp_min(order_of(v))); }
__device__ inline float warp_greatest(float v) { return of_order(~warp_min(~order_of(v))); }

// In the same order on every device: sums are deterministic.
template <class T>
__device__ inline T warp_sum(T v) {
  for (int offset = 16; offset > 0; offset /= 2) v += __shfl_xor_sync(kAllLanes, v, offset);
  return v;
}

// One value a warp, combined over a block; every thread gets the result. A block calls it with the
// same `scratch` (a value for each of up to 32 warps) any number of times.
template <class T, class Combine>
__device__ inline T block_combine(T of_warp, T* scratch, Combine combine) {
  const int warps = static_cast<int>(blockDim.x) / 32, warp = static_cast<int>(threadIdx.x) / 32;
  __syncthreads();  // the results of the last call have been read
  if (threadIdx.x % 32 == 0) scratch[warp] = of_warp;
  __syncthreads();
  T all = scratch[0];
  for (int w = 1; w < warps; ++w) all = combine(all, scratch[w]);
  return all;
}

// Sum over this lane and those before it.
__device__ inline int warp_prefix_sum(int v) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int offset = 1; offset < 32; offset *= 2) {
    const int lower = __shfl_up_sync(kAllLanes, v, offset);
    if (lane >= offset) v += lower;
  }
  return v;
}

struct Range {
  float lo, hi;
  bool broken;  // some value is not finite
};

// What the threads of a block have each seen, together.
__device__ inline Range block_range(const Range& seen) {
  __shared__ float least[32], greatest[32];
  __shared__ int breaks[32];
  Range all;
  all.broken = block_combine(__any_sync(kAllLanes, seen.broken) ? 1 : 0, breaks,
                             [](int a, int b) { return a | b; }) != 0;
  all.lo = block_combine(warp_least(seen.lo), least, [](float a, float b) { return fminf(a, b); });
  all.hi =
      block_combine(warp_greatest(seen.hi), greatest, [](float a, float b) { return fmaxf(a, b); });
  return all;
}

__device__ inline void see(Range& range, float v) {
  range.broken |= !is_finite(v);
  range.lo = fminf(range.lo, v);
  range.hi = fmaxf(range.hi, v);
}

// The threshold's cut and the normalised map, each operation rounded: no compiler flag may fuse them.
__device__ inline float cut_of(float lo, float hi, float threshold) {
  return __fadd_rn(lo, __fmul_rn(threshold, __fsub_rn(hi, lo)));
}
__device__ inline float normalized(float v, float lo, float spread) {
  return __fdiv_rn(__fsub_rn(v, lo), spread);
}

}  // namespace cxr::gpu
