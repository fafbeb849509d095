// Boxes from heatmaps: cut at several thresholds, a tight box around each component, score, rank,
// suppress.
//
// One block a map, blocks take maps in turn. In attention_mining the block makes the heatmap, too. The
// normalised (and upsampled) map, the parents of its union-find and the candidates of all thresholds
// lie in a workspace: shared memory where they fit, else a slice of global memory for each block.
// Components become candidates at their roots; each run of pixels then widens its component's box by
// two minima or maxima. Boxes are kept best first, at most max_boxes times: a pass over the candidates
// for the best, a pass to drop those that overlap it.
//
// Floor: one read of the heatmap.
#include "aggregate_heatmap.cuh"
#include "union_find.cuh"

namespace cxr::gpu {

// From a map's pixel to the one before and after the centre of an upsampled pixel, and the weight of
// the latter: ((i + 0.5) / factor - 0.5), clamped to the map, as a fraction of integers.
struct Between {
  int first, second;
  float weight;
};

__device__ inline Between between(int i, int factor, int size) {
  const int numerator = 2 * i + 1 - factor, denominator = 2 * factor;
  if (numerator <= 0) return {0, size > 1 ? 1 : 0, 0.0f};
  const int first = numerator / denominator;
  if (first >= size - 1) return {size - 1, size - 1, 0.0f};
  const float weight =
      __fdiv_rn(static_cast<float>(numerator - first * denominator), static_cast<float>(denominator));
  return {first, first + 1, weight};
}

__device__ inline float mixed(float a, float b, float weight) {
  return __fadd_rn(a, __fmul_rn(weight, __fsub_rn(b, a)));
}

struct Workspace {
  float* heat;            // [height * upsample, width * upsample]
  int* parents;           // the same shape
  float* source;          // [height, width], normalised; only where upsample > 1
  Candidate* candidates;  // [capacity]
};

__device__ inline Workspace workspace_of(const BoxParameters& p, unsigned char* memory) {
  const long long area = static_cast<long long>(p.height) * p.width;
  const long long large = area * p.upsample * p.upsample;
  Workspace w;
  w.heat = reinterpret_cast<float*>(memory);
  w.parents = reinterpret_cast<int*>(w.heat + large);
  w.source = reinterpret_cast<float*>(w.parents + large);
  w.candidates = reinterpret_cast<Candidate*>(w.source + (p.upsample > 1 ? area : 0));
  return w;
}

// Fills w.heat. False, for all threads alike, if the map is constant or not finite.
__device__ inline bool prepare_heat(const BoxParameters& p, long long map, const Workspace& w) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int area = p.height * p.width;
  float* source = p.upsample > 1 ? w.source : w.heat;
  Range seen{infinity(), -infinity(), false};
  const auto take = [&](int i, float v) {
    source[i] = v;
    see(seen, v);
  };
  if (p.first.heatmap) {
    float* heatmap = p.first.heatmap + map * area;
#pragma unroll 4
    for (int i = thread; i < area; i += threads) {
      const float v = aggregated(p.first, map, i);
      heatmap[i] = v;
      take(i, v);
    }
  } else {
    const float* heatmap = p.heatmap + map * area;
#pragma unroll 4
    for (int i = thread; i < area; i += threads) take(i, __ldg(heatmap + i));
  }
  const Range range = block_range(seen);
  const float spread = __fsub_rn(range.hi, range.lo);
  if (range.broken || !is_finite(spread) || !(range.hi > range.lo)) return false;
  for (int i = thread; i < area; i += threads) source[i] = normalized(source[i], range.lo, spread);
  __syncthreads();
  if (p.upsample == 1) return true;
  const int columns = p.width * p.upsample, pixels = area * p.upsample * p.upsample;
  for (int i = thread; i < pixels; i += threads) {
    const Between down = between(i / columns, p.upsample, p.height);
    const Between across = between(i % columns, p.upsample, p.width);
    const float* first = source + down.first * p.width;
    const float* second = source + down.second * p.width;
    w.heat[i] = mixed(mixed(first[across.first], first[across.second], across.weight),
                      mixed(second[across.first], second[across.second], across.weight), down.weight);
  }
  __syncthreads();
  return true;
}

