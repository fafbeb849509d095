// The aggregated heatmap (Eq. 8) of given maps. attention_mining makes it in heatmap_boxes instead.
//
// Floor: one read of cam, erased_at and the extents, one write of the heatmap.
#include "aggregate_heatmap.cuh"

namespace cxr::gpu {

__device__ inline void aggregate_block(const AggregateParameters& p) {
  const long long map = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
  const long long begin = chunk * kPixelsPerBlock;
  const long long end = begin + kPixelsPerBlock < p.area ? begin + kPixelsPerBlock : p.area;
  for (long long pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
    p.heatmap[map * p.area + pixel] = aggregated(p, map, pixel);
  }
}

}  // namespace cxr::gpu

CXR_KERNEL(cxr::gpu::kPixelThreads, 4) aggregate_heatmap(const cxr::gpu::AggregateParameters p) {
  cxr::gpu::aggregate_block(p);
}
