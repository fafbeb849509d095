// What the CUDA kernels are told: one plain struct a kernel, shared by the host that fills it
// (csrc/cuda_bindings.cpp) and the device code that reads it, so the two cannot disagree.
//
// Compiled by g++, nvcc and NVRTC; the last one has no standard headers, hence the built-in types.
#pragma once

namespace cxr::gpu {

// Threads of a block, by kernel.
constexpr int kMineWarps = 2;  // maps that one block of the warp method mines side by side
constexpr int kMineBlockThreads = 512;
// 128 threads of some 70 registers: seven maps of 32 x 32 a multiprocessor, a batch of 900 in one wave.
constexpr int kBoxThreads = 128;
constexpr int kPixelThreads = 256;     // kernels that treat every pixel alike
constexpr int kPixelsPerBlock = 4096;  // and how many pixels one of their blocks takes
constexpr int kLabelThreads = 256;
constexpr int kLabelSmallArea = 4096;  // images up to this area are labelled in shared memory

// The greatest side of a map that one warp mines, a row a lane (and 64: two rows a lane).
constexpr int kWarpSide = 32;
constexpr int kWideWarpSide = 64;

struct MineParameters {
  const float* cam;                    // [maps, height, width]
  const unsigned char* erased_before;  // the same shape, or null
  const float* bias;                   // [classes], or null
  unsigned char* erased_at;            // [maps, height, width]
  float* extent;                       // [maps, steps, 2]
  float* logits;                       // [maps, steps], or null
  int* parents;                        // block method: [blocks, height * width] scratch
  long long maps;
  int classes, height, width;
  int steps, first_step, connectivity;
  float threshold;
  float per_pixel;  // 1 / (height * width)
};

struct GapParameters {
  const void* cam;                 // [maps, area] float or double
  const unsigned char* erased_at;  // [maps, area]
  void* logits;                    // [maps, steps]; in the backward pass their gradient
  void* grad_cam;                  // backward: [maps, area]
  long long area;
  int chunks;  // backward: blocks of kPixelsPerBlock pixels a map
  int steps;
};

struct AggregateParameters {
  const float* cam;                // [maps, area], or [steps, maps, area]
  const unsigned char* erased_at;  // [maps, area]
  const float* extent;             // [maps, steps, 2]
  float* heatmap;                  // [maps, area]
  long long area;
  long long step_stride;  // from one step's maps to the next: maps * area, or 0
  int chunks;             // blocks of kPixelsPerBlock pixels a map
  int steps;
  int normalized;
};

// One box that may be kept: pixels [x1, x2) x [y1, y2) of the upsampled map.
struct Candidate {
  int x1, y1, x2, y2;
  float score;  // negative once it is out of the race
};

// They travel with the launch, whose parameters have 4096 bytes.
constexpr int kMaxThresholds = 512;

struct BoxParameters {
  const float* heatmap;       // [maps, height, width]
  AggregateParameters first;  // makes the heatmap, where its `heatmap` is not null
  const double* image_sizes;  // [images, 2] height and width, or null
  double image_height, image_width;
  float* boxes;     // [maps, max_boxes, 4]
  float* scores;    // [maps, max_boxes]
  int* counts;      // [maps]
  void* workspace;  // [blocks, workspace_bytes], or null where shared memory holds it
  long long workspace_bytes;
  long long maps;
  int classes, height, width, upsample;
  int max_boxes, peak_only, connectivity;
  double max_overlap;
  int threshold_count;
  float thresholds[kMaxThresholds];
};

struct LabelParameters {
  const unsigned char* mask;  // [images, height, width], 0 is background
  int* labels;                // the same shape
  int* counts;                // general method: [images, chunks] roots, then roots before
  int height, width, chunks, connectivity;
};

}  // namespace cxr::gpu
