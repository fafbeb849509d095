// The CPU kernels of torch.ops.cxr_fast, over torch's stable ABI: one binary for every torch from 2.11.
//
// The schemas are declared in Python (cxr_fast/ops), which also checks arguments and explains what is
// wrong with them. The checks here keep a direct call of torch.ops from reading past a buffer.
#include <exception>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "torch_arguments.hpp"

namespace {

using namespace cxr::binding;

// ---- tensors ----

Tensor make(const Shape& shape, ScalarType dtype) { return torch::stable::empty(shape, dtype); }

// ---- threads: torch's own pool, hence torch.get_num_threads() ----

const cxr::Scheduler& scheduler() {
  static const cxr::Scheduler torch_pool{
      [](void*, int64_t items, int64_t grain, cxr::Scheduler::Body body, void* context) {
        torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
          if (begin < end) body(context, begin, end);
        });
      },
      nullptr};
  return torch_pool;
}

// ---- cam ----

// Features that a kernel can read in place, or else a dense copy (kept alive in `kept`).
cxr::Features features_of(const Tensor& features, Tensor& kept) {
  kept = features;
  if (features.numel() == 0) {  // strides of nothing are anything
    const int64_t pixels = features.size(2) * features.size(3);
    return {
        nullptr, dtype_of(features, "features"), features.size(0), features.size(1), pixels, 0, pixels,
        1};
  }
  for (int attempt = 0;; ++attempt) {
    const auto s = kept.sizes();
    const auto stride = kept.strides();
    // A stride along an axis of one element means nothing.
    const int64_t pixel = s[3] > 1 ? stride[3] : s[2] > 1 ? stride[2] : 1;
    const int64_t channel = s[1] > 1 ? stride[1] : 1;
    const bool rows_follow = s[2] <= 1 || s[3] <= 1 || stride[2] == s[3] * stride[3];
    if (rows_follow && (pixel == 1 || channel == 1) && pixel > 0 && channel > 0) {
      return {kept.const_data_ptr(),
              dtype_of(kept, "features"),
              s[0],
              s[1],
              s[2] * s[3],
              stride[0],
              channel,
              pixel};
    }
    STD_TORCH_CHECK(attempt == 0, "features: a dense copy has unexpected strides");
    kept = torch::stable::contiguous(kept);
  }
}

void check_cam(const Tensor& features, const Tensor& weight) {
  STD_TORCH_CHECK(features.dim() == 4, "features: expected [N, D, H, W]");
  require(weight, 2, accumulator(dtype_of(features, "features")), "weight");
  STD_TORCH_CHECK(weight.size(1) == features.size(1),
                  "weight: expected as many columns as features have channels");
}

Tensor cam(const Tensor& features, const Tensor& weight) {
  check_cam(features, weight);
  Tensor kept;
  const cxr::Features f = features_of(features, kept);
  const Tensor w = dense(weight);
  Tensor result =
      make({f.images, weight.size(0), features.size(2), features.size(3)}, accumulator(f.dtype));
  if (result.numel() > 0) {
    cxr::kernels().cam(f, w.const_data_ptr(), weight.size(0), result.mutable_data_ptr(), scheduler());
  }
  return result;
}

std::tuple<Tensor, Tensor> cam_backward(const Tensor& grad, const Tensor& features,
                                        const Tensor& weight, bool need_features, bool need_weight) {
  check_cam(features, weight);
  require(grad, 4, weight.scalar_type(), "grad");
  require_shape(grad, {features.size(0), weight.size(0), features.size(2), features.size(3)}, "grad");
  Tensor kept;
  const cxr::Features f = features_of(features, kept);
  const Tensor w = dense(weight), dcam = dense(grad);
  Tensor grad_features = make({0}, features.scalar_type()), grad_weight = make({0}, w.scalar_type());
  if (need_features) {
    const auto layout = f.pixel == 1 ? torch::headeronly::MemoryFormat::Contiguous
                                     : torch::headeronly::MemoryFormat::ChannelsLast;
    grad_features = torch::stable::empty(shape_of(features), features.scalar_type(), std::nullopt,
                                         std::nullopt, std::nullopt, layout);
  }
  if (need_weight) grad_weight = make(shape_of(weight), w.scalar_type());
  cxr::kernels().cam_backward(
      f, w.const_data_ptr(), weight.size(0), dcam.const_data_ptr(),
      need_features && features.numel() > 0 ? grad_features.mutable_data_ptr() : nullptr,
      need_weight && weight.numel() > 0 ? grad_weight.mutable_data_ptr() : nullptr, scheduler());
  return {grad_features, grad_weight};
}

