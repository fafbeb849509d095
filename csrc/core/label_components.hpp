// Connected components of masks, by runs and a union-find forest.
//
// Every row becomes a bitmap (64 pixels a word) and its runs are numbered in row-major order. A run
// joins the runs of the row above that touch it; the root of a tree is always its least run, which is
// the one with the component's first pixel, so counting roots in order numbers the components as
// promised. A large image is cut into strips of rows, one a thread, whose borders are joined after.
#pragma once

#include "rowbits.hpp"

namespace cxr::CXR_ISA {

struct RunForest {
  int64_t height, width, words;
  Scratch<uint64_t> bits;
  Scratch<int64_t> first_run;    // of every row, and one past the last: a row's runs lie in sequence
  Scratch<uint16_t> begin, end;  // of every run; sides are at most 32768
  Scratch<int32_t> parent;       // later the label

  RunForest(int64_t h, int64_t w)
      : height(h),
        width(w),
        words((w + 63) / 64),
        bits(h * words),
        first_run(h + 1),
        begin(0),
        end(0),
        parent(0) {}

  int64_t run_from(int64_t y) { return first_run[y]; }
  int64_t run_to(int64_t y) { return first_run[y + 1]; }

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

  // The bitmap of row y, and in first_run[y + 1] how many runs it has.
  void read_row(const uint8_t* mask, int64_t y) {
    uint64_t* row = bits.data() + y * words;
    uint64_t before = 0;  // the last pixel of the word before
    int64_t runs = 0;
    for (int64_t w = 0; w < words; ++w) {
      const int64_t x = w * 64;
      if (x + 64 <= width) {
        row[w] = nonzero_bits(mask + x);
      } else {
        uint8_t padded[64] = {};
        std::memcpy(padded, mask + x, static_cast<size_t>(width - x));
        row[w] = nonzero_bits(padded);
      }
      runs += __builtin_popcountll(row[w] & ~(row[w] << 1 | before));
      before = row[w] >> 63;
    }
    first_run[y + 1] = runs;
  }

  // Once all rows are read: numbers for their runs, and room. Memory is what the runs need, not what
  // the worst mask would.
  void number_runs() {
    first_run[0] = 0;
    for (int64_t y = 0; y < height; ++y) first_run[y + 1] += first_run[y];
    begin.grow(first_run[height], 0);
    end.grow(first_run[height], 0);
    parent.grow(first_run[height], 0);
  }

  // Where the runs of row y begin and end.
  void find_runs(int64_t y) {
    const uint64_t* row = bits.data() + y * words;
    uint16_t* next_begin = begin.data() + run_from(y);
    uint16_t* next_end = end.data() + run_from(y);
    uint64_t before = 0;
    for (int64_t w = 0; w < words; ++w) {
      const uint64_t shifted = row[w] << 1 | before;
      const int64_t x = w * 64;
      for (uint64_t starts = row[w] & ~shifted; starts; starts &= starts - 1) {
        *next_begin++ = static_cast<uint16_t>(x + first_bit(starts));
      }
      for (uint64_t stops = ~row[w] & shifted; stops; stops &= stops - 1) {
        *next_end++ = static_cast<uint16_t>(x + first_bit(stops));
      }
      before = row[w] >> 63;
    }
    if (next_end < end.data() + run_to(y)) *next_end = static_cast<uint16_t>(width);
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

  // The forest of a strip of rows, on its own.
  void join_strip(int64_t y_begin, int64_t y_end, int reach) {
    for (int64_t y = y_begin; y < y_end; ++y) {
      find_runs(y);
      if (y > y_begin) {
        join_rows(y, reach);
      } else {
        for (int64_t run = run_from(y); run < run_to(y); ++run) parent[run] = static_cast<int32_t>(run);
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
        fill_run(row, x, begin[run], 0);
        fill_run(row, begin[run], end[run], -parent[run]);
        x = end[run];
      }
      fill_run(row, x, width, 0);
    }
  }
};

// Images so large that several threads share each: in strips of rows, whose borders are joined between.
inline void label_in_strips(int64_t images, int64_t height, int64_t width, const uint8_t* mask,
                            int reach, int32_t* labels, const Scheduler& scheduler) {
  RunForest forest(height, width);
  // Enough strips to share out, few enough that their borders do not count.
  const int64_t rows = greatest(32768 / width + 1, height / 16), strips = (height + rows - 1) / rows;
  Scratch<int64_t> labels_before(strips + 1);
  Scratch<int32_t> demoted(1024);
  const auto first = [&](int64_t strip) { return least(strip * rows, height); };
  const auto for_strips = [&](auto work) {
    parallel(scheduler, strips, 1, [&](int64_t begin, int64_t end) {
      for (int64_t strip = begin; strip < end; ++strip) work(strip);
    });
  };
  use_large_pages(labels, static_cast<size_t>(images * height * width) * sizeof(int32_t));
  for (int64_t i = 0; i < images; ++i) {
    const uint8_t* image = mask + i * height * width;
    for_strips([&](int64_t strip) {
      for (int64_t y = first(strip); y < first(strip + 1); ++y) forest.read_row(image + y * width, y);
    });
    forest.number_runs();
    for_strips([&](int64_t strip) { forest.join_strip(first(strip), first(strip + 1), reach); });
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
        for (int64_t y = 0; y < height; ++y) forest.read_row(mask + i * area + y * width, y);
        forest.number_runs();
        forest.join_strip(0, height, reach);
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
