// A binary map held by one warp, a row a lane: 32 x 32 pixels as one 32-bit word a lane, 64 x 64 as two
// 64-bit words a lane (rows `lane` and `lane + 32`). Bit x of a word is pixel x of its row.
//
// A flood fill grows a component until nothing changes. Along a row, all runs that hold a seed are
// filled by one addition: in foreground + seed, the carry runs from the lowest seed of a run to the
// run's end, and leaves 0 wherever it passed. Between rows, a lane asks its neighbours by shuffles.
// Blobs as a network draws them need a few rounds; for corridors that wind, the map is transposed by
// shuffles, too, and filled along columns.
#pragma once

#include "device.cuh"

namespace cxr::gpu {

template <int K>
struct WordOf;
template <>
struct WordOf<1> {
  typedef unsigned int type;
};
template <>
struct WordOf<2> {
  typedef unsigned long long type;
};

__device__ inline unsigned int reversed(unsigned int v) { return __brev(v); }
__device__ inline unsigned long long reversed(unsigned long long v) { return __brevll(v); }

// K words a lane: K * 32 rows of K * 32 pixels.
template <int K>
struct RowWords {
  using Word = typename WordOf<K>::type;
  Word row[K];
};

// Bits of `foreground` in runs that hold a bit of `seed`, which is a part of it.
template <class Word>
__device__ inline Word filled_runs(Word foreground, Word seed) {
  const Word upwards = foreground & (~(foreground + seed) | seed);
  const Word mirrored = reversed(foreground), seed_mirrored = reversed(seed);
  const Word downwards = mirrored & (~(mirrored + seed_mirrored) | seed_mirrored);
  return upwards | reversed(downwards);
}

// 32 x 32 bits: lane i gives row i and gets column i. Blocks of half the size change places, 5 times.
__device__ inline unsigned transposed(unsigned word) {
  const unsigned lane = threadIdx.x % 32;
  unsigned keep = 0x0000ffffu;
#pragma unroll
  for (int size = 16; size > 0; size /= 2) {
    const unsigned other = __shfl_xor_sync(kAllLanes, word, size);
    word = lane & size ? (word & ~keep) | ((other >> size) & keep)
                       : (word & keep) | ((other & keep) << size);
    keep ^= keep << (size / 2);
  }
  return word;
}

// Rows to columns, or back: both are held alike, and word k of lane i becomes column i + 32 * k.
template <int K>
__device__ inline RowWords<K> transposed(const RowWords<K>& map) {
  using Word = typename WordOf<K>::type;
  RowWords<K> result;
#pragma unroll
  for (int k = 0; k < K; ++k) {
    Word column = 0;
#pragma unroll
    for (int r = 0; r < K; ++r) {
      const unsigned block = transposed(static_cast<unsigned>(map.row[r] >> (32 * k)));
      column |= static_cast<Word>(block) << (32 * r);
    }
    result.row[k] = column;
  }
  return result;
}

// Grows `component` along its rows and into the rows next to them. True if this lane's rows changed.
template <int K>
__device__ inline bool grow_rows(const RowWords<K>& foreground, bool corners, RowWords<K>& component) {
  using Word = typename WordOf<K>::type;
  const int lane = static_cast<int>(threadIdx.x % 32);
  bool changed = false;
  Word above[K], below[K];
#pragma unroll
  for (int r = 0; r < K; ++r) {  // the first and last lane get a row of another word, or nothing
    above[r] = __shfl_sync(kAllLanes, component.row[r], (lane + 31) % 32);
    below[r] = __shfl_sync(kAllLanes, component.row[r], (lane + 1) % 32);
  }
#pragma unroll
  for (int r = 0; r < K; ++r) {
    const Word from_above = lane > 0 ? above[r] : r > 0 ? above[r > 0 ? r - 1 : 0] : 0;
    const Word from_below = lane < 31 ? below[r] : r + 1 < K ? below[r + 1 < K ? r + 1 : 0] : 0;
    Word next = from_above | from_below;
    if (corners) next |= (next << 1) | (next >> 1);
    const Word fill = foreground.row[r];
    const Word grown = filled_runs(fill, static_cast<Word>(component.row[r] | (next & fill)));
    changed |= grown != component.row[r];
    component.row[r] = grown;
  }
  return changed;
}

// Rounds of two growths before columns are tried. Maps of average-pooled features take 8 rounds on
// average and 23 at most; a round with columns costs as much as four without.
constexpr int kRoundsByRow = 12;

// The component of `foreground` that holds `seed`, one of its pixels.
template <int K>
__device__ inline RowWords<K> component_of(const RowWords<K>& foreground, const RowWords<K>& seed,
                                           bool corners) {
  RowWords<K> component = seed;
  for (int round = 0;; ++round) {
    bool changed = grow_rows(foreground, corners, component);
    changed |= grow_rows(foreground, corners, component);
    if (!__any_sync(kAllLanes, changed)) return component;
    if (round >= kRoundsByRow) {
      const RowWords<K> across = transposed(foreground);
      RowWords<K> columns = transposed(component);
#pragma unroll
      for (int k = 0; k < K; ++k) columns.row[k] = filled_runs(across.row[k], columns.row[k]);
      component = transposed(columns);
    }
  }
}

}  // namespace cxr::gpu