// ---- mining ----

std::tuple<Tensor, Tensor> mine_attention(const Tensor& cam, int64_t steps, double threshold,
                                          int64_t connectivity,
                                          const std::optional<Tensor>& erased_before,
                                          int64_t first_step) {
  require(cam, 4, ScalarType::Float, "cam");
  const cxr::MiningOptions options = mining_options(steps, threshold, connectivity, first_step);
  const Tensor h = dense(cam);
  std::optional<Tensor> before;
  if (erased_before) {
    check_erased_at(*erased_before, cam);
    before = dense(*erased_before);
  }
  Tensor erased_at = make(shape_of(cam), ScalarType::Byte);
  Tensor extent = make({cam.size(0), cam.size(1), steps, 2}, ScalarType::Float);
  cxr::kernels().mine_attention(maps_of(h), in<float>(h), before ? in<uint8_t>(*before) : nullptr,
                                options, out<uint8_t>(erased_at), out<float>(extent), scheduler());
  return {erased_at, extent};
}

Tensor masked_gap(const Tensor& cam, const Tensor& erased_at, int64_t steps) {
  check_masked_gap(cam, erased_at, steps);
  const cxr::Dtype dtype = dtype_of(cam, "cam");
  const Tensor h = dense(cam), erased = dense(erased_at);
  Tensor logits = make({cam.size(0), cam.size(1), steps}, cam.scalar_type());
  cxr::kernels().masked_gap(maps_of(h), dtype, h.const_data_ptr(), in<uint8_t>(erased),
                            static_cast<int>(steps), logits.mutable_data_ptr(), scheduler());
  return logits;
}

Tensor masked_gap_backward(const Tensor& grad, const Tensor& erased_at) {
  check_masked_gap_backward(grad, erased_at);
  const cxr::Dtype dtype = dtype_of(grad, "grad");
  const Tensor dz = dense(grad), erased = dense(erased_at);
  Tensor grad_cam = make(shape_of(erased_at), grad.scalar_type());
  cxr::kernels().masked_gap_backward(maps_of(erased), dtype, dz.const_data_ptr(), in<uint8_t>(erased),
                                     static_cast<int>(grad.size(2)), grad_cam.mutable_data_ptr(),
                                     scheduler());
  return grad_cam;
}

Tensor aggregate_heatmap(const Tensor& cam, const Tensor& erased_at, const Tensor& extent,
                         const std::string& mode) {
  const bool per_step = check_aggregate_heatmap(cam, erased_at, extent);
  const Tensor h = dense(cam), erased = dense(erased_at), limits = dense(extent);
  Tensor heatmap = make(shape_of(erased_at), ScalarType::Float);
  cxr::kernels().aggregate_heatmap(maps_of(erased), in<float>(h), per_step, in<uint8_t>(erased),
                                   in<float>(limits), static_cast<int>(extent.size(2)), mode_of(mode),
                                   out<float>(heatmap), scheduler());
  return heatmap;
}

// ---- boxes ----

// The arguments of heatmap_boxes, with the memory that BoxOptions points into.
struct BoxArguments {
  std::vector<float> thresholds;
  std::vector<double> sizes;
  cxr::BoxOptions options;

  BoxArguments(int64_t images, const std::optional<Tensor>& image_sizes, int64_t image_height,
               int64_t image_width, const std::vector<double>& cuts, const std::string& select,
               int64_t max_boxes, double max_overlap, int64_t upsample, int64_t connectivity)
      : thresholds(cuts.begin(), cuts.end()) {
    check_box_options(images, image_sizes, select, max_boxes, upsample, connectivity);
    if (image_sizes) {
      const Tensor d = dense(*image_sizes);
      sizes.assign(in<double>(d), in<double>(d) + 2 * images);
    } else {
      sizes = {static_cast<double>(image_height), static_cast<double>(image_width)};
    }
    options = {thresholds.data(),
               static_cast<int>(thresholds.size()),
               select == "peak" ? cxr::Select::peak : cxr::Select::components,
               static_cast<int>(max_boxes),
               max_overlap,
               static_cast<int>(upsample),
               static_cast<int>(connectivity),
               sizes.data(),
               image_sizes.has_value()};
  }
};

