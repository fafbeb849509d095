// The aggregated heatmap (Eq. 8) of one pixel: the mean over steps of each step's value, where an
// erased pixel keeps the value of the step that took it.
#pragma once

#include "device.cuh"

namespace cxr::gpu {

__device__ inline float aggregated(const AggregateParameters& p, long long map, long long pixel) {
  const float* extent = p.extent + map * p.steps * 2;
  const float* cam = p.cam + map * p.area + pixel;
  // "Never" (0) becomes 255: alive at every step.
  const int life = static_cast<unsigned char>(__ldg(p.erased_at + map * p.area + pixel) - 1);
  float total = 0.0f, held = 0.0f, h = __ldg(cam);
  bool finite = true;
  for (int t = 0; t < p.steps; ++t) {
    const float lo = __ldg(extent + 2 * t), hi = __ldg(extent + 2 * t + 1);
    finite = finite && lo == lo && hi == hi;
    if (p.step_stride && t > 0) h = __ldg(cam + t * p.step_stride);
    float v = h;
    if (p.normalized) {
      const float spread = __fsub_rn(hi, lo);
      v = spread > 0.0f ? normalized(h, lo, spread) : 0.0f;
    }
    if (life >= t) held = v;
    total = __fadd_rn(total, held);
  }
  return finite ? __fdiv_rn(total, static_cast<float>(p.steps)) : not_a_number();
}

}  // namespace cxr::gpu
