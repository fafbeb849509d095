// Attention mining of one map: T times, erase the connected component that holds the peak.
//
// The map is copied once into a padded scratch where erased pixels become NaN. After that a step is
// three sweeps of vector instructions (extent, cut, peak) and a flood fill on bitmaps (rowbits.hpp).
// The reference (cxr_fast/reference.py) states every rounding; nothing here may contract or reorder it.
#pragma once

#include "rowbits.hpp"

namespace cxr::CXR_ISA {

// Maps that one thread takes at least.
inline int64_t maps_per_thread(const Maps& maps) { return 4096 / maps.area() + 1; }

struct MiningScratch {
  PaddedMap map;
  Bitmap bitmap;
  MiningScratch(int64_t height, int64_t width) : map(height, width), bitmap(height, width) {}
};

// Copies a map into the scratch. False if a value or hi - lo is not finite.
inline bool load_map(const float* source, PaddedMap& map, float& lo, float& hi) {
  const Vec<float> nan = broadcast<float>(__builtin_nanf(""));
  Vec<float> least_lanes = broadcast<float>(__builtin_inff());
  Vec<float> greatest_lanes = broadcast<float>(-__builtin_inff());
  Vec<float> tested = {};  // v * 0 is 0, or NaN for NaN and infinity
  const int64_t whole = map.width / kFloats * kFloats;
  const int rest = static_cast<int>(map.width - whole);
  for (int64_t y = 0; y < map.height; ++y) {
    const float* from = source + y * map.width;
    float* to = map.row(y);
    for (int64_t x = 0; x < whole; x += kFloats) {
      const Vec<float> v = load<float>(from + x);
      store<float>(to + x, v);
      least_lanes = min_number(v, least_lanes);
      greatest_lanes = max_number(v, greatest_lanes);
      tested += v * 0.0f;
    }
    if (rest) {
      store<float>(to + whole, nan);
      for (int i = 0; i < rest; ++i) to[whole + i] = from[whole + i];
      const Vec<float> v = load<float>(to + whole);
      least_lanes = min_number(v, least_lanes);
      greatest_lanes = max_number(v, greatest_lanes);
      tested += load_partial<float>(from + whole, rest) * 0.0f;
    }
  }
  lo = min_lane(least_lanes);
  hi = max_lane(greatest_lanes);
  float sum = 0.0f;
  for (int i = 0; i < kFloats; ++i) sum += tested[i];
  return sum == 0.0f && (hi - lo) * 0.0f == 0.0f;
}

// One map. `before` (erased by earlier steps) may be null or the same memory as `erased_at`.
inline void mine_map(const float* cam, const uint8_t* before, const MiningOptions& options,
                     uint8_t* erased_at, float* extent, MiningScratch& scratch) {
  PaddedMap& map = scratch.map;
  const int64_t area = map.height * map.width;
  if (!before) {
    std::memset(erased_at, 0, static_cast<size_t>(area));
  } else if (before != erased_at) {
    std::memcpy(erased_at, before, static_cast<size_t>(area));
  }
  float lo, hi;
  if (!load_map(cam, map, lo, hi)) {
    for (int i = 0; i < 2 * options.steps; ++i) extent[i] = __builtin_nanf("");
    return;
  }
  if (before) {
    for (int64_t y = 0; y < map.height; ++y) {
      float* row = map.row(y);
      const uint8_t* erased = erased_at + y * map.width;
      for (int64_t x = 0; x < map.width; ++x) {
        if (erased[x]) row[x] = __builtin_nanf("");
      }
    }
  }
  for (int step = 0; step < options.steps; ++step) {
    if (step > 0 || before) map.extent(lo, hi);
    if (lo > hi) lo = hi = 0.0f;  // no pixel alive
    extent[2 * step] = lo;
    extent[2 * step + 1] = hi;
    if (lo == hi) {  // nothing to erase, now or later
      for (int later = step + 1; later < options.steps; ++later) {
        extent[2 * later] = lo;
        extent[2 * later + 1] = hi;
      }
      return;
    }
    const float spread = hi - lo;
    const float scaled = options.threshold * spread;
    map.cut(lo + scaled, scratch.bitmap);
    const int64_t peak = map.first_equal(hi);
    const uint8_t t = static_cast<uint8_t>(options.first_step + step);
    scratch.bitmap.take_component(peak / map.stride, peak % map.stride, options.connectivity,
                                  [&](int64_t y, int64_t begin, int64_t end) {
                                    fill_run(map.row(y), begin, end, __builtin_nanf(""));
                                    fill_run(erased_at + y * map.width, begin, end, t);
                                  });
  }
}

inline void mine_attention(const Maps& maps, const float* cam, const uint8_t* before,
                           const MiningOptions& options, uint8_t* erased_at, float* extent,
                           const Scheduler& scheduler) {
  parallel(scheduler, maps.count(), maps_per_thread(maps), [&](int64_t begin, int64_t end) {
    MiningScratch scratch(maps.height, maps.width);
    for (int64_t m = begin; m < end; ++m) {
      const int64_t at = m * maps.area();
      mine_map(cam + at, before ? before + at : nullptr, options, erased_at + at,
               extent + m * options.steps * 2, scratch);
    }
  });
}

}  // namespace cxr::CXR_ISA
