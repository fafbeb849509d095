// The class activation map before erasure, and its gradient.
//
//   cam[n,c,p] = sum over d of W[c,d] X[n,d,p]        dX = W^T . dcam        dW = dcam . X^T
//
// X is read where it lies: planar (NCHW: pixels contiguous) or interleaved (channels_last: channels
// contiguous). Floor: one read of X. With C = 14 classes and float32 features a vector of X costs 14
// fused multiply-adds, which two FMA ports finish about when the next vector arrives from memory.
#pragma once

#include "kernels.hpp"
#include "scratch.hpp"
#include "skinny_gemm.hpp"

namespace cxr::CXR_ISA {

// Multiplications that one thread takes at least: below this a thread costs more than it brings.
constexpr int64_t kMacsPerThread = 1 << 18;

// [rows, columns] -> [columns, rows], the scalars of stream_columns.
template <class Acc>
inline void transpose(const Acc* source, int64_t rows, int64_t columns, Acc* out) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) out[j * rows + i] = source[i * columns + j];
  }
}

template <class Acc, class T>
inline void cam_planar(const Features& f, const Acc* weight, int64_t classes, Acc* cam,
                       const Scheduler& scheduler) {
  Scratch<Acc> packed(f.channels * classes);
  transpose(weight, classes, f.channels, packed.data());
  constexpr int64_t tile = 128;  // pixels; several tiles an image let threads share one image
  const int64_t tiles = (f.pixels + tile - 1) / tile;
  const int64_t grain = kMacsPerThread / (tile * f.channels * classes + 1) + 1;
  parallel(scheduler, f.images * tiles, grain, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      // Neighbouring tiles of an image go together: longer rows for the prefetcher.
      const int64_t n = begin / tiles, first = begin % tiles;
      const int64_t last = least(tiles, first + end - begin);
      const int64_t p = first * tile, count = least(f.pixels, last * tile) - p;
      const T* x = static_cast<const T*>(f.data) + n * f.image + p;
      Acc* out = cam + n * classes * f.pixels + p;
      stream_columns<Acc>(PackedScalars<Acc>{packed.data(), classes}, Rows<const T>{x, f.channel},
                          classes, count, f.channels, Rows<Acc>{out, f.pixels});
      begin += last - first;
    }
  });
}

template <class Acc, class T>
inline void cam_interleaved(const Features& f, const Acc* weight, int64_t classes, Acc* cam,
                            const Scheduler& scheduler) {
  constexpr int64_t tile = 4 * kDotBlockRows;
  const int64_t tiles = (f.pixels + tile - 1) / tile;
  const int64_t grain = kMacsPerThread / (tile * f.channels * classes + 1) + 1;
  parallel(scheduler, f.images * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / tiles, p = item % tiles * tile;
      const T* x = static_cast<const T*>(f.data) + n * f.image + p * f.pixel;
      Acc* out = cam + n * classes * f.pixels + p;
      stream_dots<Acc>(Rows<const T>{x, f.pixel}, Rows<const Acc>{weight, f.channels},
                       least(tile, f.pixels - p), classes, f.channels, Cells<Acc>{out, 1, f.pixels},
                       false);
    }
  });
}

// ---- gradient with respect to the features ----

template <class Acc, class T>
inline void cam_grad_features(const Features& f, const Acc* weight, int64_t classes,
                              const Acc* grad_cam, T* out, const Scheduler& scheduler) {
  const bool planar = f.pixel == 1;
  const int64_t rows = planar ? f.channels : f.pixels, columns = planar ? f.pixels : f.channels;
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  const int64_t grain = kMacsPerThread / (kTileRows * columns * classes + 1) + 1;
  parallel(scheduler, f.images * tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / tiles, r = item % tiles * kTileRows;
      const int64_t count = least<int64_t>(kTileRows, rows - r);
      const Acc* dcam = grad_cam + n * classes * f.pixels;
      const Rows<T> target{out + n * f.image + r * columns, columns};
      // k runs over the classes: W^T . dcam by channels, dcam^T . W by pixels. A float sum cannot
      // wait in a two-byte result, so all classes of a tile are one block.
      const PackedScalars<Acc> a =
          planar ? PackedScalars<Acc>{weight + r, f.channels} : PackedScalars<Acc>{dcam + r, f.pixels};
      const Rows<const Acc> b =
          planar ? Rows<const Acc>{dcam, f.pixels} : Rows<const Acc>{weight, f.channels};
      constexpr int64_t width = kTileVectors * kLanes<Acc>;
      int64_t j = 0;
      for (; j + width <= columns; j += width) {
        gemm_rows<Acc, kTileVectors, false, 0>(a, b.at(0, j), count, classes, target.at(0, j), false,
                                               0);
      }
      for (; j < columns; j += kLanes<Acc>) {
        const int last = static_cast<int>(least<int64_t>(kLanes<Acc>, columns - j));
        gemm_rows<Acc, 1, true, 0>(a, b.at(0, j), count, classes, target.at(0, j), false, last);
      }
    }
  });
}

// ---- gradient with respect to the weight: threads share out the channels, so that every sum over
// images and pixels runs in one order whatever the number of threads ----

