// OUT[i, j] (+)= sum over k of A(i, k) * B(k, j), for products that are long in one direction only.
//
// The products of the CAM and of its gradient have 1 to 256 classes on one side: general matrix
// libraries pack and block for square ones and reach a fraction of the bandwidth here. Two register
// tiles do all of them, by how the feature map lies:
//
//   stream_columns: its rows run along j. They are read once as vectors; A is scalars, broadcast.
//   stream_dots:    its rows run along k, as those of the other operand do: dot products.
//
// In stream_columns k is cut into blocks, and partial sums wait in OUT (in the L2 cache) between
// blocks: a block is a few rows that the prefetcher follows, where a full sweep over k would touch a
// new page every step. The sum over k always runs in the same order, so results do not depend on
// threads or tiles.
#pragma once

#include "simd.hpp"

namespace cxr::CXR_ISA {

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kTileRows = 14;  // 32 registers: 14 x 2 sums, 2 of B, 1 broadcast
#else
constexpr int kTileRows = 6;  // 16 registers: 6 x 2 sums, 2 of B, 1 broadcast
#endif
constexpr int kTileVectors = 2;
constexpr int64_t kBlockK = 32;

// A scalar operand: A(i, k) = data[i * Row + k * column]. The stride between rows is known at compile
// time, so that one pointer reaches all rows of a tile.
template <class Acc, int64_t Row>
struct Scalars {
  const Acc* data;
  int64_t column;
  Scalars at(int64_t i, int64_t k) const { return {data + i * Row + k * column, column}; }
};
template <class Acc>
using PackedScalars = Scalars<Acc, 1>;

// Rows of a streamed operand or of the result: element (r, j) = data[r * stride + j].
template <class T>
struct Rows {
  T* data;
  int64_t stride;
  Rows at(int64_t r, int64_t j) const { return {data + r * stride + j, stride}; }
};

// The loops over the tile are unrolled so that its sums live in registers from first to last.
// `last` is the number of valid lanes in the last of the J vectors when Partial. `Ahead` rows further
// down, B is fetched into the cache: the block that follows.
template <class Acc, int I, int J, bool Partial, int64_t Ahead, int64_t Row, class TB, class TO>
inline void gemm_tile(Scalars<Acc, Row> a, Rows<const TB> b, int64_t size_k, Rows<TO> out,
                      bool accumulate, int last) {
  Vec<Acc> sum[I][J];
#pragma GCC unroll 32
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) {
      const TO* p = out.data + i * out.stride + j * kLanes<Acc>;
      sum[i][j] = !accumulate               ? Vec<Acc>{}
                  : (Partial && j == J - 1) ? load_partial<Acc>(p, last)
                                            : load<Acc>(p);
    }
  }
  for (int64_t k = 0; k < size_k; ++k) {
    Vec<Acc> row[J];
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) {
      const TB* p = b.data + k * b.stride + j * kLanes<Acc>;
      row[j] = (Partial && j == J - 1) ? load_partial<Acc>(p, last) : load<Acc>(p);
      if (Ahead > 0) __builtin_prefetch(p + Ahead * b.stride);
    }
#pragma GCC unroll 32
    for (int i = 0; i < I; ++i) {
      const Vec<Acc> scalar = broadcast<Acc>(a.data[i * Row + k * a.column]);
#pragma GCC unroll 32
      for (int j = 0; j < J; ++j) sum[i][j] = multiply_add<Acc>(scalar, row[j], sum[i][j]);
    }
  }
#pragma GCC unroll 32
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) {
      TO* p = out.data + i * out.stride + j * kLanes<Acc>;
      if (Partial && j == J - 1) {
        store_partial<Acc>(p, sum[i][j], last);
      } else {
        store<Acc>(p, sum[i][j]);
      }
    }
  }
}

// All rows of A against J vectors of B: tiles of kTileRows, the rest in tiles of 4, 2 and 1.
template <class Acc, int J, bool Partial, int64_t Ahead, int64_t Row, class TB, class TO>
inline void gemm_rows(Scalars<Acc, Row> a, Rows<const TB> b, int64_t size_i, int64_t size_k,
                      Rows<TO> out, bool accumulate, int last) {
  int64_t i = 0;
  for (; i + kTileRows <= size_i; i += kTileRows) {
    gemm_tile<Acc, kTileRows, J, Partial, Ahead>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate, last);
  }
  for (; i + 4 <= size_i; i += 4) {
    gemm_tile<Acc, 4, J, Partial, Ahead>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate, last);
  }
  if (i + 2 <= size_i) {
    gemm_tile<Acc, 2, J, Partial, Ahead>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate, last);
    i += 2;
  }
  if (i < size_i) {
    gemm_tile<Acc, 1, J, Partial, Ahead>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate, last);
  }
}

