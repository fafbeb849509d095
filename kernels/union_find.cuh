// Connected components of an image by union-find over its pixels, in shared or global memory.
//
// parents[p] is a pixel of the same component that comes no later in row-major order, or kBackground.
// It starts as the first pixel of p's run (as far as one warp sees it), so that most unions are never
// needed; `unite` then joins runs along the borders of warps and between rows. The root of a component
// ends up as its first pixel in row-major order, whatever order the threads ran in: a parent is always
// less than its pixel, so that all ways end, and the result is deterministic.
#pragma once

#include "device.cuh"

namespace cxr::gpu {

constexpr int kBackground = -1;

// Other threads change parents meanwhile; any value that was once there leads to the root.
__device__ inline int root_of(const int* parents, int p) {
  const volatile int* of = parents;
  for (int q = of[p]; q != p; q = of[p]) p = q;
  return p;
}

// The same, while uniting: every other pixel on the way is hung to its grandparent, so that ways stay
// short. The store may undo what another thread's atomicMin did to a pixel that was no root any more;
// that thread has seen so and goes on with what it displaced.
__device__ inline int climb(int* parents, int p) {
  volatile int* of = parents;
  for (int q = of[p]; q != p; q = of[p]) {
    const int above = of[q];
    if (above != q) of[p] = above;
    p = above;
  }
  return p;
}

__device__ inline void unite(int* parents, int a, int b) {
  for (;;) {
    a = climb(parents, a);
    b = climb(parents, b);
    if (a == b) return;
    if (a < b) {
      const int swapped = a;
      a = b;
      b = swapped;
    }
    const int before = atomicMin(&parents[a], b);  // a is a root as long as it is its own parent
    if (before == a) return;
    a = before;
  }
}

// The first pixel of p's run within this warp, whose lanes hold 32 pixels in row-major order.
__device__ inline int run_begin(int p, int x, bool foreground) {
  const unsigned lane = threadIdx.x % 32;
  const unsigned set = __ballot_sync(kAllLanes, foreground);
  const bool begins = foreground && (x == 0 || lane == 0 || !(set >> (lane - 1) & 1));
  const unsigned begin = __ballot_sync(kAllLanes, begins) & (kAllLanes >> (31 - lane));
  return foreground ? p - static_cast<int>(lane) + 31 - __clz(static_cast<int>(begin)) : kBackground;
}

// Joins pixel p (foreground, in column x) to the runs before it that touch it and that no neighbour of
// p joins as well. `p % 32` is p's lane.
__device__ inline void unite_with_earlier(int* parents, int p, int x, int width, int connectivity) {
  const volatile int* of = parents;
  auto set = [&](int q) { return of[q] != kBackground; };
  const bool left = x > 0 && set(p - 1);
  if (left && p % 32 == 0) unite(parents, p, p - 1);
  if (p < width) return;
  const int up = p - width;
  const bool up_left = x > 0 && set(up - 1);
  if (set(up)) {
    if (!(left && up_left)) unite(parents, p, up);
  } else if (connectivity == 8) {
    if (up_left && !left) unite(parents, p, up - 1);
    if (x + 1 < width && set(up + 1) && !set(p + 1)) unite(parents, p, up + 1);
  }
}

// The parents of a whole image, by one block; set(pixel) tells, once a pixel, what is foreground.
template <class Set>
__device__ inline void unite_by_block(int* parents, int area, int width, int connectivity, Set set) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  // Whole warps go round, so that a warp always holds 32 pixels in a row.
  for (int base = thread - thread % 32; base < area; base += threads) {
    const int pixel = base + thread % 32;
    const int begin = run_begin(pixel, pixel % width, pixel < area && set(pixel));
    if (pixel < area) parents[pixel] = begin;
  }
  __syncthreads();
  for (int pixel = thread; pixel < area; pixel += threads) {
    if (parents[pixel] != kBackground) {
      unite_with_earlier(parents, pixel, pixel % width, width, connectivity);
    }
  }
  __syncthreads();
}

}  // namespace cxr::gpu
