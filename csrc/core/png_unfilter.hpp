// The filters of PNG undone, 16 or 32 rows at once (PNG specification, section 9).
//
// A filtered byte is a difference to a prediction from its left, upper and upper left neighbours, so
// one row is one chain of dependent steps: ten cycles a byte for Paeth, whatever a processor could do
// beside it. Rows depend on each other by the same neighbours alone. Sixteen of them, a band, go along
// together as the lanes of a vector, each one pixel behind the row above it; the neighbours are then
// vectors that were there a pixel ago:
//
//     left         what the lanes gave a pixel ago
//     above        the same, moved down by one lane; the row above the band comes from memory
//     above left   what was above a pixel ago
//
// All filters are computed and each lane's is selected: there is nothing to branch on. Blocks of 16x16
// bytes are transposed on their way in and out. Where registers have 32 bytes, their upper half is the
// band below, some blocks behind.
#pragma once

#include <cstring>

#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace cxr::CXR_ISA {

constexpr int kBand = 16;  // rows that go along together
#if defined(__AVX2__)
constexpr int kBands = 2;  // in a vector; not 4 with AVX-512, whose comparisons take a detour
#else
constexpr int kBands = 1;
#endif

typedef uint8_t Bytes __attribute__((vector_size(kBand * kBands)));

// For each band of a vector
//   load_bands, store_bands   16 bytes at p, and at p + apart for the lower band
//   subtract_to_zero          a - b, but at least 0
//   add_to_most               a + b, but at most 255
//   average                   (a + b) / 2, rounded down
//   low_pairs, high_pairs     a and b interleaved, their first or last halves
//   moved_down                v moved down by a lane; the last lane of `first` comes in at the top
#if defined(__AVX2__)
inline __m256i raw(Bytes v) { return bits_of<__m256i>(v); }

inline Bytes load_bands(const uint8_t* p, int64_t apart) {
  return bits_of<Bytes>(_mm256_inserti128_si256(
      _mm256_castsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(p + apart)), 1));
}
inline void store_bands(uint8_t* p, int64_t apart, Bytes v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(raw(v)));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + apart), _mm256_extracti128_si256(raw(v), 1));
}
inline Bytes subtract_to_zero(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm256_subs_epu8(raw(a), raw(b)));
}
inline Bytes add_to_most(Bytes a, Bytes b) { return bits_of<Bytes>(_mm256_adds_epu8(raw(a), raw(b))); }
inline Bytes average(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm256_avg_epu8(raw(a), raw(b))) - ((a ^ b) & 1);
}
inline Bytes low_pairs(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm256_unpacklo_epi8(raw(a), raw(b)));
}
inline Bytes high_pairs(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm256_unpackhi_epi8(raw(a), raw(b)));
}
inline Bytes moved_down(Bytes v, Bytes first) {
  return bits_of<Bytes>(_mm256_alignr_epi8(raw(v), raw(first), kBand - 1));
}
#else
inline Bytes load_bands(const uint8_t* p, int64_t) {
  Bytes v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline void store_bands(uint8_t* p, int64_t, Bytes v) { std::memcpy(p, &v, sizeof(v)); }
#if defined(__x86_64__)
inline __m128i raw(Bytes v) { return bits_of<__m128i>(v); }

inline Bytes subtract_to_zero(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm_subs_epu8(raw(a), raw(b)));
}
inline Bytes add_to_most(Bytes a, Bytes b) { return bits_of<Bytes>(_mm_adds_epu8(raw(a), raw(b))); }
inline Bytes average(Bytes a, Bytes b) {
  return bits_of<Bytes>(_mm_avg_epu8(raw(a), raw(b))) - ((a ^ b) & 1);
}
inline Bytes low_pairs(Bytes a, Bytes b) { return bits_of<Bytes>(_mm_unpacklo_epi8(raw(a), raw(b))); }
inline Bytes high_pairs(Bytes a, Bytes b) { return bits_of<Bytes>(_mm_unpackhi_epi8(raw(a), raw(b))); }
inline Bytes moved_down(Bytes v, Bytes first) {
  return bits_of<Bytes>(_mm_or_si128(_mm_slli_si128(raw(v), 1), _mm_srli_si128(raw(first), kBand - 1)));
}
#elif defined(__aarch64__)
inline uint8x16_t raw(Bytes v) { return bits_of<uint8x16_t>(v); }