std::tuple<Tensor, Tensor, Tensor> heatmap_boxes(
    const Tensor& heatmap, const std::optional<Tensor>& image_sizes, int64_t image_height,
    int64_t image_width, const std::vector<double>& thresholds, const std::string& select,
    int64_t max_boxes, double max_overlap, int64_t upsample, int64_t connectivity) {
  require(heatmap, 4, ScalarType::Float, "heatmap");
  const Tensor h = dense(heatmap);
  const cxr::Maps maps = maps_of(h);
  const BoxArguments arguments(maps.images, image_sizes, image_height, image_width, thresholds, select,
                               max_boxes, max_overlap, upsample, connectivity);
  Tensor boxes = make({maps.images, maps.classes, max_boxes, 4}, ScalarType::Float);
  Tensor scores = make({maps.images, maps.classes, max_boxes}, ScalarType::Float);
  Tensor counts = make({maps.images, maps.classes}, ScalarType::Int);
  cxr::kernels().heatmap_boxes(maps, in<float>(h), arguments.options, out<float>(boxes),
                               out<float>(scores), out<int32_t>(counts), scheduler());
  return {boxes, scores, counts};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mine_cam(
    const Tensor& cam, const std::optional<Tensor>& bias, int64_t steps, double threshold,
    int64_t connectivity, const std::string& mode, const std::optional<Tensor>& image_sizes,
    int64_t image_height, int64_t image_width, const std::vector<double>& thresholds,
    const std::string& select, int64_t max_boxes, double max_overlap, int64_t upsample) {
  require(cam, 4, ScalarType::Float, "cam");
  const Tensor h = dense(cam);
  const cxr::Maps maps = maps_of(h);
  std::optional<Tensor> b;
  if (bias) {
    check_bias(*bias, cam);
    b = dense(*bias);
  }
  const cxr::MiningOptions mining = mining_options(steps, threshold, connectivity, 1);
  const BoxArguments arguments(maps.images, image_sizes, image_height, image_width, thresholds, select,
                               max_boxes, max_overlap, upsample, connectivity);
  const int64_t n = maps.images, c = maps.classes;
  Tensor logits = make({n, c, steps}, ScalarType::Float);
  Tensor erased_at = make(shape_of(h), ScalarType::Byte);
  Tensor extent = make({n, c, steps, 2}, ScalarType::Float);
  Tensor heatmap = make(shape_of(h), ScalarType::Float);
  Tensor boxes = make({n, c, max_boxes, 4}, ScalarType::Float);
  Tensor scores = make({n, c, max_boxes}, ScalarType::Float);
  Tensor counts = make({n, c}, ScalarType::Int);
  const cxr::MiningOutputs outputs{out<float>(logits),  out<uint8_t>(erased_at), out<float>(extent),
                                   out<float>(heatmap), out<float>(boxes),       out<float>(scores),
                                   out<int32_t>(counts)};
  cxr::kernels().mine_cam(maps, in<float>(h), b ? in<float>(*b) : nullptr, mining, mode_of(mode),
                          arguments.options, outputs, scheduler());
  return {logits, erased_at, extent, heatmap, boxes, scores, counts};
}

Tensor label_components(const Tensor& mask, int64_t connectivity) {
  const MaskBatch batch = check_mask(mask, connectivity);
  const Tensor m = dense(mask);
  Tensor labels = make(shape_of(mask), ScalarType::Int);
  if (batch.images > 0) {
    cxr::kernels().label_components(batch.images, batch.height, batch.width, in<uint8_t>(m),
                                    static_cast<int>(connectivity), out<int32_t>(labels), scheduler());
  }
  return labels;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(cxr_fast, CPU, m) {
  m.impl("cam", TORCH_BOX(&cam));
  m.impl("cam_backward", TORCH_BOX(&cam_backward));
  m.impl("mine_attention", TORCH_BOX(&mine_attention));
  m.impl("masked_gap", TORCH_BOX(&masked_gap));
  m.impl("masked_gap_backward", TORCH_BOX(&masked_gap_backward));
  m.impl("aggregate_heatmap", TORCH_BOX(&aggregate_heatmap));
  m.impl("heatmap_boxes", TORCH_BOX(&heatmap_boxes));
  m.impl("mine_cam", TORCH_BOX(&mine_cam));
  m.impl("label_components", TORCH_BOX(&label_components));
}

// The name of the kernels this processor runs, for `cxr-fast env` and the tests; false with the reason
// if there is none. Called through ctypes, which no exception may cross.
extern "C" __attribute__((visibility("default"))) bool cxr_fast_isa(char* text, size_t size) {
  try {
    return answer(cxr::kernels().name, true, text, size);
  } catch (const std::exception& error) {
    return answer(error.what(), false, text, size);
  }
}
