// Masked global average pooling of the CAM (Eq. 2): z_t = sum over pixels of M_{t-1} * cam / (H * W),
// and its gradient dcam = sum over t of dz_t * M_{t-1} / (H * W).
#pragma once

#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace cxr::CXR_ISA {

template <class Acc>
struct MaskOf;
template <>
struct MaskOf<float> {
  typedef uint32_t UInt;
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 4)));
};
template <>
struct MaskOf<double> {
  typedef uint64_t UInt;
  typedef uint8_t Bytes __attribute__((vector_size(kVectorBytes / 8)));
};
template <class Acc>
struct UIntsOf {
  typedef typename MaskOf<Acc>::UInt type __attribute__((vector_size(kVectorBytes)));
};

// erased_at - 1 modulo 256, one lane a pixel: at least t - 1 exactly where M_{t-1} is 1, since "never
// erased" (0) becomes 255.
template <class Acc>
inline typename UIntsOf<Acc>::type lifetimes(const uint8_t* erased_at) {
  typename MaskOf<Acc>::Bytes bytes;
  std::memcpy(&bytes, erased_at, sizeof(bytes));
  bytes -= 1;
  return __builtin_convertvector(bytes, typename UIntsOf<Acc>::type);
}

// Sums of a block of at most kGapBlock pixels, in float; blocks are added up in double, so that maps
// of millions of pixels lose nothing.
constexpr int64_t kGapBlock = 2048;

template <class Acc>
inline void masked_gap_map(const Acc* cam, const uint8_t* erased_at, int64_t area, int steps,
                           Acc* logits) {
  double total[256];
  for (int t = 0; t < steps; ++t) total[t] = 0.0;
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t from = 0; from < area; from += kGapBlock) {
    const int64_t to = least(from + kGapBlock, area);
    const int64_t whole = from + (to - from) / lanes * lanes;
    for (int t = 0; t < steps; ++t) {
      Vec<Acc> sum = {};
      for (int64_t p = from; p < whole; p += lanes) {
        const auto alive = lifetimes<Acc>(erased_at + p) >= static_cast<typename MaskOf<Acc>::UInt>(t);
        sum += alive ? load<Acc>(cam + p) : Vec<Acc>{};
      }
      Acc rest = 0;
      for (int64_t p = whole; p < to; ++p) {
        if (static_cast<uint8_t>(erased_at[p] - 1) >= t) rest += cam[p];
      }
      for (int i = 0; i < lanes; ++i) rest += sum[i];
      total[t] += rest;
    }
  }
  for (int t = 0; t < steps; ++t) {
    logits[t] = static_cast<Acc>(total[t] / static_cast<double>(area));
  }
}

template <class Acc>
inline void masked_gap_of(const Maps& maps, const void* cam, const uint8_t* erased_at, int steps,
                          void* logits, const Scheduler& scheduler) {
  const int64_t area = maps.area();
  parallel(scheduler, maps.count(), 16384 / area + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      masked_gap_map(static_cast<const Acc*>(cam) + m * area, erased_at + m * area, area, steps,
                     static_cast<Acc*>(logits) + m * steps);
    }
  });
}

inline void masked_gap(const Maps& maps, Dtype dtype, const void* cam, const uint8_t* erased_at,
                       int steps, void* logits, const Scheduler& scheduler) {
  if (dtype == Dtype::float64) {
    masked_gap_of<double>(maps, cam, erased_at, steps, logits, scheduler);
  } else {
    masked_gap_of<float>(maps, cam, erased_at, steps, logits, scheduler);
  }
}

template <class Acc>
inline void masked_gap_backward_of(const Maps& maps, const void* grad_logits, const uint8_t* erased_at,
                                   int steps, void* grad_cam, const Scheduler& scheduler) {
  const int64_t area = maps.area();
  parallel(scheduler, maps.count(), 16384 / area + 1, [&](int64_t begin, int64_t end) {
    for (int64_t m = begin; m < end; ++m) {
      const Acc* dz = static_cast<const Acc*>(grad_logits) + m * steps;
      Acc* out = static_cast<Acc*>(grad_cam) + m * area;
      const uint8_t* erased = erased_at + m * area;
      // A pixel erased at step s was alive in the means of steps 1..s, one never erased in all.
      Acc of_step[256];
      double sum = 0.0;
      for (int s = 1; s < 256; ++s) {
        if (s <= steps) sum += dz[s - 1];
        of_step[s] = static_cast<Acc>(sum / static_cast<double>(area));
      }
      of_step[0] = of_step[255];
      for (int64_t p = 0; p < area; ++p) out[p] = of_step[erased[p]];
    }
  });
}

inline void masked_gap_backward(const Maps& maps, Dtype dtype, const void* grad_logits,
                                const uint8_t* erased_at, int steps, void* grad_cam,
                                const Scheduler& scheduler) {
  if (dtype == Dtype::float64) {
    masked_gap_backward_of<double>(maps, grad_logits, erased_at, steps, grad_cam, scheduler);
  } else {
    masked_gap_backward_of<float>(maps, grad_logits, erased_at, steps, grad_cam, scheduler);
  }
}

}  // namespace cxr::CXR_ISA
