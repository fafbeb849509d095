// Binary maps as bitmaps, 64 pixels a word, and the flood fill on them.
//
// A connected component is taken run by run: a run is a maximal row of set bits, found with a few bit
// scans whatever its length. Taking a run clears it, so that each is visited once; the rows above and
// below are then searched under it. Cost: a constant a run (plus the words it spans), where dilation
// until nothing changes costs the whole map once per pixel of path length.
#pragma once

#include "kernels.hpp"
#include "scratch.hpp"
#include "simd.hpp"

namespace cxr::CXR_ISA {

struct Run {
  int32_t y, begin, end;  // pixels [begin, end) of row y
};

inline int first_bit(uint64_t word) { return __builtin_ctzll(word); }
inline int last_bit(uint64_t word) { return 63 - __builtin_clzll(word); }
inline uint64_t bits_from(int bit) { return ~uint64_t{0} << bit; }
inline uint64_t bits_below(int bit) { return (uint64_t{1} << bit) - 1; }  // bit < 64

// Hands to take(begin, end) every run of a one-word row that meets [from, to], and clears it.
template <class Take>
inline void take_runs_of_word(uint64_t& row, int from, int to, Take take) {
  uint64_t word = row;
  uint64_t met = word & bits_from(from) & (~uint64_t{0} >> (63 - to));
  while (met) {
    const int x = first_bit(met);
    const uint64_t gaps_below = ~word & bits_below(x);
    const uint64_t gaps_above = ~word & bits_from(x);
    const int begin = gaps_below ? last_bit(gaps_below) + 1 : 0;
    const int end = gaps_above ? first_bit(gaps_above) : 64;
    const uint64_t run = bits_from(begin) & (~uint64_t{0} >> (64 - end));
    word &= ~run;
    met &= ~run;
    take(begin, end);
  }
  row = word;
}

// First set (or clear) bit at or after x; `words * 64` if none.
template <bool Set>
inline int64_t next_bit(const uint64_t* row, int64_t words, int64_t x) {
  if (x >= words * 64) return words * 64;
  int64_t w = x >> 6;
  uint64_t word = (Set ? row[w] : ~row[w]) & bits_from(static_cast<int>(x & 63));
  while (!word) {
    if (++w == words) return words * 64;
    word = Set ? row[w] : ~row[w];
  }
  return w * 64 + first_bit(word);
}

// The first pixel of the run that holds x.
inline int64_t run_begin(const uint64_t* row, int64_t x) {
  int64_t w = x >> 6;
  uint64_t gaps = ~row[w] & bits_below(static_cast<int>(x & 63));
  while (!gaps) {
    if (w == 0) return 0;
    gaps = ~row[--w];
  }
  return w * 64 + last_bit(gaps) + 1;
}

inline void clear_bits(uint64_t* row, int64_t begin, int64_t end) {
  const int64_t first = begin >> 6, last = (end - 1) >> 6;
  const uint64_t head = bits_from(static_cast<int>(begin & 63));
  const uint64_t tail = ~uint64_t{0} >> (63 - static_cast<int>((end - 1) & 63));
  if (first == last) {
    row[first] &= ~(head & tail);
    return;
  }
  row[first] &= ~head;
  for (int64_t w = first + 1; w < last; ++w) row[w] = 0;
  row[last] &= ~tail;
}

template <class Take>
inline void take_runs_of_words(uint64_t* row, int64_t words, int64_t from, int64_t to, Take take) {
  for (int64_t x = next_bit<true>(row, words, from); x <= to; x = next_bit<true>(row, words, x)) {
    const int64_t begin = run_begin(row, x), end = next_bit<false>(row, words, x);
    clear_bits(row, begin, end);
    take(begin, end);
    x = end;
  }
}

// One map's bitmap with what a flood fill needs.
struct Bitmap {
  int64_t height, width, words;
  Scratch<uint64_t> bits;
  Scratch<Run> stack;