// B (or OUT) is the large operand: columns [0, size_j) of it, read (or written) once.
template <class Acc, class TB, class TO>
inline void stream_columns(PackedScalars<Acc> a, Rows<const TB> b, int64_t size_i, int64_t size_j,
                           int64_t size_k, Rows<TO> out) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t k = 0; k < size_k; k += kBlockK) {
    const int64_t block = least(kBlockK, size_k - k);
    const bool add = k > 0;
    const PackedScalars<Acc> a_block = a.at(0, k);
    int64_t j = 0;
    for (; j + kTileVectors * lanes <= size_j; j += kTileVectors * lanes) {
      gemm_rows<Acc, kTileVectors, false, kBlockK>(a_block, b.at(k, j), size_i, block, out.at(0, j),
                                                   add, 0);
    }
    for (; j < size_j; j += lanes) {
      const int left = static_cast<int>(least(lanes, size_j - j));
      if (left == lanes) {
        gemm_rows<Acc, 1, false, kBlockK>(a_block, b.at(k, j), size_i, block, out.at(0, j), add, 0);
      } else {
        gemm_rows<Acc, 1, true, kBlockK>(a_block, b.at(k, j), size_i, block, out.at(0, j), add, left);
      }
    }
  }
}

// ---- both operands have their k in sequence: dot products ----

#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kDotRows = 3, kDotColumns = 7;  // 32 registers: 21 sums, 3 of A, 1 of B
#else
constexpr int kDotRows = 2, kDotColumns = 4;  // 16 registers: 8 sums, 2 of A, 1 of B
#endif
constexpr int64_t kDotBlockK = 1024;  // so that the rows of B stay in the cache
constexpr int64_t kDotBlockRows = 24;

// out[i * row + j * column] (+)= sum over k of A[i][k] * B[j][k].
template <class Acc>
struct Cells {
  Acc* data;
  int64_t row, column;
  Cells at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

template <class Acc, int I, int J, class T>
inline void dot_tile(Rows<const T> a, Rows<const Acc> b, int64_t size_k, Cells<Acc> out,
                     bool accumulate) {
  Vec<Acc> sum[I][J];
#pragma GCC unroll 32
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) sum[i][j] = Vec<Acc>{};
  }
  const auto add = [&](auto load_a, auto load_b) {
    Vec<Acc> x[I];
#pragma GCC unroll 32
    for (int i = 0; i < I; ++i) x[i] = load_a(a.data + i * a.stride);
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) {
      const Vec<Acc> w = in_register(load_b(b.data + j * b.stride));
#pragma GCC unroll 32
      for (int i = 0; i < I; ++i) sum[i][j] = multiply_add<Acc>(x[i], w, sum[i][j]);
    }
  };
  const int64_t whole = size_k / kLanes<Acc> * kLanes<Acc>;
  for (int64_t k = 0; k < whole; k += kLanes<Acc>) {
    const auto at_k = [k](auto* row) { return load<Acc>(row + k); };
    add(at_k, at_k);
  }
  if (whole < size_k) {
    const int rest = static_cast<int>(size_k - whole);
    const auto last = [whole, rest](auto* row) { return load_partial<Acc>(row + whole, rest); };
    add(last, last);
  }
#pragma GCC unroll 32
  for (int i = 0; i < I; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < J; ++j) {
      Acc& cell = *out.at(i, j).data;
      cell = (accumulate ? cell : Acc{0}) + sum_lanes<Acc>(sum[i][j]);
    }
  }
}

template <class Acc, int J, class T>
inline void dot_rows(Rows<const T> a, Rows<const Acc> b, int64_t size_i, int64_t size_k, Cells<Acc> out,
                     bool accumulate) {
  int64_t i = 0;
  for (; i + kDotRows <= size_i; i += kDotRows) {
    dot_tile<Acc, kDotRows, J>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate);
  }
  for (; i < size_i; ++i) dot_tile<Acc, 1, J>(a.at(i, 0), b, size_k, out.at(i, 0), accumulate);
}

// A is the feature map: size_i rows of it, each read from memory once.
template <class Acc, class T>
inline void stream_dots(Rows<const T> a, Rows<const Acc> b, int64_t size_i, int64_t size_j,
                        int64_t size_k, Cells<Acc> out, bool accumulate) {
  for (int64_t i = 0; i < size_i; i += kDotBlockRows) {
    const int64_t rows = least(kDotBlockRows, size_i - i);
    for (int64_t k = 0; k < size_k; k += kDotBlockK) {
      const int64_t block = least(kDotBlockK, size_k - k);
      const bool add = accumulate || k > 0;
      int64_t j = 0;
      for (; j + kDotColumns <= size_j; j += kDotColumns) {
        dot_rows<Acc, kDotColumns>(a.at(i, k), b.at(j, k), rows, block, out.at(i, j), add);
      }
      for (; j + 2 <= size_j; j += 2) {
        dot_rows<Acc, 2>(a.at(i, k), b.at(j, k), rows, block, out.at(i, j), add);
      }
      if (j < size_j) dot_rows<Acc, 1>(a.at(i, k), b.at(j, k), rows, block, out.at(i, j), add);
    }
  }
}

}  // namespace cxr::CXR_ISA
