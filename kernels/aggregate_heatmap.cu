// The aggregated heatmap (Eq. 8): the mean over steps of each step's map, where an erased pixel keeps
// the value of the step that took it.
//
// Floor: one read of cam, erased_at and the extents, one write of the heatmap.
#include "device.cuh"

namespace cxr::gpu {

__device__ inline void aggregate_block(const AggregateParameters& p) {
  const long long map = blockIdx.x / p.chunks, chunk = blockIdx.x % p.chunks;
  const float* extent = p.extent + map * p.steps * 2;
  const long long begin = chunk * kPixelsPerBlock;
  const long long end = begin + kPixelsPerBlock < p.area ? begin + kPixelsPerBlock : p.area;
  const float* cam = p.cam + map * p.area;
  const unsigned char* erased_at = p.erased_at + map * p.area;
  const float steps = static_cast<float>(p.steps);
  for (long long pixel = begin + threadIdx.x; pixel < end; pixel += blockDim.x) {
    // "Never" (0) becomes 255: alive at every step.
    const int life = static_cast<unsigned char>(erased_at[pixel] - 1);
    float total = 0.0f, held = 0.0f, h = cam[pixel];
    bool finite = true;
    for (int t = 0; t < p.steps; ++t) {
      const float lo = __ldg(extent + 2 * t), hi = __ldg(extent + 2 * t + 1);
      finite = finite && lo == lo && hi == hi;
      if (p.step_stride && t > 0) h = cam[pixel + t * p.step_stride];
      float v = h;
      if (p.normalized) {
        const float spread = __fsub_rn(hi, lo);
        v = spread > 0.0f ? normalized(h, lo, spread) : 0.0f;
      }
      if (life >= t) held = v;
      total = __fadd_rn(total, held);
    }
    p.heatmap[map * p.area + pixel] = finite ? __fdiv_rn(total, steps) : not_a_number();
  }
}

}  // namespace cxr::gpu

CXR_KERNEL(cxr::gpu::kPixelThreads, 4) aggregate_heatmap(const cxr::gpu::AggregateParameters p) {
  cxr::gpu::aggregate_block(p);
}