inline Bytes subtract_to_zero(Bytes a, Bytes b) { return bits_of<Bytes>(vqsubq_u8(raw(a), raw(b))); }
inline Bytes add_to_most(Bytes a, Bytes b) { return bits_of<Bytes>(vqaddq_u8(raw(a), raw(b))); }
inline Bytes average(Bytes a, Bytes b) { return bits_of<Bytes>(vhaddq_u8(raw(a), raw(b))); }
inline Bytes low_pairs(Bytes a, Bytes b) { return bits_of<Bytes>(vzip1q_u8(raw(a), raw(b))); }
inline Bytes high_pairs(Bytes a, Bytes b) { return bits_of<Bytes>(vzip2q_u8(raw(a), raw(b))); }
inline Bytes moved_down(Bytes v, Bytes first) {
  return bits_of<Bytes>(vextq_u8(raw(first), raw(v), kBand - 1));
}
#else
inline Bytes subtract_to_zero(Bytes a, Bytes b) { return (a - b) & Bytes(a > b); }
inline Bytes add_to_most(Bytes a, Bytes b) { return (a + b) | Bytes(a + b < a); }
inline Bytes average(Bytes a, Bytes b) { return (a & b) + ((a ^ b) >> 1); }
inline Bytes pairs(Bytes a, Bytes b, int start) {
  Bytes v;
  for (int i = 0; i < kBand; ++i) v[i] = i % 2 ? b[start + i / 2] : a[start + i / 2];
  return v;
}
inline Bytes low_pairs(Bytes a, Bytes b) { return pairs(a, b, 0); }
inline Bytes high_pairs(Bytes a, Bytes b) { return pairs(a, b, kBand / 2); }
inline Bytes moved_down(Bytes v, Bytes first) {
  Bytes moved;
  for (int i = 0; i < kBand; ++i) moved[i] = i ? v[i - 1] : first[kBand - 1];
  return moved;
}
#endif
#endif

// Byte j of vector i becomes byte i of vector j: the two halves interleaved, four times over.
inline void transpose(Bytes (&v)[kBand]) {
  for (int stage = 0; stage < 4; ++stage) {
    Bytes next[kBand];
    for (int i = 0; i < kBand / 2; ++i) {
      next[2 * i] = low_pairs(v[i], v[i + kBand / 2]);
      next[2 * i + 1] = high_pairs(v[i], v[i + kBand / 2]);
    }
    for (int i = 0; i < kBand; ++i) v[i] = next[i];
  }
}

// All bits of a lane are set in the filter that its row has; in none of them for filter 0.
struct Filters {
  Bytes left, above, average, paeth;
};

// The neighbour closest to left + above - above_left; ties go to left, then to above.
inline Bytes paeth(Bytes left, Bytes above, Bytes above_left) {
  // The distances to left and to above, each split by its sign: the third is that of their sum.
  const Bytes up = subtract_to_zero(above, above_left), down = subtract_to_zero(above_left, above);
  const Bytes right = subtract_to_zero(left, above_left), back = subtract_to_zero(above_left, left);
  const Bytes to_left = up | down, to_above = right | back;
  // Where the sum overflows both have one sign, and the third distance is at least as large as each.
  const Bytes plus = add_to_most(up, right), minus = add_to_most(down, back);
  const Bytes to_above_left = subtract_to_zero(plus, minus) | subtract_to_zero(minus, plus);
  const Bytes above_is_closer = Bytes(subtract_to_zero(to_above, to_above_left) == 0);
  const Bytes left_is_closest =
      Bytes((subtract_to_zero(to_left, to_above) | subtract_to_zero(to_left, to_above_left)) == 0);
  const Bytes other = (above & above_is_closer) | (above_left & ~above_is_closer);
  return (left & left_is_closest) | (other & ~left_is_closest);
}

// How many bytes a band is behind the one above, whose last row, lagging itself, it reads a block late.
template <int kPixel>
constexpr int64_t kLag = kBand * (1 + kPixel);
// How far rows are overrun at both ends.
template <int kPixel>
constexpr int64_t kOverrun = (kBand - 1) * kPixel + (kBands - 1) * kLag<kPixel>;

