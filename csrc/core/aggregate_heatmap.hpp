// The aggregated heatmap of Eq. 8 for one map: the mean over steps of each step's value, where an
// erased pixel keeps the value of the step that erased it. Sums run over t in order, in float, and are
// divided once by T: the same bits on every machine, so that thresholds on them cut alike.
#pragma once

#include "masked_gap.hpp"

namespace cxr::CXR_ISA {

// `step_stride` is the distance from one step's map to the next, 0 if all steps share one CAM.
inline void aggregate_map(const float* cam, int64_t step_stride, const uint8_t* erased_at,
                          const float* extent, int64_t area, int steps, Mode mode, float* heatmap) {
  for (int i = 0; i < 2 * steps; ++i) {
    if (extent[i] != extent[i]) {
      for (int64_t p = 0; p < area; ++p) heatmap[p] = __builtin_nanf("");
      return;
    }
  }
  const Vec<float> divisor = broadcast<float>(static_cast<float>(steps));
  auto of_vector = [&](const float* h_first, int64_t stride, const uint8_t* erased) {
    const auto life = lifetimes<float>(erased);
    Vec<float> total = {}, held = {};
    for (int t = 0; t < steps; ++t) {
      Vec<float> h = load<float>(h_first + t * stride);
      if (mode == Mode::normalized) {
        const float lo = extent[2 * t], spread = extent[2 * t + 1] - lo;
        if (spread > 0.0f) {
          h = (h - lo) / spread;
        } else {
          h = Vec<float>{};
        }
      }
      held = life >= static_cast<uint32_t>(t) ? h : held;
      total += held;
    }
    return total / divisor;
  };
  const int64_t whole = area / kFloats * kFloats;
  for (int64_t p = 0; p < whole; p += kFloats) {
    store<float>(heatmap + p, of_vector(cam + p, step_stride, erased_at + p));
  }
  if (whole == area) return;
  // The rest of the map, one step's values after the other in a padded buffer.
  const int rest = static_cast<int>(area - whole);
  const int maps = step_stride ? steps : 1;
  alignas(kVectorBytes) float padded[255 * kFloats];
  alignas(kVectorBytes) uint8_t erased[kFloats] = {};
  for (int t = 0; t < maps; ++t) {
    store<float>(padded + t * kFloats, load_partial<float>(cam + t * step_stride + whole, rest));
  }
  for (int i = 0; i < rest; ++i) erased[i] = erased_at[whole + i];
  const int64_t padded_stride = step_stride ? kFloats : 0;
  store_partial<float>(heatmap + whole, of_vector(padded, padded_stride, erased), rest);
}

inline void aggregate_heatmap(const Maps& maps, const float* cam, bool per_step,
                              const uint8_t* erased_at, const float* extent, int steps, Mode mode,
                              float* heatmap, const Scheduler& scheduler) {
  const int64_t area = maps.area();
  const int64_t step_stride = per_step ? maps.count() * area : 0;
  parallel(scheduler, maps.count(), 16384 / area + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      aggregate_map(cam + m * area, step_stride, erased_at + m * area, extent + m * steps * 2, area,
                    steps, mode, heatmap + m * area);
    }
  });
}

}  // namespace cxr::CXR_ISA
