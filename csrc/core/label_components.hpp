// Connected components of masks, by runs and a union-find forest.
//
// Every row becomes a bitmap (64 pixels a word) and its runs are numbered in row-major order. A run
// joins the runs of the row above that touch it; the root of a tree is always its least run, which is
// the one with the component's first pixel, so counting roots in order numbers the components as
// promised. A large image is cut into strips of rows, one a thread, whose borders are joined after.
#pragma once

#include "rowbits.hpp"

namespace cxr::CXR_ISA {

// row[from, to) = value. Runs are short: whole vectors, then one pixel after the other.
inline void fill(int32_t* row, int64_t from, int64_t to, int32_t value) {
  typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
  const Ints values = value - Ints{};
  for (; from + kFloats <= to; from += kFloats) std::memcpy(row + from, &values, sizeof(values));
#if defined(__AVX512F__)
  const auto rest = static_cast<__mmask16>((1u << (to - from)) - 1);
  _mm512_mask_storeu_epi32(row + from, rest, bits_of<__m512i>(values));
#else
  for (; from < to; ++from) row[from] = value;
#endif
}

struct RunForest {
  int64_t height, width, words, runs_a_row;
  Scratch<int32_t> begin, end;  // of every run; a row's runs lie in sequence
  Scratch<int32_t> parent;      // later the label
  Scratch<int64_t> first_run;   // of every row, and one past the last

  RunForest(int64_t h, int64_t w)
      : height(h),
        width(w),
        words((w + 63) / 64),
        runs_a_row((w + 1) / 2),
        begin(h * runs_a_row),
        end(h * runs_a_row),
        parent(h * runs_a_row),
        first_run(2 * h) {}

  // Rows own disjoint ranges of numbers only as far as strips need it: a strip starts at the number
  // that its rows could not reach otherwise.
  int64_t run_from(int64_t y) { return first_run[2 * y]; }
  int64_t run_to(int64_t y) { return first_run[2 * y + 1]; }

  int32_t root(int32_t run) {
    while (parent[run] != run) {
      parent[run] = parent[parent[run]];
      run = parent[run];
    }
    return run;
  }
  // The same without shortening the way: between strips, only roots may point out of their strip.
  int32_t root_as_is(int32_t run) {
    while (parent[run] != run) run = parent[run];
    return run;
  }

  // The runs of row y, numbered from `run`; returns the next free number.
  int64_t scan_row(const uint8_t* mask, int64_t y, int64_t run) {
    first_run[2 * y] = run;
    bool open = false;  // the run so far reaches the end of the last word
    for (int64_t w = 0; w < words; ++w) {
      const int64_t x = w * 64;
      uint64_t word;
      if (x + 64 <= width) {
        word = nonzero_bits(mask + x);
      } else {
        uint8_t padded[64] = {};
        std::memcpy(padded, mask + x, static_cast<size_t>(width - x));
        word = nonzero_bits(padded);
      }
      if (open) {
        if (word == ~uint64_t{0}) continue;
        const int stop = first_bit(~word);
        end[run++] = static_cast<int32_t>(x + stop);
        word &= bits_from(stop);
        open = false;
      }
      while (word) {
        const int start = first_bit(word);
        begin[run] = static_cast<int32_t>(x + start);
        const uint64_t gaps = ~word & bits_from(start);
        if (!gaps) {
          open = true;
          break;
        }
        const int stop = first_bit(gaps);
        end[run++] = static_cast<int32_t>(x + stop);
        word &= bits_from(stop);
      }
    }
    if (open) end[run++] = static_cast<int32_t>(width);
    first_run[2 * y + 1] = run;
    return run;
  }

  // Joins the runs of row y, which have no parent yet, to those above that touch them.
  void join_rows(int64_t y, int reach) {
    int64_t above = run_from(y - 1);
    const int64_t above_end = run_to(y - 1);
    for (int64_t run = run_from(y); run < run_to(y); ++run) {
      const int32_t me = static_cast<int32_t>(run);
      const int32_t from = begin[run] - reach, to = end[run] + reach;
      while (above < above_end && end[above] <= from) ++above;
      if (above == above_end || begin[above] >= to) {
        parent[me] = me;
        continue;
      }
      int32_t mine = root(static_cast<int32_t>(above));
      for (int64_t other = above + 1; other < above_end && begin[other] < to; ++other) {
        const int32_t theirs = root(static_cast<int32_t>(other));
        parent[greatest(mine, theirs)] = least(mine, theirs);
        mine = least(mine, theirs);
      }
      parent[me] = mine;
    }
  }

  // Joins the first row of a strip to the last row of the strip before. Roots that lose their place
  // are noted in `demoted`; returns how many are noted now.
  int64_t join_strips(int64_t y, int reach, Scratch<int32_t>& demoted, int64_t noted) {
    int64_t above = run_from(y - 1);
    const int64_t above_end = run_to(y - 1);
    for (int64_t run = run_from(y); run < run_to(y); ++run) {
      const int32_t from = begin[run] - reach, to = end[run] + reach;
      while (above < above_end && end[above] <= from) ++above;
      for (int64_t other = above; other < above_end && begin[other] < to; ++other) {
        const int32_t a = root_as_is(static_cast<int32_t>(run));
        const int32_t b = root_as_is(static_cast<int32_t>(other));
        if (a == b) continue;
        parent[greatest(a, b)] = least(a, b);
        demoted.grow(noted + 1, noted);
        demoted[noted++] = greatest(a, b);
      }
    }
    return noted;
  }

