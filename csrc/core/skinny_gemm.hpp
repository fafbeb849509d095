// OUT[i, j] (+)= sum over k of A(i, k) * B(k, j), for products that are long in one direction only.
//
// The products of the CAM and of its gradient have 1 to 256 classes on one side: general matrix
// libraries pack and block for square ones and reach a fraction of the bandwidth here. One register
// tile of I rows times J vectors does all of them; what differs is which operand is the feature map:
//
//   stream_columns: B is the feature map (or the result is), its rows read once as vectors;
//                   A is scalars, broadcast.
//   stream_rows:    A is the feature map, its values broadcast; B is a small packed matrix.
//
// k is cut into blocks, and partial sums wait in OUT (in the L2 cache) between blocks: a block is a
// few rows that the prefetcher follows, where a full sweep over k would touch a new page every step.
// The sum over k always runs in the same order, so results do not depend on threads or tiles.
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
                           int64_t size_k, Rows<TO> out, bool accumulate) {
  constexpr int64_t lanes = kLanes<Acc>;
  for (int64_t k = 0; k < size_k; k += kBlockK) {
    const int64_t block = least(kBlockK, size_k - k);
    const bool add = accumulate || k > 0;
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

// ---- A is the large operand ----

#if defined(__AVX512F__)
constexpr int kStreamRows = 24, kStreamVectors = 1;
#elif defined(__aarch64__)
constexpr int kStreamRows = 6, kStreamVectors = 4;
#else
constexpr int kStreamRows = 6, kStreamVectors = 2;
#endif
constexpr int64_t kStreamBlockK = 128;

// Columns of B and OUT in one pass; both are padded to a multiple of it.
template <class Acc>
constexpr int64_t kStreamColumns = kStreamVectors * kLanes<Acc>;

template <class Acc, int I, class T>
inline void stream_row_tile(Rows<const T> a, int64_t size_k, Rows<const Acc> b, Rows<Acc> out,
                            bool accumulate) {
  // The rows are copied, and widened, a block at a time: side by side in the cache, their values are
  // broadcast from fixed distances.
  alignas(kVectorBytes) Acc block[I * kStreamBlockK];
  for (int i = 0; i < I; ++i) {
    const T* row = a.data + i * a.stride;
    int64_t k = 0;
    for (; k + kLanes<Acc> <= size_k; k += kLanes<Acc>) {
      store<Acc>(block + i * kStreamBlockK + k, load<Acc>(row + k));
      __builtin_prefetch(row + I * a.stride + k);  // the rows that follow
    }
    for (; k < size_k; ++k) block[i * kStreamBlockK + k] = to_acc<Acc>(row[k]);
  }
  const Scalars<Acc, kStreamBlockK> scalars{block, 1};
  gemm_tile<Acc, I, kStreamVectors, false, 0>(scalars, b, size_k, out, accumulate, 0);
}

// OUT[i, 0:padded_j] (+)= A[i, :] . B, with A's rows contiguous in k.
template <class Acc, class T>
inline void stream_rows(Rows<const T> a, Rows<const Acc> b, int64_t size_i, int64_t padded_j,
                        int64_t size_k, Rows<Acc> out, bool accumulate) {
  for (int64_t i = 0; i < size_i;) {
    const int64_t rows = size_i - i >= kStreamRows ? kStreamRows : size_i - i >= 4 ? 4 : 1;
    for (int64_t k = 0; k < size_k; k += kStreamBlockK) {
      const int64_t block = least(kStreamBlockK, size_k - k);
      const bool add = accumulate || k > 0;
      for (int64_t j = 0; j < padded_j; j += kStreamColumns<Acc>) {
        const Rows<const T> a_block = a.at(i, k);
        if (rows == kStreamRows) {
          stream_row_tile<Acc, kStreamRows>(a_block, block, b.at(k, j), out.at(i, j), add);
        } else if (rows == 4) {
          stream_row_tile<Acc, 4>(a_block, block, b.at(k, j), out.at(i, j), add);
        } else {
          stream_row_tile<Acc, 1>(a_block, block, b.at(k, j), out.at(i, j), add);
        }
      }
    }
    i += rows;
  }
}

}  // namespace cxr::CXR_ISA
