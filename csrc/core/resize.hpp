// Bilinear resizing with antialiasing, straight from 8- or 16-bit pixels to the network's input.
//
// A triangle filter about each output pixel's centre, widened by the downscaling factor, its weights
// normalised to sum 1 (what Pillow calls BILINEAR and torch antialias=True). Rows first: an output row
// is a weighted sum of a few input rows, which vectors do at full width. Sixteen such rows are then
// turned, so that columns are weighted sums of vectors, too, and turned back: gathering the pixels of a
// row instead took twice as long as all else. Floor: one read of the pixels.
#pragma once

#include <cstring>

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

// sum = the rows from `first` on, each times its weight.
template <class T>
inline void weigh_rows(const T* first, int64_t width, const float* weights, int32_t count, float* sum) {
  int64_t x = 0;
  for (; x + kFloats <= width; x += kFloats) {
    Vec<float> total = {};
    for (int32_t i = 0; i < count; ++i) {
      total =
          multiply_add<float>(broadcast<float>(weights[i]), load_pixels(first + i * width + x), total);
    }
    store<float>(sum + x, total);
  }
  for (; x < width; ++x) {
    sum[x] = 0.0f;
    for (int32_t i = 0; i < count; ++i) sum[x] += weights[i] * static_cast<float>(first[i * width + x]);
  }
}

// to[c, r] = from[r, c], rows of both so many floats apart.
inline void turn(const float* from, int64_t from_apart, int64_t rows, int64_t columns, float* to,
                 int64_t to_apart) {
  for (int64_t c = 0; c < columns; c += 4) {
    for (int64_t r = 0; r < rows; r += 4) {
      const float* source = from + r * from_apart + c;
      float* target = to + c * to_apart + r;
#if defined(__x86_64__)
      if (r + 4 <= rows && c + 4 <= columns) {
        __m128 a = _mm_loadu_ps(source), b = _mm_loadu_ps(source + from_apart);
        __m128 d = _mm_loadu_ps(source + 2 * from_apart), e = _mm_loadu_ps(source + 3 * from_apart);
        _MM_TRANSPOSE4_PS(a, b, d, e);
        _mm_storeu_ps(target, a);
        _mm_storeu_ps(target + to_apart, b);
        _mm_storeu_ps(target + 2 * to_apart, d);
        _mm_storeu_ps(target + 3 * to_apart, e);
        continue;
      }
#endif
      for (int64_t i = 0; i < least<int64_t>(4, rows - r); ++i) {
        for (int64_t j = 0; j < least<int64_t>(4, columns - c); ++j) {
          target[j * to_apart + i] = source[i * from_apart + j];
        }
      }
    }
  }
}

constexpr int64_t kStrip = 16;  // output rows that are turned together

template <class T>
inline void resize_pixels(const T* pixels, int64_t height, int64_t width, float scale, float* out,
                          int64_t size) {
  constexpr int kVectors = kStrip / kFloats;
  Filter down(height, size), across(width, size);
  Scratch<float> sums(kStrip * width);    // [kStrip, width]
  Scratch<float> turned(width * kStrip);  // [width, kStrip]
  Scratch<float> strip(size * kStrip);    // [size, kStrip]
  std::memset(turned.data(), 0, static_cast<size_t>(width * kStrip) * sizeof(float));
  for (int64_t y = 0; y < size; y += kStrip) {
    const int64_t rows = least<int64_t>(kStrip, size - y);
    for (int64_t k = 0; k < rows; ++k) {
      const Taps taps = down.taps[y + k];
      weigh_rows(pixels + taps.first * width, width, down.weights.data() + taps.weights, taps.count,
                 sums.data() + k * width);
    }
    turn(sums.data(), width, rows, width, turned.data(), kStrip);
    for (int64_t x = 0; x < size; ++x) {
      const Taps taps = across.taps[x];
      const float* weights = across.weights.data() + taps.weights;
      const float* column = turned.data() + taps.first * kStrip;
      Vec<float> total[kVectors] = {};
      for (int32_t i = 0; i < taps.count; ++i) {
        const Vec<float> weight = broadcast<float>(weights[i]);
        for (int v = 0; v < kVectors; ++v) {
          total[v] += weight * load<float>(column + i * kStrip + v * kFloats);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        store<float>(strip.data() + x * kStrip + v * kFloats, total[v] * broadcast<float>(scale));
      }
    }
    turn(strip.data(), kStrip, size, rows, out + y * size, size);
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
