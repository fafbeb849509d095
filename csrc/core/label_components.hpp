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
  void join(int32_t a, int32_t b) {
    a = root(a);
    b = root(b);
    if (a < b) {
      parent[b] = a;
    } else {
      parent[a] = b;
    }
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

  // Joins the runs of row y to those above that touch them. `fresh`: they have no parent yet.
  void join_rows(int64_t y, int reach, bool fresh) {
    int64_t above = y > 0 ? run_from(y - 1) : 0;
    const int64_t above_end = y > 0 ? run_to(y - 1) : 0;
    for (int64_t run = run_from(y); run < run_to(y); ++run) {
      const int32_t me = static_cast<int32_t>(run);
      if (fresh) parent[me] = me;
      const int32_t from = begin[run] - reach, to = end[run] + reach;
      while (above < above_end && end[above] <= from) ++above;
      for (int64_t other = above; other < above_end && begin[other] < to; ++other) {
        if (fresh && other == above) {
          parent[me] = root(static_cast<int32_t>(other));
        } else {
          join(me, static_cast<int32_t>(other));
        }
      }
    }
  }

  void scan_strip(const uint8_t* mask, int64_t y_begin, int64_t y_end, int reach) {
    int64_t run = y_begin * runs_a_row;
    for (int64_t y = y_begin; y < y_end; ++y) {
      run = scan_row(mask + y * width, y, run);
      if (y > y_begin) {
        join_rows(y, reach, true);
      } else {
        for (int64_t i = run_from(y); i < run; ++i) parent[i] = static_cast<int32_t>(i);
      }
    }
  }

  // Parents become labels: a parent is never greater than its run, so one pass in order suffices.
  void number() {
    int32_t labels = 0;
    for (int64_t y = 0; y < height; ++y) {
      for (int64_t run = run_from(y); run < run_to(y); ++run) {
        parent[run] = parent[run] == run ? -(++labels) : parent[parent[run]];
      }
    }
  }

  void write_rows(int64_t y_begin, int64_t y_end, int32_t* labels) {
    for (int64_t y = y_begin; y < y_end; ++y) {
      int32_t* row = labels + y * width;
      int64_t x = 0;
      for (int64_t run = run_from(y); run < run_to(y); ++run) {
        const int64_t from = begin[run], to = end[run];
        const int32_t label = -parent[run];
        for (; x < from; ++x) row[x] = 0;
        for (; x < to; ++x) row[x] = label;
      }
      for (; x < width; ++x) row[x] = 0;
    }
  }
};

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
        forest.number();
        forest.write_rows(0, height, labels + i * area);
      }
    });
    return;
  }
  RunForest forest(height, width);
  Scratch<uint8_t> starts_strip(height);
  const int64_t rows = large / 4 / width + 1;
  for (int64_t i = 0; i < images; ++i) {
    for (int64_t y = 0; y < height; ++y) starts_strip[y] = 0;
    parallel(scheduler, height, rows, [&](int64_t first, int64_t last) {
      starts_strip[first] = 1;
      forest.scan_strip(mask + i * area, first, last, reach);
    });
    for (int64_t y = 1; y < height; ++y) {
      if (starts_strip[y]) forest.join_rows(y, reach, false);
    }
    forest.number();
    parallel(scheduler, height, rows,
             [&](int64_t first, int64_t last) { forest.write_rows(first, last, labels + i * area); });
  }
}

}  // namespace cxr::CXR_ISA
