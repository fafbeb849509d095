// What the CPU and the CUDA operators check of their arguments, over torch's stable ABI.
//
// cxr_fast/ops checks first and explains what is wrong; these checks keep a direct call of torch.ops
// from reading past a buffer.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "core/kernels.hpp"

namespace cxr::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Shape = std::vector<int64_t>;

inline Tensor dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

inline Shape shape_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return Shape(sizes.begin(), sizes.end());
}

inline void require(const Tensor& t, int64_t dim, ScalarType dtype, const char* name) {
  STD_TORCH_CHECK(t.dim() == dim && t.scalar_type() == dtype, name, ": expected ", dim,
                  " dimensions and another dtype; call the function of cxr_fast.ops, which checks");
}

inline void require_shape(const Tensor& t, const Shape& shape, const char* name) {
  STD_TORCH_CHECK(shape_of(t) == shape, name,
                  " has another shape than its partner; call the function of cxr_fast.ops");
}

template <class T>
T* out(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* in(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

inline Dtype dtype_of(const Tensor& t, const char* name) {
  switch (t.scalar_type()) {
    case ScalarType::Half:
      return Dtype::float16;
    case ScalarType::BFloat16:
      return Dtype::bfloat16;
    case ScalarType::Float:
      return Dtype::float32;
    case ScalarType::Double:
      return Dtype::float64;
    default:
      STD_TORCH_CHECK(false, name, ": expected float16, bfloat16, float32 or float64");
  }
}

inline ScalarType accumulator(Dtype dtype) {
  return dtype == Dtype::float64 ? ScalarType::Double : ScalarType::Float;
}

inline Maps maps_of(const Tensor& t) {
  const auto s = t.sizes();
  STD_TORCH_CHECK(s[2] >= 1 && s[3] >= 1, "maps: expected a height and width of at least 1");
  return {s[0], s[1], s[2], s[3]};
}

inline void check_connectivity(int64_t connectivity) {
  STD_TORCH_CHECK(connectivity == 4 || connectivity == 8, "connectivity: expected 4 or 8");
}

inline MiningOptions mining_options(int64_t steps, double threshold, int64_t connectivity,
                                    int64_t first_step) {
  STD_TORCH_CHECK(steps >= 1 && first_step >= 1 && first_step + steps <= 256,
                  "steps: expected 1 to 255 in all");
  const float cut = static_cast<float>(threshold);  // of the range, so that the peak lies above it
  STD_TORCH_CHECK(cut > 0.0f && cut < 1.0f, "threshold: expected a number above 0 and below 1");
  check_connectivity(connectivity);
  return {static_cast<int>(steps), static_cast<float>(threshold), static_cast<int>(connectivity),
          static_cast<int>(first_step)};
}

inline void check_steps(int64_t steps) {
  STD_TORCH_CHECK(steps >= 1 && steps <= 255, "steps: expected 1 to 255");
}

inline Mode mode_of(const std::string& mode) {
  STD_TORCH_CHECK(mode == "normalized" || mode == "raw", "mode: expected normalized or raw");
  return mode == "raw" ? Mode::raw : Mode::normalized;
}

inline void check_box_options(int64_t images, const std::optional<Tensor>& image_sizes,
                              const std::string& select, int64_t max_boxes, int64_t upsample,
                              int64_t connectivity) {
  STD_TORCH_CHECK(select == "components" || select == "peak", "select: components or peak");
  STD_TORCH_CHECK(max_boxes >= 1 && max_boxes <= 255, "max_boxes: expected 1 to 255");
  STD_TORCH_CHECK(upsample >= 1 && upsample <= 64, "upsample: expected 1 to 64");
  check_connectivity(connectivity);
  if (image_sizes) {
    require(*image_sizes, 2, ScalarType::Double, "image_size");
    require_shape(*image_sizes, {images, 2}, "image_size");
  }
}

// For the partner of a tensor: the dispatcher takes a kernel by one of them.
inline void require_device(const Tensor& t, const Tensor& partner, const char* name) {
  STD_TORCH_CHECK(
      t.is_cuda() == partner.is_cuda() && t.get_device_index() == partner.get_device_index(), name,
      " is on another device than its partner; call the function of cxr_fast.ops");
}

inline void check_erased_at(const Tensor& erased_at, const Tensor& maps) {
  require(erased_at, 4, ScalarType::Byte, "erased_at");
  require_shape(erased_at, shape_of(maps), "erased_at");
  require_device(erased_at, maps, "erased_at");
}

inline void check_masked_gap(const Tensor& cam, const Tensor& erased_at, int64_t steps) {
  require(cam, 4, accumulator(dtype_of(cam, "cam")), "cam");
  check_erased_at(erased_at, cam);
  check_steps(steps);
}

inline void check_masked_gap_backward(const Tensor& grad, const Tensor& erased_at) {
  require(grad, 3, accumulator(dtype_of(grad, "grad")), "grad");
  require(erased_at, 4, ScalarType::Byte, "erased_at");
  check_steps(grad.size(2));
  require_shape(grad, {erased_at.size(0), erased_at.size(1), grad.size(2)}, "grad");
  require_device(erased_at, grad, "erased_at");
}

// True if `cam` holds one map a step.
inline bool check_aggregate_heatmap(const Tensor& cam, const Tensor& erased_at, const Tensor& extent) {
  const bool per_step = cam.dim() == 5;
  require(cam, per_step ? 5 : 4, ScalarType::Float, "cam");
  require(erased_at, 4, ScalarType::Byte, "erased_at");
  require(extent, 4, ScalarType::Float, "extent");
  const int64_t steps = extent.size(2);
  check_steps(steps);
  Shape shape = shape_of(erased_at);
  require_shape(extent, {shape[0], shape[1], steps, 2}, "extent");
  if (per_step) shape.insert(shape.begin(), steps);
  require_shape(cam, shape, "cam");
  require_device(erased_at, cam, "erased_at");
  require_device(extent, cam, "extent");
  return per_step;
}

inline void check_bias(const Tensor& bias, const Tensor& cam) {
  require(bias, 1, ScalarType::Float, "bias");
  require_shape(bias, {cam.size(1)}, "bias");
  require_device(bias, cam, "bias");
}

// Hands text to Python, which calls through ctypes with room for `size` bytes.
inline bool answer(const std::string& text, bool good, char* into, size_t size) {
  const size_t length = std::min(text.size(), size - 1);
  std::memcpy(into, text.data(), length);
  into[length] = '\0';
  return good;
}

// The shape of a batch of masks [..., H, W].
struct MaskBatch {
  int64_t images, height, width;
};

inline MaskBatch check_mask(const Tensor& mask, int64_t connectivity) {
  STD_TORCH_CHECK(mask.dim() >= 2 && mask.scalar_type() == ScalarType::Bool,
                  "mask: expected bool [..., H, W]");
  check_connectivity(connectivity);
  const int64_t height = mask.size(mask.dim() - 2), width = mask.size(mask.dim() - 1);
  STD_TORCH_CHECK(height <= 32768 && width <= 32768, "mask: expected sides of at most 32768");
  return {mask.numel() > 0 ? mask.numel() / (height * width) : 0, height, width};
}

}  // namespace cxr::binding
