// Bilinear resizing with antialiasing, straight from 8- or 16-bit pixels to the network's input.
//
// A triangle filter about each output pixel's centre, widened by the downscaling factor, its weights
// normalised to sum 1 (what Pillow calls BILINEAR and torch antialias=True). Rows first: an output row
// is a weighted sum of a few input rows, which vectors do at full width; columns then work on one row
// that lies in the cache. Floor: one read of the pixels.
#pragma once

#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace cxr::CXR_ISA {

// The input pixels [first, first + count) of one output pixel, and where their weights start.
struct Taps {
  int32_t first, count;
  int64_t weights;
};

struct Filter {
  Scratch<Taps> taps;
  Scratch<float> weights;
  int64_t most = 0;  // taps of one output pixel

  Filter(int64_t input, int64_t output)
      : taps(output), weights(output * (2 * static_cast<int64_t>(support(input, output)) + 3)) {
    const double scale = static_cast<double>(input) / static_cast<double>(output);
    const double reach = support(input, output);
    int64_t used = 0;
    for (int64_t i = 0; i < output; ++i) {
      const double centre = (static_cast<double>(i) + 0.5) * scale;
      const int64_t first = greatest<int64_t>(static_cast<int64_t>(centre - reach + 0.5), 0);
      const int64_t last = least<int64_t>(static_cast<int64_t>(centre + reach + 0.5), input);
      double sum = 0.0;
      for (int64_t x = first; x < last; ++x) sum += weight(x, centre, reach);
      taps[i] = {static_cast<int32_t>(first), static_cast<int32_t>(last - first), used};
      most = greatest(most, last - first);
      for (int64_t x = first; x < last; ++x) {
        weights[used++] = static_cast<float>(weight(x, centre, reach) / sum);
      }
    }
  }

 private:
  static double support(int64_t input, int64_t output) {
    const double scale = static_cast<double>(input) / static_cast<double>(output);
    return scale > 1.0 ? scale : 1.0;
  }
  static double weight(int64_t x, double centre, double reach) {
    const double distance = (static_cast<double>(x) + 0.5 - centre) / reach;
    const double w = 1.0 - (distance < 0.0 ? -distance : distance);
    return w > 0.0 ? w : 0.0;
  }
};

// kFloats pixels as floats. Compilers split the general conversion into single lanes.
template <class T>
inline Vec<float> load_pixels(const T* p) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 1) {
    return bits_of<Vec<float>>(
        _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
  } else {
    return bits_of<Vec<float>>(_mm512_cvtepi32_ps(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))));
  }
#elif defined(__AVX2__)
  if constexpr (sizeof(T) == 1) {
    return bits_of<Vec<float>>(
        _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))));
  } else {
    return bits_of<Vec<float>>(_mm256_cvtepi32_ps(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))));
  }
#else
  Vec<float> values;
  for (int i = 0; i < kFloats; ++i) values[i] = static_cast<float>(p[i]);
  return values;
#endif
}

// sum += weight * row, for `width` pixels.
template <class T>
inline void add_row(const T* row, int64_t width, float weight, float* sum) {
  const Vec<float> weights = broadcast<float>(weight);
  int64_t x = 0;
  for (; x + kFloats <= width; x += kFloats) {
    store<float>(sum + x, multiply_add<float>(weights, load_pixels(row + x), load<float>(sum + x)));
  }
  for (; x < width; ++x) sum[x] += weight * static_cast<float>(row[x]);
}

template <class T>
inline void resize_pixels(const T* pixels, int64_t height, int64_t width, float scale, float* out,
                          int64_t size) {
  Filter down(height, size), across(width, size);
  // Across, the k-th tap of every output pixel is one vector of weights and one gather; the pixels
  // beyond the row that short filters touch are zeros with weight zero.
  Scratch<float> sum(width + across.most);
  Scratch<float> by_tap(across.most * size);
  Scratch<int32_t> first(size);
  for (int64_t x = 0; x < size; ++x) {
    const Taps taps = across.taps[x];
    first[x] = taps.first;
    for (int64_t tap = 0; tap < across.most; ++tap) {
      by_tap[tap * size + x] = tap < taps.count ? across.weights[taps.weights + tap] : 0.0f;
    }
  }
  for (int64_t y = 0; y < size; ++y) {
    const Taps vertical = down.taps[y];
    for (int64_t x = 0; x < width + across.most; ++x) sum[x] = 0.0f;
    for (int32_t i = 0; i < vertical.count; ++i) {
      add_row(pixels + (vertical.first + i) * width, width, down.weights[vertical.weights + i],
              sum.data());
    }
    float* __restrict target = out + y * size;
    for (int64_t x = 0; x < size; ++x) target[x] = 0.0f;
    for (int64_t tap = 0; tap < across.most; ++tap) {
      const float* __restrict weights = by_tap.data() + tap * size;
      const float* __restrict values = sum.data() + tap;
      const int32_t* __restrict start = first.data();
      for (int64_t x = 0; x < size; ++x) target[x] += weights[x] * values[start[x]];
    }
    for (int64_t x = 0; x < size; ++x) target[x] *= scale;
  }
}

inline void resize(const void* pixels, int bytes, int64_t height, int64_t width, float scale,
                   float* out, int64_t size) {
  if (bytes == 2) {
    resize_pixels(static_cast<const uint16_t*>(pixels), height, width, scale, out, size);
  } else {
    resize_pixels(static_cast<const uint8_t*>(pixels), height, width, scale, out, size);
  }
}

}  // namespace cxr::CXR_ISA