// The first maximum in row-major order.
__device__ inline int first_maximum(const float* heat, int pixels) {
  __shared__ unsigned long long keys[32];
  unsigned long long best = 0;  // the value's order above, the complement of the index below
  for (int i = static_cast<int>(threadIdx.x); i < pixels; i += static_cast<int>(blockDim.x)) {
    // 0 + turns -0 into 0, which it equals.
    const unsigned long long key = static_cast<unsigned long long>(order_of(__fadd_rn(heat[i], 0.0f)))
                                       << 32 |
                                   (kAllLanes - static_cast<unsigned>(i));
    best = key > best ? key : best;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    const unsigned long long other = __shfl_xor_sync(kAllLanes, best, offset);
    best = other > best ? other : best;
  }
  best = block_combine(best, keys,
                       [](unsigned long long a, unsigned long long b) { return a > b ? a : b; });
  return static_cast<int>(kAllLanes - static_cast<unsigned>(best));
}

// In a root, parents hold -2 - (its candidate), or kBackground for a component that is not wanted.
__device__ inline int candidate_of(const int* parents, int pixel) {
  int q = pixel;
  while (q >= 0) q = parents[q];
  return -2 - q;
}

// Appends the components of heat >= cut to the candidates, without their scores.
__device__ inline void add_components(const BoxParameters& p, const Workspace& w, float cut, int peak,
                                      int* count) {
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int width = p.width * p.upsample, pixels = p.height * p.upsample * width;
  unite_by_block(w.parents, pixels, width, p.connectivity,
                 [&](int pixel) { return w.heat[pixel] >= cut; });
  int wanted = kBackground;
  if (p.peak_only && w.parents[peak] != kBackground) wanted = root_of(w.parents, peak);
  __syncthreads();  // no root is marked before all threads know the peak's
  for (int pixel = thread; pixel < pixels; pixel += threads) {
    if (w.parents[pixel] != pixel) continue;
    if (p.peak_only && pixel != wanted) {
      w.parents[pixel] = kBackground;
      continue;
    }
    const int index = atomicAdd(count, 1);
    w.candidates[index] = {pixel % width, pixel / width, 0, 0, 0.0f};
    w.parents[pixel] = -2 - index;
  }
  __syncthreads();
  for (int pixel = thread; pixel < pixels; pixel += threads) {
    if (!(w.heat[pixel] >= cut)) continue;
    const int x = pixel % width;
    const bool begins = x == 0 || !(w.heat[pixel - 1] >= cut);
    const bool ends = x + 1 == width || !(w.heat[pixel + 1] >= cut);
    if (!begins && !ends) continue;
    const int index = candidate_of(w.parents, pixel);
    if (index < 0) continue;
    Candidate* box = &w.candidates[index];
    if (begins) {
      atomicMin(&box->x1, x);
      atomicMax(&box->y2, pixel / width + 1);
    }
    if (ends) atomicMax(&box->x2, x + 1);
  }
  __syncthreads();
}

// The mean over each box, one warp a box, summed in double.
__device__ inline void score_candidates(const BoxParameters& p, const Workspace& w, int count) {
  const int width = p.width * p.upsample, lane = static_cast<int>(threadIdx.x % 32);
  for (int i = static_cast<int>(threadIdx.x / 32); i < count; i += static_cast<int>(blockDim.x / 32)) {
    const Candidate box = w.candidates[i];
    const int columns = box.x2 - box.x1, pixels = columns * (box.y2 - box.y1);
    double sum = 0.0;
    for (int at = lane; at < pixels; at += 32) {
      sum += w.heat[(box.y1 + at / columns) * width + box.x1 + at % columns];
    }
    sum = warp_sum(sum);
    if (lane == 0) w.candidates[i].score = static_cast<float>(__ddiv_rn(sum, pixels));
  }
  __syncthreads();
}

__device__ inline long long area_of(const Candidate& c) {
  return static_cast<long long>(c.x2 - c.x1) * (c.y2 - c.y1);
}

// Whether a ranks before b: the larger score, then area, then the lesser (y1, x1, y2, x2).
__device__ inline bool is_better(const Candidate& a, const Candidate& b) {
  if (a.score != b.score) return a.score > b.score;
  const long long of_a = area_of(a), of_b = area_of(b);
  if (of_a != of_b) return of_a > of_b;
  if (a.y1 != b.y1) return a.y1 < b.y1;
  if (a.x1 != b.x1) return a.x1 < b.x1;
  if (a.y2 != b.y2) return a.y2 < b.y2;
  return a.x2 < b.x2;
}

