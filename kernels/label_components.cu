// Connected components of batches of masks, numbered in row-major order of their first pixels.
//
// Images up to kLabelSmallArea pixels: one block each, everything in shared memory, one launch. Larger
// ones: union-find in the output itself, then the roots, which are first pixels, are counted chunk by
// chunk, scanned, and numbered. Between the launches labels[p] is a parent (0 or more), kBackground,
// or, in a root that has its number n, -1 - n.
//
// Floor: one read of the mask, one write of the labels. The general method reads and writes the labels
// four more times; they fit into the second-level cache up to some 10 million pixels.
#include "union_find.cuh"

namespace cxr::gpu {

// Exclusive prefix sum over the words of `bits`, into `before`; by the first warp.
__device__ inline void scan_words(const unsigned* bits, int* before, int words) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  int carried = 0;
  for (int base = 0; base < words; base += 32) {
    const int own = base + lane < words ? __popc(static_cast<int>(bits[base + lane])) : 0;
    const int sum = warp_prefix_sum(own);
    if (base + lane < words) before[base + lane] = carried + sum - own;
    carried += __shfl_sync(kAllLanes, sum, 31);
  }
}

__device__ inline void label_in_shared_memory(const LabelParameters& p) {
  __shared__ int parents[kLabelSmallArea];
  __shared__ unsigned roots[kLabelSmallArea / 32];
  __shared__ int before[kLabelSmallArea / 32];
  const int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const int area = p.height * p.width, words = (area + 31) / 32;
  const unsigned char* mask = p.mask + blockIdx.x * static_cast<long long>(area);
  int* labels = p.labels + blockIdx.x * static_cast<long long>(area);
  unite_by_block(parents, area, p.width, p.connectivity, [&](int pixel) { return mask[pixel] != 0; });
  for (int base = thread - thread % 32; base < area; base += threads) {
    const int pixel = base + thread % 32;
    const unsigned word = __ballot_sync(kAllLanes, pixel < area && parents[pixel] == pixel);
    if (thread % 32 == 0) roots[base / 32] = word;
  }
  __syncthreads();
  if (thread < 32) scan_words(roots, before, words);
  __syncthreads();
  for (int pixel = thread; pixel < area; pixel += threads) {
    int label = 0;
    if (parents[pixel] != kBackground) {
      const int root = root_of(parents, pixel);
      const unsigned earlier = roots[root / 32] & ((1u << (root % 32)) - 1);
      label = before[root / 32] + __popc(static_cast<int>(earlier)) + 1;
    }
    labels[pixel] = label;
  }
}

// What a block of the general method works on.
struct Chunk {
  long long image;
  int index, begin, end, area;
  int* labels;  // of the image
};

__device__ inline Chunk chunk_of(const LabelParameters& p) {
  Chunk c;
  c.image = blockIdx.x / static_cast<unsigned>(p.chunks);
  c.index = static_cast<int>(blockIdx.x % static_cast<unsigned>(p.chunks));
  c.area = p.height * p.width;
  c.begin = c.index * kPixelsPerBlock;
  c.end = c.area - c.begin > kPixelsPerBlock ? c.begin + kPixelsPerBlock : c.area;
  c.labels = p.labels + c.image * c.area;
  return c;
}

}  // namespace cxr::gpu

using cxr::gpu::LabelParameters;

CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_small(const LabelParameters p) {
  cxr::gpu::label_in_shared_memory(p);
}

CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_runs(const LabelParameters p) {
  using namespace cxr::gpu;
  const Chunk c = chunk_of(p);
  const unsigned char* mask = p.mask + c.image * c.area;
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int base = c.begin + static_cast<int>(threadIdx.x) - lane; base < c.end;
       base += static_cast<int>(blockDim.x)) {
    const int pixel = base + lane;
    const int begin = run_begin(pixel, pixel % p.width, pixel < c.end && mask[pixel] != 0);
    if (pixel < c.end) c.labels[pixel] = begin;
  }
}

CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_unite(const LabelParameters p) {
  using namespace cxr::gpu;
  const Chunk c = chunk_of(p);
  for (int pixel = c.begin + static_cast<int>(threadIdx.x); pixel < c.end;
       pixel += static_cast<int>(blockDim.x)) {
    if (c.labels[pixel] != kBackground) {
      unite_with_earlier(c.labels, pixel, pixel % p.width, p.width, p.connectivity);
    }
  }
}

// Every pixel gets its root as parent; the roots of the chunk are counted.
CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_count(const LabelParameters p) {
  using namespace cxr::gpu;
  __shared__ int partial[32];
  const Chunk c = chunk_of(p);
  int roots = 0;
  for (int pixel = c.begin + static_cast<int>(threadIdx.x); pixel < c.end;
       pixel += static_cast<int>(blockDim.x)) {
    if (c.labels[pixel] == kBackground) continue;
    const int root = root_of(c.labels, pixel);
    c.labels[pixel] = root;
    roots += root == pixel;
  }
  const int all = block_combine(warp_sum(roots), partial, [](int a, int b) { return a + b; });
  if (threadIdx.x == 0) p.counts[blockIdx.x] = all;
}

// One block an image: counts become the numbers of roots in the chunks before.
CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_offsets(const LabelParameters p) {
  using namespace cxr::gpu;
  __shared__ int of_warp[32];
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  int* counts = p.counts + blockIdx.x * static_cast<long long>(p.chunks);
  int carried = 0;
  for (int base = 0; base < p.chunks; base += static_cast<int>(blockDim.x)) {
    const int own = base + thread < p.chunks ? counts[base + thread] : 0;
    const int sum = warp_prefix_sum(own);
    __syncthreads();
    if (lane == 31) of_warp[thread / 32] = sum;
    __syncthreads();
    int all = 0, earlier = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) / 32; ++w) {
      if (w < thread / 32) earlier += of_warp[w];
      all += of_warp[w];
    }
    if (base + thread < p.chunks) counts[base + thread] = carried + earlier + sum - own;
    carried += all;
  }
}

// Roots get their number.
CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_number(const LabelParameters p) {
  using namespace cxr::gpu;
  __shared__ unsigned roots[kPixelsPerBlock / 32];
  __shared__ int before[kPixelsPerBlock / 32];
  const Chunk c = chunk_of(p);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int base = c.begin + static_cast<int>(threadIdx.x) - lane; base < c.end;
       base += static_cast<int>(blockDim.x)) {
    const int pixel = base + lane;
    const unsigned word = __ballot_sync(kAllLanes, pixel < c.end && c.labels[pixel] == pixel);
    if (lane == 0) roots[(base - c.begin) / 32] = word;
  }
  __syncthreads();
  if (threadIdx.x < 32) scan_words(roots, before, (c.end - c.begin + 31) / 32);
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < c.end - c.begin; i += static_cast<int>(blockDim.x)) {
    const unsigned word = roots[i / 32];
    if (word >> (i % 32) & 1) {
      const int earlier = __popc(static_cast<int>(word & ((1u << (i % 32)) - 1)));
      c.labels[c.begin + i] = -2 - (p.counts[blockIdx.x] + before[i / 32] + earlier);
    }
  }
}

// Parents become labels. A root may already be one when another pixel asks it.
CXR_KERNEL(cxr::gpu::kLabelThreads, 4) label_write(const LabelParameters p) {
  using namespace cxr::gpu;
  const Chunk c = chunk_of(p);
  const volatile int* labels = c.labels;
  for (int pixel = c.begin + static_cast<int>(threadIdx.x); pixel < c.end;
       pixel += static_cast<int>(blockDim.x)) {
    int label = labels[pixel];
    if (label >= 0) label = labels[label];
    c.labels[pixel] = label < 0 ? -1 - label : label;
  }
}