// All rows of a vector in place, `stride` apart, the row above them before the first. Row k of a band
// lags k pixels behind: at step s it is at byte s - k * kPixel, which begins and ends outside of the
// row. In front of it everything is 0, which predicts 0 and stays so; what is behind it reaches no
// pixel.
template <int kPixel>
inline void unfilter_bands(uint8_t* rows, int64_t stride, int64_t row_bytes, const Filters& filters) {
  Bytes left[kPixel] = {}, above_left[kPixel] = {};  // the oldest first
  const int64_t apart = kBand * stride - kLag<kPixel>;
  for (int64_t s = 0; s < row_bytes + kOverrun<kPixel>; s += kBand) {
    Bytes v[kBand];
    for (int k = 0; k < kBand; ++k) v[k] = load_bands(rows + k * (stride - kPixel) + s, apart);
    transpose(v);
#pragma GCC unroll 16
    for (int j = 0; j < kBand; ++j) {
      const uint8_t* const row_above = rows - stride + s + j;
      const Bytes above = moved_down(left[0], load_bands(row_above - (kBand - 1), apart));
      const Bytes simple = v[j] + ((left[0] & filters.left) | (above & filters.above) |
                                   (average(left[0], above) & filters.average));
      v[j] = simple + (paeth(left[0], above, above_left[0]) & filters.paeth);
      for (int i = 0; i + 1 < kPixel; ++i) {
        left[i] = left[i + 1];
        above_left[i] = above_left[i + 1];
      }
      left[kPixel - 1] = v[j];
      above_left[kPixel - 1] = above;
    }
    transpose(v);
    for (int k = 0; k < kBand; ++k) store_bands(rows + k * (stride - kPixel) + s, apart, v[k]);
  }
}

inline void copy_samples(const uint8_t* row, int64_t row_bytes, int sample_bytes, uint8_t* out) {
  if (sample_bytes == 1 || __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__) {
    std::memcpy(out, row, static_cast<size_t>(row_bytes));
    return;
  }
  for (int64_t x = 0; x < row_bytes; x += 2) {
    uint16_t sample;
    std::memcpy(&sample, row + x, 2);
    sample = __builtin_bswap16(sample);
    std::memcpy(out + x, &sample, 2);
  }
}

template <int kPixel>
inline bool unfilter_rows(const uint8_t* filtered, int64_t height, int64_t row_bytes, int sample_bytes,
                          uint8_t* out) {
  constexpr int64_t kTogether = kBand * kBands;
  constexpr int64_t kMargin = (kOverrun<kPixel> + kBand + 63) / 64 * 64;
  // An odd number of cache lines apart, so that rows do not fight for the same few.
  const int64_t stride = ((row_bytes + 63) / 64 * 64 + 2 * kMargin) | 64;
  Scratch<uint8_t> scratch((kTogether + 1) * stride);
  std::memset(scratch.data(), 0, static_cast<size_t>((kTogether + 1) * stride));
  uint8_t* const before = scratch.data() + kMargin;
  uint8_t* const rows = before + stride;
  const size_t length = static_cast<size_t>(row_bytes);
  for (int64_t y = 0; y < height; y += kTogether) {
    const int64_t count = least<int64_t>(kTogether, height - y);
    uint8_t masks[5][kTogether] = {};
    for (int64_t k = 0; k < count; ++k, filtered += 1 + row_bytes) {
      if (filtered[0] > 4) return false;
      masks[filtered[0]][k] = 0xff;
      std::memcpy(rows + k * stride, filtered + 1, length);
    }
    auto lanes = [&](int filter) { return load_bands(masks[filter], kBand); };
    unfilter_bands<kPixel>(rows, stride, row_bytes, {lanes(1), lanes(2), lanes(3), lanes(4)});
    for (int64_t k = 0; k < count; ++k, out += row_bytes) {
      copy_samples(rows + k * stride, row_bytes, sample_bytes, out);
    }
    std::memcpy(before, rows + (kTogether - 1) * stride, length);
  }
  return true;
}

inline bool png_unfilter(const uint8_t* filtered, int64_t height, int64_t row_bytes, int pixel_bytes,
                         int sample_bytes, uint8_t* out) {
  switch (pixel_bytes) {
    case 1:
      return unfilter_rows<1>(filtered, height, row_bytes, sample_bytes, out);
    case 2:
      return unfilter_rows<2>(filtered, height, row_bytes, sample_bytes, out);
    case 3:
      return unfilter_rows<3>(filtered, height, row_bytes, sample_bytes, out);
    default:
      return unfilter_rows<4>(filtered, height, row_bytes, sample_bytes, out);
  }
}

}  // namespace cxr::CXR_ISA
