// Attention mining of every map, with the masked GAP of each step, in one launch.
//
// Warp method, maps up to 32 x 32 (and 64 x 64 with two words a lane). Lane x holds column x: its
// values, and one bit a row that says which pixels are alive. The cut of a row is one ballot, which is
// also the row's word; after 32 of them lane y keeps row y, and the flood fill (row_words.cuh) works on
// rows. The component goes back to columns by a transposition. All steps of a map stay in registers:
// the map is read once, and nothing but results is written.
//
// Block method, any size: union-find over the pixels (union_find.cuh), one block a map, blocks take
// maps in turn so that their scratch depends on the device and not on how many maps there are.
//
// cxr_fast/reference.py states every rounding.
#include "row_words.cuh"
#include "union_find.cuh"

namespace cxr::gpu {

// Extents of steps [from, steps) that erase nothing more, and the logit that they all share.
__device__ inline void write_idle_steps(const MineParameters& p, long long map, int from, float lo,
                                        float hi, float logit, int thread, int threads) {
  for (int t = from + thread; t < p.steps; t += threads) {
    p.extent[(map * p.steps + t) * 2] = lo;
    p.extent[(map * p.steps + t) * 2 + 1] = hi;
    if (p.logits) p.logits[map * p.steps + t] = logit;
  }
}

__device__ inline float bias_of(const MineParameters& p, long long map) {
  return p.bias ? p.bias[map % p.classes] : 0.0f;
}

// The values of this lane's columns. A map of one word a row stays in registers; a larger one would
// need 128 of them, and is read again from the cache instead.
template <int K>
struct Columns {
  const float* map;
  int height, width;
  __device__ Columns(const float* cam, int h, int w) : map(cam), height(h), width(w) {}
  __device__ float at(int y, int x) const { return __ldg(map + y * width + x); }
};

template <>
struct Columns<1> {
  float column[kWarpSide];
  __device__ Columns(const float* cam, int height, int width) {
    const int x = static_cast<int>(threadIdx.x % 32);
#pragma unroll
    for (int y = 0; y < kWarpSide; ++y) {
      column[y] = y < height && x < width ? __ldg(cam + y * width + x) : 0.0f;
    }
  }
  __device__ float at(int y, int) const { return column[y]; }
};

// Calls body(y, r, bit) for every row y = 32 * r + bit: where the values lie in registers, which have
// no run-time index, unrolled, and for rows from `height` on as well, since a branch a row costs more
// than the row (their pixels are not present); else as a loop, so that loads do not pile up in
// registers.
template <int K, class Body>
__device__ inline void for_each_row(int height, Body body) {
  if constexpr (K == 1) {
#pragma unroll
    for (int y = 0; y < kWarpSide; ++y) {
      body(y, 0, y);
    }
  } else {
#pragma unroll
    for (int r = 0; r < K; ++r) {
#pragma unroll 8
      for (int bit = 0; bit < min(height - 32 * r, 32); ++bit) body(32 * r + bit, r, bit);
    }
  }
}

struct Extent {
  float lo, hi, mean;
};

// Least, greatest and mean (over all pixels of the map) of the pixels alive, which are bits of each
// column.
template <int K>
__device__ inline Extent extent_of(const Columns<K>& values, const RowWords<K>& alive, int height,
                                   float per_pixel) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  float lo = infinity(), hi = -infinity(), sum = 0.0f;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for_each_row<K>(height, [&](int y, int, int) {
      if (alive.row[k] >> y & 1) {
        const float v = values.at(y, 32 * k + lane);
        lo = fminf(lo, v);
        hi = fmaxf(hi, v);
        sum += v;
      }
    });
  }
  return {warp_least(lo), warp_greatest(hi), warp_sum(sum) * per_pixel};
}