  void scan_strip(const uint8_t* mask, int64_t y_begin, int64_t y_end, int reach) {
    int64_t run = y_begin * runs_a_row;
    for (int64_t y = y_begin; y < y_end; ++y) {
      run = scan_row(mask + y * width, y, run);
      if (y > y_begin) {
        join_rows(y, reach);
      } else {
        for (int64_t i = run_from(y); i < run; ++i) parent[i] = static_cast<int32_t>(i);
      }
    }
  }

  template <class Visit>
  void for_each_run(int64_t y_begin, int64_t y_end, Visit visit) {
    for (int64_t y = y_begin; y < y_end; ++y) {
      for (int64_t run = run_from(y); run < run_to(y); ++run) visit(run);
    }
  }

  // Labels replace parents, as negative numbers. First the roots of a strip, which follow `labels`
  // others; then, when all strips are so far, the rest: a parent comes before its run, or is the
  // root itself.
  int64_t count_roots(int64_t y_begin, int64_t y_end) {
    int64_t roots = 0;
    for_each_run(y_begin, y_end, [&](int64_t run) { roots += parent[run] == run; });
    return roots;
  }
  void number_roots(int64_t y_begin, int64_t y_end, int64_t labels) {
    for_each_run(y_begin, y_end, [&](int64_t run) {
      if (parent[run] == run) parent[run] = static_cast<int32_t>(-(++labels));
    });
  }
  void number_rest(int64_t y_begin, int64_t y_end) {
    for_each_run(y_begin, y_end, [&](int64_t run) {
      if (parent[run] >= 0) parent[run] = parent[parent[run]];
    });
  }

  void write_rows(int64_t y_begin, int64_t y_end, int32_t* labels) {
    for (int64_t y = y_begin; y < y_end; ++y) {
      int32_t* row = labels + y * width;
      int64_t x = 0;
      for (int64_t run = run_from(y); run < run_to(y); ++run) {
        fill(row, x, begin[run], 0);
        fill(row, begin[run], end[run], -parent[run]);
        x = end[run];
      }
      fill(row, x, width, 0);
    }
  }
};

// Images so large that several threads share each: in strips of rows, whose borders are joined between.
inline void label_in_strips(int64_t images, int64_t height, int64_t width, const uint8_t* mask,
                            int reach, int32_t* labels, const Scheduler& scheduler) {
  RunForest forest(height, width);
  const int64_t rows = 32768 / width + 1, strips = (height + rows - 1) / rows;
  Scratch<int64_t> labels_before(strips + 1);
  Scratch<int32_t> demoted(1024);
  const auto first = [&](int64_t strip) { return least(strip * rows, height); };
  const auto for_strips = [&](auto work) {
    parallel(scheduler, strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip) work(strip);
    });
  };
  for (int64_t i = 0; i < images; ++i) {
    for_strips([&](int64_t strip) {
      forest.scan_strip(mask + i * height * width, first(strip), first(strip + 1), reach);
    });
    int64_t noted = 0;
    for (int64_t strip = 1; strip < strips; ++strip) {
      noted = forest.join_strips(first(strip), reach, demoted, noted);
    }
    // A chain of parents leaves its strip once, and must end there.
    for (int64_t d = 0; d < noted; ++d) forest.parent[demoted[d]] = forest.root(demoted[d]);
    for_strips([&](int64_t strip) {
      labels_before[strip + 1] = forest.count_roots(first(strip), first(strip + 1));
    });
    labels_before[0] = 0;
    for (int64_t strip = 0; strip < strips; ++strip) labels_before[strip + 1] += labels_before[strip];
    for_strips([&](int64_t strip) {
      forest.number_roots(first(strip), first(strip + 1), labels_before[strip]);
    });
    for_strips([&](int64_t strip) {
      forest.number_rest(first(strip), first(strip + 1));
      forest.write_rows(first(strip), first(strip + 1), labels + i * height * width);
    });
  }
}

inline void label_components(int64_t images, int64_t height, int64_t width, const uint8_t* mask,
                             int connectivity, int32_t* labels, const Scheduler& scheduler) {
  const int64_t area = height * width;
  const int reach = connectivity == 8 ? 1 : 0;
  constexpr int64_t large = 1 << 17;  // an image that is worth several threads
  if (area < large) {
    parallel(scheduler, images, 16384 / area + 1, [&](int64_t first, int64_t last) {
      RunForest forest(height, width);
      for (int64_t i = first; i < last; ++i) {
        forest.scan_strip(mask + i * area, 0, height, reach);
        forest.number_roots(0, height, 0);
        forest.number_rest(0, height);
        forest.write_rows(0, height, labels + i * area);
      }
    });
    return;
  }
  label_in_strips(images, height, width, mask, reach, labels, scheduler);
}

}  // namespace cxr::CXR_ISA