template <class Acc, class T>
inline void cam_grad_weight_planar(const Features& f, int64_t classes, const Acc* grad_cam, Acc* out,
                                   const Scheduler& scheduler) {
  constexpr int64_t tile = kDotBlockRows;
  const int64_t tiles = (f.channels + tile - 1) / tile;
  const int64_t grain = kMacsPerThread / (tile * f.images * f.pixels * classes + 1) + 1;
  parallel(scheduler, tiles, grain, [&](int64_t begin, int64_t end) {
    const int64_t d = begin * tile, count = least(f.channels, end * tile) - d;
    for (int64_t c = 0; c < classes; ++c) {
      for (int64_t i = 0; i < count; ++i) out[c * f.channels + d + i] = 0;
    }
    for (int64_t n = 0; n < f.images; ++n) {
      const T* x = static_cast<const T*>(f.data) + n * f.image + d * f.channel;
      const Acc* dcam = grad_cam + n * classes * f.pixels;
      stream_dots<Acc>(Rows<const T>{x, f.channel}, Rows<const Acc>{dcam, f.pixels}, count, classes,
                       f.pixels, Cells<Acc>{out + d, 1, f.channels}, true);
    }
  });
}

template <class Acc, class T>
inline void cam_grad_weight_interleaved(const Features& f, int64_t classes, const Acc* grad_cam,
                                        Acc* out, const Scheduler& scheduler) {
  constexpr int64_t tile = 4 * kTileVectors * kLanes<Acc>;
  const int64_t tiles = (f.channels + tile - 1) / tile;
  const int64_t grain = kMacsPerThread / (tile * f.images * f.pixels * classes + 1) + 1;
  parallel(scheduler, tiles, grain, [&](int64_t begin, int64_t end) {
    const int64_t d = begin * tile, count = least(f.channels, end * tile) - d;
    Scratch<Acc> of_image(classes * count);
    Scratch<Acc> packed(f.pixels * classes);
    for (int64_t c = 0; c < classes; ++c) {
      for (int64_t i = 0; i < count; ++i) out[c * f.channels + d + i] = 0;
    }
    for (int64_t n = 0; n < f.images; ++n) {
      const T* x = static_cast<const T*>(f.data) + n * f.image + d;
      transpose(grad_cam + n * classes * f.pixels, classes, f.pixels, packed.data());
      stream_columns<Acc>(PackedScalars<Acc>{packed.data(), classes}, Rows<const T>{x, f.pixel},
                          classes, count, f.pixels, Rows<Acc>{of_image.data(), count});
      for (int64_t c = 0; c < classes; ++c) {
        for (int64_t i = 0; i < count; ++i) out[c * f.channels + d + i] += of_image[c * count + i];
      }
    }
  });
}

// ---- entry points ----

template <class Acc, class T>
inline void cam_of(const Features& f, const void* weight, int64_t classes, void* cam,
                   const Scheduler& scheduler) {
  const Acc* w = static_cast<const Acc*>(weight);
  Acc* out = static_cast<Acc*>(cam);
  if (f.channels == 0) {
    for (int64_t i = 0; i < f.images * classes * f.pixels; ++i) out[i] = 0;
  } else if (f.pixel == 1) {
    cam_planar<Acc, T>(f, w, classes, out, scheduler);
  } else {
    cam_interleaved<Acc, T>(f, w, classes, out, scheduler);
  }
}

template <class Acc, class T>
inline void cam_backward_of(const Features& f, const void* weight, int64_t classes,
                            const void* grad_cam, void* grad_features, void* grad_weight,
                            const Scheduler& scheduler) {
  const Acc* w = static_cast<const Acc*>(weight);
  const Acc* dcam = static_cast<const Acc*>(grad_cam);
  if (grad_features) {
    // The gradient is dense even where the features are a slice of something larger.
    Features dense = f;
    dense.image = f.channels * f.pixels;
    cam_grad_features<Acc, T>(dense, w, classes, dcam, static_cast<T*>(grad_features), scheduler);
  }
  if (grad_weight) {
    Acc* out = static_cast<Acc*>(grad_weight);
    if (f.pixel == 1) {
      cam_grad_weight_planar<Acc, T>(f, classes, dcam, out, scheduler);
    } else {
      cam_grad_weight_interleaved<Acc, T>(f, classes, dcam, out, scheduler);
    }
  }
}

inline void cam(const Features& f, const void* weight, int64_t classes, void* cam,
                const Scheduler& scheduler) {
  switch (f.dtype) {
    case Dtype::float16:
      return cam_of<float, Half>(f, weight, classes, cam, scheduler);
    case Dtype::bfloat16:
      return cam_of<float, Bfloat>(f, weight, classes, cam, scheduler);
    case Dtype::float32:
      return cam_of<float, float>(f, weight, classes, cam, scheduler);
    case Dtype::float64:
      return cam_of<double, double>(f, weight, classes, cam, scheduler);
  }
}

inline void cam_backward(const Features& f, const void* weight, int64_t classes, const void* dcam,
                         void* dx, void* dw, const Scheduler& scheduler) {
  switch (f.dtype) {
    case Dtype::float16:
      return cam_backward_of<float, Half>(f, weight, classes, dcam, dx, dw, scheduler);
    case Dtype::bfloat16:
      return cam_backward_of<float, Bfloat>(f, weight, classes, dcam, dx, dw, scheduler);
    case Dtype::float32:
      return cam_backward_of<float, float>(f, weight, classes, dcam, dx, dw, scheduler);
    case Dtype::float64:
      return cam_backward_of<double, double>(f, weight, classes, dcam, dx, dw, scheduler);
  }
}

}  // namespace cxr::CXR_ISA