template <int K>
__device__ inline void mine_map(const MineParameters& p, long long map) {
  using Word = typename WordOf<K>::type;
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int height = p.height, width = p.width;
  const long long at = map * height * width;
  unsigned char* erased_at = p.erased_at + at;
  const Columns<K> values(p.cam + at, height, width);
  const float bias = bias_of(p, map);

  RowWords<K> present;  // bit y of word k: pixel (y, 32 k + lane) exists
#pragma unroll
  for (int k = 0; k < K; ++k) {
    const Word rows = static_cast<Word>(~Word{0}) >> (32 * K - height);
    present.row[k] = 32 * k + lane < width ? rows : Word{0};
  }
  // Decided over the whole map, erased or not: NaN, infinities, and a range that overflows.
  bool broken = false;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    for_each_row<K>(height, [&](int y, int, int) {
      if (present.row[k] >> y & 1) broken |= !is_finite(values.at(y, 32 * k + lane));
    });
  }
  RowWords<K> alive = present;
  Extent extent = extent_of(values, present, height, p.per_pixel);
  broken = __any_sync(kAllLanes, broken) || !is_finite(__fsub_rn(extent.hi, extent.lo));

#pragma unroll
  for (int k = 0; k < K; ++k) {
    for_each_row<K>(height, [&](int y, int, int) {
      if (present.row[k] >> y & 1) {
        const int pixel = y * width + 32 * k + lane;
        const unsigned char before = p.erased_before ? p.erased_before[at + pixel] : 0;
        erased_at[pixel] = before;
        if (before) alive.row[k] &= ~(Word{1} << y);
      }
    });
  }
  if (broken) {
    write_idle_steps(p, map, 0, not_a_number(), not_a_number(), extent.mean + bias, lane, 32);
    return;
  }

  for (int step = 0; step < p.steps; ++step) {
    if (step > 0 || p.erased_before) extent = extent_of(values, alive, height, p.per_pixel);
    if (extent.lo > extent.hi) extent.lo = extent.hi = 0.0f;  // no pixel alive
    const float lo = extent.lo, hi = extent.hi;
    if (!(lo < hi)) {
      write_idle_steps(p, map, step, lo, hi, extent.mean + bias, lane, 32);
      return;
    }
    if (lane == 0) {
      p.extent[(map * p.steps + step) * 2] = lo;
      p.extent[(map * p.steps + step) * 2 + 1] = hi;
      if (p.logits) p.logits[map * p.steps + step] = extent.mean + bias;
    }

    const float cut = cut_of(lo, hi, p.threshold);
    RowWords<K> foreground;
    unsigned first = kAllLanes;  // the first peak among this lane's columns, in row-major order
#pragma unroll
    for (int k = 0; k < K; ++k) foreground.row[k] = 0;
#pragma unroll
    for (int k = 0; k < K; ++k) {
      for_each_row<K>(height, [&](int y, int r, int bit) {
        const float v = values.at(y, min(32 * k + lane, width - 1));
        const bool is_alive = alive.row[k] >> y & 1;
        const Word word = __ballot_sync(kAllLanes, is_alive && v >= cut);
        if (lane == bit) foreground.row[r] |= word << (32 * k);
        if (is_alive && v == hi) {
          const unsigned pixel = static_cast<unsigned>(y * width + 32 * k + lane);
          first = pixel < first ? pixel : first;
        }
      });
    }
    const int peak = static_cast<int>(warp_min(first));
    const int peak_y = peak / width, peak_x = peak % width;
    RowWords<K> seed;
#pragma unroll
    for (int r = 0; r < K; ++r) seed.row[r] = peak_y == 32 * r + lane ? Word{1} << peak_x : Word{0};
    const RowWords<K> component = component_of(foreground, seed, p.connectivity == 8);

    const RowWords<K> taken = transposed(component);
    const unsigned char t = static_cast<unsigned char>(p.first_step + step);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      alive.row[k] &= ~taken.row[k];
#pragma unroll
      for (int r = 0; r < K; ++r) {  // rows that lost no pixel are passed over
        unsigned rows = __ballot_sync(kAllLanes, component.row[r] != 0);
        for (; rows; rows &= rows - 1) {
          const int y = 32 * r + __ffs(static_cast<int>(rows)) - 1;
          if (taken.row[k] >> y & 1) erased_at[y * width + 32 * k + lane] = t;
        }
      }
    }
  }
}

template <int K>
__device__ inline void mine_by_warp(const MineParameters& p) {
  const long long map = static_cast<long long>(blockIdx.x) * kMineWarps + threadIdx.x / 32;
  if (map < p.maps) mine_map<K>(p, map);
}