  Bitmap(int64_t h, int64_t w)
      : height(h), width(w), words((w + 63) / 64), bits(h * words), stack(256) {}

  uint64_t* row(int64_t y) { return bits.data() + y * words; }

  // Takes the component that holds (y, x), which must be set: visit(y, begin, end) for each of its
  // runs, in no stated order. Its bits are cleared.
  template <class Visit>
  void take_component(int64_t y, int64_t x, int connectivity, Visit visit) {
    const int64_t reach = connectivity == 8 ? 1 : 0;
    int64_t depth = 0;
    take_in_row(y, x, x, depth, visit);
    while (depth > 0) {
      const Run run = stack[--depth];
      const int64_t from = greatest<int64_t>(run.begin - reach, 0);
      const int64_t to = least<int64_t>(run.end - 1 + reach, width - 1);
      if (run.y > 0) take_in_row(run.y - 1, from, to, depth, visit);
      if (run.y + 1 < height) take_in_row(run.y + 1, from, to, depth, visit);
    }
  }

 private:
  template <class Visit>
  void take_in_row(int64_t y, int64_t from, int64_t to, int64_t& depth, Visit& visit) {
    auto take = [&](int64_t begin, int64_t end) {
      if (depth == stack.capacity()) stack.grow(depth + 1, depth);
      stack[depth++] = {static_cast<int32_t>(y), static_cast<int32_t>(begin),
                        static_cast<int32_t>(end)};
      visit(y, begin, end);
    };
    if (words == 1) {
      take_runs_of_word(*row(y), static_cast<int>(from), static_cast<int>(to), take);
    } else {
      take_runs_of_words(row(y), words, from, to, take);
    }
  }
};

// A float map with rows padded to whole registers. Padding and dead pixels are NaN, which no
// comparison selects and min_number/max_number skip: the inner loops need neither masks nor tails.
struct PaddedMap {
  int64_t height, width, stride;
  Scratch<float> values;

  PaddedMap(int64_t h, int64_t w)
      : height(h), width(w), stride((w + kFloats - 1) / kFloats * kFloats), values(h * stride) {}

  float* row(int64_t y) { return values.data() + y * stride; }

  // Least and greatest value; (inf, -inf) if all are NaN.
  void extent(float& lo, float& hi) {
    Vec<float> least_lanes = broadcast<float>(__builtin_inff());
    Vec<float> greatest_lanes = broadcast<float>(-__builtin_inff());
    const int64_t n = height * stride;
    for (int64_t i = 0; i < n; i += kFloats) {
      const Vec<float> v = load<float>(values.data() + i);
      least_lanes = min_number(v, least_lanes);
      greatest_lanes = max_number(v, greatest_lanes);
    }
    lo = min_lane(least_lanes);
    hi = max_lane(greatest_lanes);
  }

  // bitmap = (value >= cut)
  void cut(float cut, Bitmap& bitmap) {
    const Vec<float> cuts = broadcast<float>(cut);
    for (int64_t y = 0; y < height; ++y) {
      const float* source = row(y);
      uint64_t* target = bitmap.row(y);
      for (int64_t w = 0; w < bitmap.words; ++w) {
        const int64_t from = w * 64, to = least(from + 64, stride);
        uint64_t word = 0;
        for (int64_t x = from; x < to; x += kFloats) {
          word |= bits_ge(load<float>(source + x), cuts) << (x - from);
        }
        target[w] = word;
      }
    }
  }

  // Row-major index y * stride + x of the first pixel equal to `value`, which must occur.
  int64_t first_equal(float value) {
    const Vec<float> values_wanted = broadcast<float>(value);
    for (int64_t i = 0;; i += kFloats) {
      const uint64_t equal = bits_eq(load<float>(values.data() + i), values_wanted);
      if (equal) return i + first_bit(equal);
    }
  }
};

}  // namespace cxr::CXR_ISA
