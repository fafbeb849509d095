// Boxes from one heatmap: normalise, upsample, cut at each threshold, a tight box around each component
// (or around the one with the peak), the mean heatmap as its score, greedy non-maximum suppression.
#pragma once

#include <algorithm>

#include "aggregate_heatmap.hpp"
#include "mine_attention.hpp"

namespace cxr::CXR_ISA {

struct Candidate {
  float score;
  int32_t x1, y1, x2, y2;
  int64_t area() const { return static_cast<int64_t>(x2 - x1) * (y2 - y1); }
};

// Worse in rank: (score, area) descending, then (y1, x1, y2, x2) ascending.
struct RanksBelow {
  bool operator()(const Candidate& a, const Candidate& b) const {
    if (a.score != b.score) return a.score < b.score;
    if (a.area() != b.area()) return a.area() < b.area();
    if (a.y1 != b.y1) return a.y1 > b.y1;
    if (a.x1 != b.x1) return a.x1 > b.x1;
    if (a.y2 != b.y2) return a.y2 > b.y2;
    return a.x2 > b.x2;
  }
};

inline bool overlaps(const Candidate& a, const Candidate& b, double max_overlap) {
  const int64_t width = least(a.x2, b.x2) - greatest(a.x1, b.x1);
  const int64_t height = least(a.y2, b.y2) - greatest(a.y1, b.y1);
  const int64_t shared = width > 0 && height > 0 ? width * height : 0;
  const int64_t joint = a.area() + b.area() - shared;
  return static_cast<double>(shared) > max_overlap * static_cast<double>(joint);
}

struct BoxScratch {
  PaddedMap map;  // normalised, and upsampled where asked for
  // On the way there when upsampling: as it came, normalised, wide in x. Empty otherwise.
  PaddedMap whole;
  Scratch<float> narrow;
  PaddedMap source;
  Bitmap bitmap;
  Scratch<Candidate> candidates;
  BoxScratch(const Maps& maps, int upsample)
      : map(maps.height * upsample, maps.width * upsample),
        whole(upsample > 1 ? maps.height : 1, upsample > 1 ? maps.width : 1),
        narrow(upsample > 1 ? maps.area() : 1),
        source(upsample > 1 ? maps.height : 1, upsample > 1 ? maps.width * upsample : 1),
        bitmap(maps.height * upsample, maps.width * upsample),
        candidates(64) {}
};

// Where output pixel i of an upsampled axis takes its value: a + weight * (b - a).
struct Blend {
  int64_t a, b;
  float weight;
};
inline Blend blend_at(int64_t i, int factor, int64_t size) {
  double centre = (static_cast<double>(i) + 0.5) / factor - 0.5;
  centre = centre < 0.0                             ? 0.0
           : centre > static_cast<double>(size - 1) ? static_cast<double>(size - 1)
                                                    : centre;
  const int64_t a = static_cast<int64_t>(centre);
  return {a, least(a + 1, size - 1), static_cast<float>(centre - static_cast<double>(a))};
}

inline void upsample_map(const float* narrow, int64_t height, int64_t width, int factor,
                         BoxScratch& scratch) {
  for (int64_t x = 0; x < width * factor; ++x) {
    const Blend blend = blend_at(x, factor, width);
    for (int64_t y = 0; y < height; ++y) {
      const float a = narrow[y * width + blend.a], b = narrow[y * width + blend.b];
      scratch.source.row(y)[x] = a + blend.weight * (b - a);
    }
  }
  for (int64_t y = 0; y < height * factor; ++y) {
    const Blend blend = blend_at(y, factor, height);
    const float* a = scratch.source.row(blend.a);
    const float* b = scratch.source.row(blend.b);
    float* out = scratch.map.row(y);
    for (int64_t x = 0; x < width * factor; ++x) out[x] = a[x] + blend.weight * (b[x] - a[x]);
  }
}

// Mean over a box, in double.
inline float mean_of_box(PaddedMap& map, const Candidate& box) {
  constexpr int lanes = kLanes<double>;
  typedef float Floats __attribute__((vector_size(kVectorBytes / 2)));
  Vec<double> sums = {};
  double rest = 0.0;
  for (int64_t y = box.y1; y < box.y2; ++y) {
    const float* row = map.row(y);
    int64_t x = box.x1;
    for (; x + lanes <= box.x2; x += lanes) {
      Floats v;
      std::memcpy(&v, row + x, sizeof(v));
      sums += __builtin_convertvector(v, Vec<double>);
    }
    for (; x < box.x2; ++x) rest += row[x];
  }
  for (int i = 0; i < lanes; ++i) rest += sums[i];
  return static_cast<float>(rest / static_cast<double>(box.area()));
}

// The tight box around the component at (y, x), with its score; the component leaves the bitmap.
inline Candidate box_of_component(BoxScratch& scratch, int64_t y, int64_t x, int connectivity) {
  int64_t x1 = x, x2 = x + 1, y1 = y, y2 = y + 1;
  scratch.bitmap.take_component(y, x, connectivity, [&](int64_t row, int64_t begin, int64_t end) {
    x1 = least(x1, begin);
    x2 = greatest(x2, end);
    y1 = least(y1, row);
    y2 = greatest(y2, row + 1);
  });
  Candidate box{0.0f, static_cast<int32_t>(x1), static_cast<int32_t>(y1), static_cast<int32_t>(x2),
                static_cast<int32_t>(y2)};
  box.score = mean_of_box(scratch.map, box);
  return box;
}

// The candidates of all thresholds; returns their number.
inline int64_t collect_candidates(const BoxOptions& options, BoxScratch& scratch) {
  int64_t count = 0;
  auto add = [&](const Candidate& box) {
    if (count == scratch.candidates.capacity()) scratch.candidates.grow(count + 1, count);
    scratch.candidates[count++] = box;
  };
  float lo, hi;
  scratch.map.extent(lo, hi);
  const int64_t peak = scratch.map.first_equal(hi);
  const int64_t peak_y = peak / scratch.map.stride, peak_x = peak % scratch.map.stride;
  for (int i = 0; i < options.threshold_count; ++i) {
    if (hi < options.thresholds[i]) continue;
    scratch.map.cut(options.thresholds[i], scratch.bitmap);
    if (options.select == Select::peak) {
      add(box_of_component(scratch, peak_y, peak_x, options.connectivity));
      continue;
    }
    for (int64_t y = 0; y < scratch.bitmap.height; ++y) {
      const uint64_t* row = scratch.bitmap.row(y);
      for (int64_t w = 0; w < scratch.bitmap.words; ++w) {
        while (row[w]) {
          add(box_of_component(scratch, y, w * 64 + first_bit(row[w]), options.connectivity));
        }
      }
    }
  }
  return count;
}

// boxes [K, 4], scores [K] and one count of one map; `image` is its height and width.
inline void boxes_of_map(const float* heatmap, const BoxOptions& options, const double* image,
                         int64_t height, int64_t width, BoxScratch& scratch, float* boxes,
                         float* scores, int32_t* count) {
  const int capacity = options.max_boxes;
  for (int i = 0; i < 4 * capacity; ++i) boxes[i] = 0.0f;
  for (int i = 0; i < capacity; ++i) scores[i] = 0.0f;
  *count = 0;
  float lo, hi;
  PaddedMap& map = scratch.map;
  const int factor = options.upsample;
  // Without upsampling the map is loaded where it is used; with it, `source` and `map` follow.
  if (factor > 1) {
    if (!load_map(heatmap, scratch.whole, lo, hi) || lo == hi) return;
    for (int64_t p = 0; p < height * width; ++p) scratch.narrow[p] = (heatmap[p] - lo) / (hi - lo);
    // Padding stays NaN: only pixels are written below.
    for (int64_t i = 0; i < map.height * map.stride; ++i) map.values[i] = __builtin_nanf("");
    upsample_map(scratch.narrow.data(), height, width, factor, scratch);
  } else {
    if (!load_map(heatmap, map, lo, hi) || lo == hi) return;
    if (lo != 0.0f || hi != 1.0f) {
      const float spread = hi - lo;
      for (int64_t i = 0; i < map.height * map.stride; i += kFloats) {
        float* p = map.values.data() + i;
        store<float>(p, (load<float>(p) - lo) / spread);
      }
    }
  }
  int64_t left = collect_candidates(options, scratch);
  Candidate* heap = scratch.candidates.data();
  std::make_heap(heap, heap + left, RanksBelow{});
  Candidate kept[256];
  int found = 0;
  while (left > 0 && found < capacity) {
    std::pop_heap(heap, heap + left, RanksBelow{});
    const Candidate best = heap[--left];
    bool keep = true;
    for (int i = 0; i < found && keep; ++i) keep = !overlaps(best, kept[i], options.max_overlap);
    if (!keep) continue;
    const double rows = static_cast<double>(map.height), columns = static_cast<double>(map.width);
    boxes[4 * found] = static_cast<float>(best.x1 * image[1] / columns);
    boxes[4 * found + 1] = static_cast<float>(best.y1 * image[0] / rows);
    boxes[4 * found + 2] = static_cast<float>(best.x2 * image[1] / columns);
    boxes[4 * found + 3] = static_cast<float>(best.y2 * image[0] / rows);
    scores[found] = best.score;
    kept[found++] = best;
  }
  *count = found;
}

inline const double* image_size_of(const BoxOptions& options, const Maps& maps, int64_t map) {
  return options.image_sizes + (options.sizes_per_image ? map / maps.classes * 2 : 0);
}

inline void heatmap_boxes(const Maps& maps, const float* heatmap, const BoxOptions& options,
                          float* boxes, float* scores, int32_t* counts, const Scheduler& scheduler) {
  parallel(scheduler, maps.count(), maps_per_thread(maps), [&](int64_t begin, int64_t end) {
    BoxScratch scratch(maps, options.upsample);
    for (int64_t m = begin; m < end; ++m) {
      boxes_of_map(heatmap + m * maps.area(), options, image_size_of(options, maps, m), maps.height,
                   maps.width, scratch, boxes + m * options.max_boxes * 4,
                   scores + m * options.max_boxes, counts + m);
    }
  });
}

// Everything after the CAM for each map in turn, so that a map is read from memory once.
inline void mine_cam(const Maps& maps, const float* cam, const float* bias, const MiningOptions& mining,
                     Mode mode, const BoxOptions& boxes, const MiningOutputs& out,
                     const Scheduler& scheduler) {
  parallel(scheduler, maps.count(), maps_per_thread(maps), [&](int64_t begin, int64_t end) {
    MiningScratch mining_scratch(maps.height, maps.width);
    BoxScratch box_scratch(maps, boxes.upsample);
    for (int64_t m = begin; m < end; ++m) {
      const int64_t at = m * maps.area(), steps = mining.steps, capacity = boxes.max_boxes;
      const float* h = cam + at;
      uint8_t* erased_at = out.erased_at + at;
      float* extent = out.extent + m * steps * 2;
      float* logits = out.logits + m * steps;
      mine_map(h, nullptr, mining, erased_at, extent, mining_scratch);
      masked_gap_map(h, erased_at, maps.area(), mining.steps, logits);
      if (bias) {
        for (int t = 0; t < mining.steps; ++t) logits[t] += bias[m % maps.classes];
      }
      aggregate_map(h, 0, erased_at, extent, maps.area(), mining.steps, mode, out.heatmap + at);
      boxes_of_map(out.heatmap + at, boxes, image_size_of(boxes, maps, m), maps.height, maps.width,
                   box_scratch, out.boxes + m * capacity * 4, out.scores + m * capacity,
                   out.counts + m);
    }
  });
}

}  // namespace cxr::CXR_ISA