// ---- the general method ----

struct BlockExtent {
  Range range;
  double sum;
};

__device__ inline BlockExtent block_extent(const float* cam, const unsigned char* erased_at, int area) {
  __shared__ double sums[32];
  Range seen{infinity(), -infinity(), false};
  double sum = 0.0;
  for (int pixel = static_cast<int>(threadIdx.x); pixel < area; pixel += static_cast<int>(blockDim.x)) {
    if (erased_at && erased_at[pixel]) continue;
    see(seen, cam[pixel]);
    sum += cam[pixel];
  }
  const auto add = [](double a, double b) { return a + b; };
  return {block_range(seen), block_combine(warp_sum(sum), sums, add)};
}

__device__ inline void mine_map_by_block(const MineParameters& p, long long map, int* parents) {
  __shared__ unsigned first_peak;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int area = p.height * p.width;
  const float* cam = p.cam + map * area;
  unsigned char* erased_at = p.erased_at + map * area;
  const float bias = bias_of(p, map);

  BlockExtent extent = block_extent(cam, nullptr, area);
  const bool broken = extent.range.broken || !is_finite(__fsub_rn(extent.range.hi, extent.range.lo));
  for (int pixel = thread; pixel < area; pixel += threads) {
    erased_at[pixel] = p.erased_before ? p.erased_before[map * area + pixel] : 0;
  }
  __syncthreads();
  if (p.erased_before) extent = block_extent(cam, erased_at, area);
  const auto logit_of = [&](double sum) { return static_cast<float>(sum) * p.per_pixel + bias; };
  if (broken) {
    write_idle_steps(p, map, 0, not_a_number(), not_a_number(), logit_of(extent.sum), thread, threads);
    return;
  }
  for (int step = 0; step < p.steps; ++step) {
    if (step > 0) extent = block_extent(cam, erased_at, area);
    if (extent.range.lo > extent.range.hi) extent.range.lo = extent.range.hi = 0.0f;
    const float lo = extent.range.lo, hi = extent.range.hi;
    if (!(lo < hi)) {
      write_idle_steps(p, map, step, lo, hi, logit_of(extent.sum), thread, threads);
      return;
    }
    if (thread == 0) {
      p.extent[(map * p.steps + step) * 2] = lo;
      p.extent[(map * p.steps + step) * 2 + 1] = hi;
      if (p.logits) p.logits[map * p.steps + step] = logit_of(extent.sum);
      first_peak = kAllLanes;
    }
    __syncthreads();
    const float cut = cut_of(lo, hi, p.threshold);
    unite_by_block(parents, area, p.width, p.connectivity, [&](int pixel) {
      if (erased_at[pixel]) return false;
      const float v = cam[pixel];
      if (v == hi) atomicMin(&first_peak, static_cast<unsigned>(pixel));
      return v >= cut;
    });
    const int peak = static_cast<int>(first_peak);
    const int root = parents[peak] == kBackground ? kBackground : root_of(parents, peak);
    const unsigned char t = static_cast<unsigned char>(p.first_step + step);
    for (int pixel = thread; pixel < area; pixel += threads) {
      if (parents[pixel] != kBackground && root_of(parents, pixel) == root) erased_at[pixel] = t;
    }
    __syncthreads();
  }
}

}  // namespace cxr::gpu

using cxr::gpu::MineParameters;

CXR_KERNEL(32 * cxr::gpu::kMineWarps, 1) mine_attention_32(const MineParameters p) {
  cxr::gpu::mine_by_warp<1>(p);
}

CXR_KERNEL(32 * cxr::gpu::kMineWarps, 1) mine_attention_64(const MineParameters p) {
  cxr::gpu::mine_by_warp<2>(p);
}

CXR_KERNEL(cxr::gpu::kMineBlockThreads, 1) mine_attention_any(const MineParameters p) {
  int* parents = p.parents + static_cast<long long>(blockIdx.x) * p.height * p.width;
  for (long long map = blockIdx.x; map < p.maps; map += gridDim.x) {
    cxr::gpu::mine_map_by_block(p, map, parents);
    __syncthreads();
  }
}
