// The CPU kernels as plain functions over raw pointers: what the bindings call, and nothing of torch
// or Python. One table of them is compiled for every instruction set (csrc/kernels.cpp); the best one
// that this processor runs is chosen once, at run time.
#pragma once

#include <cstdint>

namespace cxr {

enum class Dtype { float16, bfloat16, float32, float64 };

// How work is spread over threads. `run` calls body(context, begin, end) on disjoint ranges that
// cover [0, items), each at least `grain` long, and returns when all are done. Torch's pool serves
// the torch binding, a pool of our own the numpy one.
struct Scheduler {
  using Body = void (*)(void* context, int64_t begin, int64_t end);
  void (*run)(void* pool, int64_t items, int64_t grain, Body body, void* context);
  void* pool;
};

// Features as they lie in memory, no copy: pixel p of channel d of image n is
// data[n * image + d * channel + p * pixel]. One of `channel` and `pixel` is 1.
struct Features {
  const void* data;
  Dtype dtype;
  int64_t images, channels, pixels;
  int64_t image, channel, pixel;
};

struct MiningOptions {
  int steps;
  float threshold;
  int connectivity;  // 4 or 8
  int first_step;
};

enum class Mode { normalized, raw };
enum class Select { components, peak };

struct BoxOptions {
  const float* thresholds;
  int threshold_count;
  Select select;
  int max_boxes;
  double max_overlap;
  int upsample;
  int connectivity;
  // [images, 2] height and width, or one row for all images (`sizes_per_image` false).
  const double* image_sizes;
  bool sizes_per_image;
};

// [images, classes, height, width]
struct Maps {
  int64_t images, classes, height, width;
  [[gnu::always_inline]] int64_t count() const { return images * classes; }
  [[gnu::always_inline]] int64_t area() const { return height * width; }
};

// Outputs of the fused pass over given CAMs; `logits` and `bias` are float32.
struct MiningOutputs {
  float* logits;       // [N, C, T]
  uint8_t* erased_at;  // [N, C, H, W]
  float* extent;       // [N, C, T, 2]
  float* heatmap;      // [N, C, H, W]
  float* boxes;        // [N, C, K, 4]
  float* scores;       // [N, C, K]
  int32_t* counts;     // [N, C]
};

struct Kernels {
  const char* name;

  // cam[n,c,p] = sum over d of weight[c,d] * X[n,d,p]. weight [classes, channels] and cam are float,
  // or double where the features are double.
  void (*cam)(const Features& features, const void* weight, int64_t classes, void* cam,
              const Scheduler& scheduler);
  // dX = W^T . dcam in the dtype and layout of `features` (grad_features has the same strides but is
  // dense), dW = dcam . X^T; either pointer may be null. dcam [N, C, pixels] has cam's dtype.
  void (*cam_backward)(const Features& features, const void* weight, int64_t classes,
                       const void* grad_cam, void* grad_features, void* grad_weight,
                       const Scheduler& scheduler);
  void (*mine_attention)(const Maps& maps, const float* cam, const uint8_t* erased_before,
                         const MiningOptions& options, uint8_t* erased_at, float* extent,
                         const Scheduler& scheduler);
  // dtype float32 or float64, of cam, logits and the gradients.
  void (*masked_gap)(const Maps& maps, Dtype dtype, const void* cam, const uint8_t* erased_at,
                     int steps, void* logits, const Scheduler& scheduler);
  void (*masked_gap_backward)(const Maps& maps, Dtype dtype, const void* grad_logits,
                              const uint8_t* erased_at, int steps, void* grad_cam,
                              const Scheduler& scheduler);
  // `cam` holds one map a step ([T, N, C, H, W]) when per_step.
  void (*aggregate_heatmap)(const Maps& maps, const float* cam, bool per_step, const uint8_t* erased_at,
                            const float* extent, int steps, Mode mode, float* heatmap,
                            const Scheduler& scheduler);
  void (*heatmap_boxes)(const Maps& maps, const float* heatmap, const BoxOptions& options, float* boxes,
                        float* scores, int32_t* counts, const Scheduler& scheduler);
  // mask: bytes, 0 is background.
  void (*label_components)(int64_t images, int64_t height, int64_t width, const uint8_t* mask,
                           int connectivity, int32_t* labels, const Scheduler& scheduler);
  // Everything after the CAM, map by map, while a map lies in the cache.
  void (*mine_cam)(const Maps& maps, const float* cam, const float* bias, const MiningOptions& mining,
                   Mode mode, const BoxOptions& boxes, const MiningOutputs& outputs,
                   const Scheduler& scheduler);
  // Grey pixels [height, width], 1 or 2 bytes each, to float [size, size] times `scale`: bilinear,
  // antialiased. One thread: images are resized by the threads that decode them.
  void (*resize)(const void* pixels, int bytes, int64_t height, int64_t width, float scale, float* out,
                 int64_t size);
  // Rows of a PNG as they were inflated, a filter type and row_bytes bytes each, to samples
  // [height, row_bytes]; samples of 2 bytes leave in the order of this machine. 1 to 4 bytes a pixel.
  // False where a filter type is above 4. One thread.
  bool (*png_unfilter)(const uint8_t* filtered, int64_t height, int64_t row_bytes, int pixel_bytes,
                       int sample_bytes, uint8_t* out);
};

// The table for this processor. CXR_FAST_ISA=portable|avx2|avx512 asks for a lesser one (tests,
// benchmarks); a name that this build or processor lacks throws std::runtime_error.
const Kernels& kernels();

}  // namespace cxr