// The index of the best candidate still in the race, or -1.
__device__ inline int best_candidate(const Candidate* candidates, int count) {
  __shared__ int of_warp[32];
  const auto better = [&](int a, int b) {
    if (a < 0 || b < 0) return a < 0 ? b : a;
    return is_better(candidates[b], candidates[a]) ? b : a;
  };
  int best = -1;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    if (candidates[i].score >= 0.0f) best = better(best, i);
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    best = better(best, __shfl_xor_sync(kAllLanes, best, offset));
  }
  return block_combine(best, of_warp, better);
}

__device__ inline bool overlaps(const Candidate& a, const Candidate& b, double max_overlap) {
  const int columns = min(a.x2, b.x2) - max(a.x1, b.x1), rows = min(a.y2, b.y2) - max(a.y1, b.y1);
  const long long shared = static_cast<long long>(max(columns, 0)) * max(rows, 0);
  const long long together = area_of(a) + area_of(b) - shared;
  return static_cast<double>(shared) > __dmul_rn(max_overlap, static_cast<double>(together));
}

__device__ inline void write_box(const BoxParameters& p, long long map, int rank,
                                 const Candidate& box) {
  const long long image = map / p.classes;
  const double image_height = p.image_sizes ? p.image_sizes[2 * image] : p.image_height;
  const double image_width = p.image_sizes ? p.image_sizes[2 * image + 1] : p.image_width;
  const auto scaled = [](int corner, double size, int cells) {
    return static_cast<float>(__ddiv_rn(__dmul_rn(corner, size), cells));
  };
  float* out = p.boxes + (map * p.max_boxes + rank) * 4;
  out[0] = scaled(box.x1, image_width, p.width * p.upsample);
  out[1] = scaled(box.y1, image_height, p.height * p.upsample);
  out[2] = scaled(box.x2, image_width, p.width * p.upsample);
  out[3] = scaled(box.y2, image_height, p.height * p.upsample);
  p.scores[map * p.max_boxes + rank] = box.score;
}

__device__ inline void boxes_of_map(const BoxParameters& p, long long map, const Workspace& w) {
  __shared__ int count;
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (thread == 0) count = 0;
  __syncthreads();
  int kept = 0;
  if (prepare_heat(p, map, w)) {
    const int pixels = p.height * p.width * p.upsample * p.upsample;
    const int peak = p.peak_only ? first_maximum(w.heat, pixels) : 0;
    for (int t = 0; t < p.threshold_count; ++t) add_components(p, w, p.thresholds[t], peak, &count);
    const int found = count;
    score_candidates(p, w, found);
    while (kept < p.max_boxes) {
      const int best = best_candidate(w.candidates, found);
      if (best < 0) break;
      const Candidate chosen = w.candidates[best];
      if (thread == 0) write_box(p, map, kept, chosen);
      ++kept;
      __syncthreads();  // everybody has read it before it leaves the race
      for (int i = thread; i < found; i += threads) {
        if (i == best || overlaps(w.candidates[i], chosen, p.max_overlap))
          w.candidates[i].score = -1.0f;
      }
      __syncthreads();
    }
  }
  for (int i = kept * 4 + thread; i < p.max_boxes * 4; i += threads) {
    p.boxes[map * p.max_boxes * 4 + i] = 0.0f;
  }
  for (int i = kept + thread; i < p.max_boxes; i += threads) p.scores[map * p.max_boxes + i] = 0.0f;
  if (thread == 0) p.counts[map] = kept;
  __syncthreads();
}

__device__ inline void boxes_of_maps(const BoxParameters& p, unsigned char* memory) {
  const Workspace w = workspace_of(p, memory);
  for (long long map = blockIdx.x; map < p.maps; map += gridDim.x) boxes_of_map(p, map, w);
}

}  // namespace cxr::gpu

using cxr::gpu::BoxParameters;

CXR_KERNEL(cxr::gpu::kBoxThreads, 7) heatmap_boxes_shared(const BoxParameters p) {
  CXR_DYNAMIC_SHARED(memory);
  cxr::gpu::boxes_of_maps(p, memory);
}

CXR_KERNEL(cxr::gpu::kBoxThreads, 7) heatmap_boxes_global(const BoxParameters p) {
  unsigned char* memory = static_cast<unsigned char*>(p.workspace);
  cxr::gpu::boxes_of_maps(p, memory + static_cast<long long>(blockIdx.x) * p.workspace_bytes);
}
