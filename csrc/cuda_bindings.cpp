// The CUDA kernels of torch.ops.cxr_fast: allocate, fill in a struct of parameters, enqueue. Nothing
// here waits for the device, and no allocation depends on data, so that all of it can be captured in a
// CUDA graph (once the kernels have been loaded by a first call).
//
// `cam` is not among them: its kernels are Triton's (cxr_fast/kernels/cam.py).
#include <dlfcn.h>

#include <algorithm>
#include <exception>
#include <tuple>

#include "gpu/driver.hpp"
#include "gpu/launch.hpp"
#include "parameters.hpp"
#include "torch_arguments.hpp"

namespace {

using namespace cxr::binding;
namespace gpu = cxr::gpu;

// Scratch of methods whose blocks each need some for a map at a time.
constexpr int64_t kMostScratchBytes = int64_t{1} << 30;

Tensor make(const Tensor& like, const Shape& shape, ScalarType dtype) {
  return torch::stable::new_empty(like, shape, dtype);
}

// Where an operator runs: the device of its first tensor, and torch's current stream there.
struct Place {
  int device;
  void* stream = nullptr;

  explicit Place(const Tensor& first) : device(first.get_device_index()) {
    using GetStream = int32_t (*)(int32_t, void**);
    static const auto get_stream =
        reinterpret_cast<GetStream>(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"));
    STD_TORCH_CHECK(get_stream, "this torch has no CUDA, but a CUDA operator was called");
    STD_TORCH_CHECK(get_stream(device, &stream) == 0, "torch has no current CUDA stream");
  }

  template <class Parameters>
  void launch(const gpu::Kernel& kernel, const gpu::Grid& grid, Parameters& parameters) const {
    gpu::launch(device, stream, kernel, grid, &parameters);
  }
};

int64_t blocks_for(int64_t items, int64_t each) { return (items + each - 1) / each; }

// Maps of more pixels than a 32-bit index tells apart are beyond every kernel.
int checked_area(int64_t height, int64_t width, int64_t factor = 1) {
  STD_TORCH_CHECK(height * factor <= 32768 && width * factor <= 32768,
                  "maps: the CUDA kernels take sides up to 32768 (after upsampling), but these have ",
                  height * factor, " x ", width * factor);
  return static_cast<int>(height * width);
}

// ---- mining ----

struct MiningInputs {
  Tensor cam;
  std::optional<Tensor> erased_before, bias;
};

// Enqueues mining; `logits` may be null.
void enqueue_mining(const Place& place, const MiningInputs& inputs, const cxr::MiningOptions& options,
                    Tensor& erased_at, Tensor& extent, Tensor* logits) {
  const cxr::Maps maps = maps_of(inputs.cam);
  const int64_t area = checked_area(maps.height, maps.width);
  gpu::MineParameters p{};
  p.cam = in<float>(inputs.cam);
  p.erased_before = inputs.erased_before ? in<uint8_t>(*inputs.erased_before) : nullptr;
  p.bias = inputs.bias ? in<float>(*inputs.bias) : nullptr;
  p.erased_at = out<uint8_t>(erased_at);
  p.extent = out<float>(extent);
  p.logits = logits ? out<float>(*logits) : nullptr;
  p.maps = maps.count();
  p.classes = static_cast<int>(maps.classes);
  p.height = static_cast<int>(maps.height);
  p.width = static_cast<int>(maps.width);
  p.steps = options.steps;
  p.first_step = options.first_step;
  p.connectivity = options.connectivity;
  p.threshold = options.threshold;
  p.per_pixel = 1.0f / static_cast<float>(area);
  if (maps.count() == 0) return;
  const int64_t side = std::max(maps.height, maps.width);
  if (side <= gpu::kWideWarpSide) {
    const char* name = side <= gpu::kWarpSide ? "mine_attention_32" : "mine_attention_64";
    place.launch({"mine_attention", name},
                 {blocks_for(maps.count(), gpu::kMineWarps), 32 * gpu::kMineWarps}, p);
    return;
  }
  const int64_t side_by_side = std::min<int64_t>(4 * gpu::limits_of(place.device).multiprocessors,
                                                 std::max<int64_t>(kMostScratchBytes / (4 * area), 1));
  const int64_t blocks = std::min(maps.count(), side_by_side);
  Tensor parents = make(inputs.cam, {blocks, area}, ScalarType::Int);
  p.parents = out<int32_t>(parents);
  place.launch({"mine_attention", "mine_attention_any"}, {blocks, gpu::kMineBlockThreads}, p);
}

std::tuple<Tensor, Tensor> mine_attention(const Tensor& cam, int64_t steps, double threshold,
                                          int64_t connectivity,
                                          const std::optional<Tensor>& erased_before,
                                          int64_t first_step) {
  require(cam, 4, ScalarType::Float, "cam");
  const cxr::MiningOptions options = mining_options(steps, threshold, connectivity, first_step);
  MiningInputs inputs{dense(cam), std::nullopt, std::nullopt};
  if (erased_before) {
    check_erased_at(*erased_before, cam);
    inputs.erased_before = dense(*erased_before);
  }
  Tensor erased_at = make(cam, shape_of(cam), ScalarType::Byte);
  Tensor extent = make(cam, {cam.size(0), cam.size(1), steps, 2}, ScalarType::Float);
  enqueue_mining(Place(cam), inputs, options, erased_at, extent, nullptr);
  return {erased_at, extent};
}

// ---- masked GAP ----

gpu::GapParameters gap_parameters(const cxr::Maps& maps, const Tensor& erased_at, int64_t steps) {
  gpu::GapParameters p{};
  p.erased_at = in<uint8_t>(erased_at);
  p.area = maps.area();
  p.chunks = static_cast<int>(blocks_for(p.area, gpu::kPixelsPerBlock));
  p.steps = static_cast<int>(steps);
  return p;
}

Tensor masked_gap(const Tensor& cam, const Tensor& erased_at, int64_t steps) {
  check_masked_gap(cam, erased_at, steps);
  const bool wide = cam.scalar_type() == ScalarType::Double;
  const Tensor h = dense(cam), erased = dense(erased_at);
  const cxr::Maps maps = maps_of(h);
  Tensor logits = make(cam, {cam.size(0), cam.size(1), steps}, cam.scalar_type());
  gpu::GapParameters p = gap_parameters(maps, erased, steps);
  p.cam = h.const_data_ptr();
  p.logits = logits.mutable_data_ptr();
  Place(cam).launch({"masked_gap", wide ? "masked_gap_double" : "masked_gap_float"},
                    {maps.count(), gpu::kPixelThreads}, p);
  return logits;
}

Tensor masked_gap_backward(const Tensor& grad, const Tensor& erased_at) {
  check_masked_gap_backward(grad, erased_at);
  const bool wide = grad.scalar_type() == ScalarType::Double;
  const Tensor dz = dense(grad), erased = dense(erased_at);
  const cxr::Maps maps = maps_of(erased);
  Tensor grad_cam = make(grad, shape_of(erased_at), grad.scalar_type());
  gpu::GapParameters p = gap_parameters(maps, erased, grad.size(2));
  p.logits = const_cast<void*>(dz.const_data_ptr());
  p.grad_cam = grad_cam.mutable_data_ptr();
  Place(grad).launch({"masked_gap", wide ? "masked_gap_backward_double" : "masked_gap_backward_float"},
                     {maps.count() * p.chunks, gpu::kPixelThreads}, p);
  return grad_cam;
}

// ---- heatmap ----

gpu::AggregateParameters aggregate_parameters(const Tensor& cam, bool per_step, const Tensor& erased_at,
                                              const Tensor& extent, cxr::Mode mode, Tensor& heatmap) {
  const cxr::Maps maps = maps_of(erased_at);
  gpu::AggregateParameters p{};
  p.cam = in<float>(cam);
  p.erased_at = in<uint8_t>(erased_at);
  p.extent = in<float>(extent);
  p.heatmap = out<float>(heatmap);
  p.area = maps.area();
  p.step_stride = per_step ? maps.count() * maps.area() : 0;
  p.chunks = static_cast<int>(blocks_for(p.area, gpu::kPixelsPerBlock));
  p.steps = static_cast<int>(extent.size(2));
  p.normalized = mode == cxr::Mode::normalized;
  return p;
}

Tensor aggregate_heatmap(const Tensor& cam, const Tensor& erased_at, const Tensor& extent,
                         const std::string& mode) {
  const bool per_step = check_aggregate_heatmap(cam, erased_at, extent);
  const Tensor h = dense(cam), erased = dense(erased_at), limits = dense(extent);
  Tensor heatmap = make(cam, shape_of(erased_at), ScalarType::Float);
  gpu::AggregateParameters p =
      aggregate_parameters(h, per_step, erased, limits, mode_of(mode), heatmap);
  Place(cam).launch({"aggregate_heatmap", "aggregate_heatmap"},
                    {maps_of(erased).count() * p.chunks, gpu::kPixelThreads}, p);
  return heatmap;
}

// ---- boxes ----

struct BoxOutputs {
  Tensor boxes, scores, counts;

  BoxOutputs(const Tensor& like, const cxr::Maps& maps, int64_t max_boxes)
      : boxes(make(like, {maps.images, maps.classes, max_boxes, 4}, ScalarType::Float)),
        scores(make(like, {maps.images, maps.classes, max_boxes}, ScalarType::Float)),
        counts(make(like, {maps.images, maps.classes}, ScalarType::Int)) {}
};

// The options as the kernel takes them; `kept_sizes` owns what they point to.
gpu::BoxParameters box_parameters(const cxr::Maps& maps, const Tensor& like,
                                  const std::optional<Tensor>& image_sizes, int64_t image_height,
                                  int64_t image_width, const std::vector<double>& thresholds,
                                  const std::string& select, int64_t max_boxes, double max_overlap,
                                  int64_t upsample, int64_t connectivity,
                                  std::optional<Tensor>& kept_sizes) {
  check_box_options(maps.images, image_sizes, select, max_boxes, upsample, connectivity);
  STD_TORCH_CHECK(thresholds.size() <= gpu::kMaxThresholds,
                  "thresholds: the CUDA kernel takes at most ", gpu::kMaxThresholds, ", but ",
                  thresholds.size(), " came");
  gpu::BoxParameters p{};
  if (image_sizes) {
    require_device(*image_sizes, like, "image_size");
    kept_sizes = dense(*image_sizes);
    p.image_sizes = in<double>(*kept_sizes);
  }
  p.image_height = static_cast<double>(image_height);
  p.image_width = static_cast<double>(image_width);
  p.maps = maps.count();
  p.classes = static_cast<int>(maps.classes);
  p.height = static_cast<int>(maps.height);
  p.width = static_cast<int>(maps.width);
  p.upsample = static_cast<int>(upsample);
  p.max_boxes = static_cast<int>(max_boxes);
  p.peak_only = select == "peak";
  p.connectivity = static_cast<int>(connectivity);
  p.max_overlap = max_overlap;
  p.threshold_count = static_cast<int>(thresholds.size());
  for (size_t i = 0; i < thresholds.size(); ++i) p.thresholds[i] = static_cast<float>(thresholds[i]);
  return p;
}

// As many components as a map can have at one threshold: every other pixel, or with corners every
// other pixel of every other row.
int64_t most_components(const gpu::BoxParameters& p, int64_t height, int64_t width) {
  if (p.peak_only) return 1;
  return p.connectivity == 8 ? blocks_for(height, 2) * blocks_for(width, 2)
                             : blocks_for(height * width, 2);
}

void enqueue_boxes(const Place& place, const Tensor& heatmap, gpu::BoxParameters& p,
                   BoxOutputs& outputs) {
  checked_area(p.height, p.width, p.upsample);
  const int64_t height = int64_t{p.height} * p.upsample, width = int64_t{p.width} * p.upsample;
  const int64_t capacity = most_components(p, height, width) * p.threshold_count;
  const int64_t source = p.upsample > 1 ? int64_t{p.height} * p.width : 0;
  const int64_t bytes = 8 * height * width + 4 * source + capacity * int64_t{sizeof(gpu::Candidate)};
  p.heatmap = in<float>(heatmap);
  p.boxes = out<float>(outputs.boxes);
  p.scores = out<float>(outputs.scores);
  p.counts = out<int32_t>(outputs.counts);
  p.workspace_bytes = blocks_for(bytes, 16) * 16;
  if (p.maps == 0) return;
  const gpu::Limits& limits = gpu::limits_of(place.device);
  if (p.workspace_bytes <= limits.shared_bytes / 2 - 1024) {  // two blocks a multiprocessor at least
    place.launch({"heatmap_boxes", "heatmap_boxes_shared"},
                 {std::min<int64_t>(p.maps, 2147483647), gpu::kBoxThreads, p.workspace_bytes}, p);
    return;
  }
  const int64_t side_by_side = std::min<int64_t>(
      4 * limits.multiprocessors, std::max<int64_t>(kMostScratchBytes / p.workspace_bytes, 1));
  const int64_t blocks = std::min<int64_t>(p.maps, side_by_side);
  Tensor workspace = make(heatmap, {blocks, p.workspace_bytes}, ScalarType::Byte);
  p.workspace = workspace.mutable_data_ptr();
  place.launch({"heatmap_boxes", "heatmap_boxes_global"}, {blocks, gpu::kBoxThreads}, p);
}

std::tuple<Tensor, Tensor, Tensor> heatmap_boxes(
    const Tensor& heatmap, const std::optional<Tensor>& image_sizes, int64_t image_height,
    int64_t image_width, const std::vector<double>& thresholds, const std::string& select,
    int64_t max_boxes, double max_overlap, int64_t upsample, int64_t connectivity) {
  require(heatmap, 4, ScalarType::Float, "heatmap");
  const Tensor h = dense(heatmap);
  const cxr::Maps maps = maps_of(h);
  std::optional<Tensor> sizes;
  gpu::BoxParameters p = box_parameters(maps, h, image_sizes, image_height, image_width, thresholds,
                                        select, max_boxes, max_overlap, upsample, connectivity, sizes);
  BoxOutputs outputs(h, maps, max_boxes);
  enqueue_boxes(Place(h), h, p, outputs);
  return {outputs.boxes, outputs.scores, outputs.counts};
}

// ---- everything after the CAM, in two launches ----

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mine_cam(
    const Tensor& cam, const std::optional<Tensor>& bias, int64_t steps, double threshold,
    int64_t connectivity, const std::string& mode, const std::optional<Tensor>& image_sizes,
    int64_t image_height, int64_t image_width, const std::vector<double>& thresholds,
    const std::string& select, int64_t max_boxes, double max_overlap, int64_t upsample) {
  require(cam, 4, ScalarType::Float, "cam");
  MiningInputs inputs{dense(cam), std::nullopt, std::nullopt};
  const Tensor& h = inputs.cam;
  const cxr::Maps maps = maps_of(h);
  if (bias) {
    check_bias(*bias, cam);
    inputs.bias = dense(*bias);
  }
  const cxr::MiningOptions options = mining_options(steps, threshold, connectivity, 1);
  const cxr::Mode aggregation = mode_of(mode);
  std::optional<Tensor> sizes;
  gpu::BoxParameters p = box_parameters(maps, h, image_sizes, image_height, image_width, thresholds,
                                        select, max_boxes, max_overlap, upsample, connectivity, sizes);
  const int64_t n = maps.images, c = maps.classes;
  Tensor logits = make(h, {n, c, steps}, ScalarType::Float);
  Tensor erased_at = make(h, shape_of(h), ScalarType::Byte);
  Tensor extent = make(h, {n, c, steps, 2}, ScalarType::Float);
  Tensor heatmap = make(h, shape_of(h), ScalarType::Float);
  BoxOutputs outputs(h, maps, max_boxes);
  const Place place(h);
  enqueue_mining(place, inputs, options, erased_at, extent, &logits);
  p.first = aggregate_parameters(h, false, erased_at, extent, aggregation, heatmap);
  enqueue_boxes(place, heatmap, p, outputs);
  return {logits, erased_at, extent, heatmap, outputs.boxes, outputs.scores, outputs.counts};
}

// ---- labels ----

Tensor label_components(const Tensor& mask, int64_t connectivity) {
  const MaskBatch batch = check_mask(mask, connectivity);
  const Tensor m = dense(mask);
  Tensor labels = make(mask, shape_of(mask), ScalarType::Int);
  if (batch.images == 0) return labels;
  const int64_t area = batch.height * batch.width;
  gpu::LabelParameters p{};
  p.mask = in<uint8_t>(m);
  p.labels = out<int32_t>(labels);
  p.height = static_cast<int>(batch.height);
  p.width = static_cast<int>(batch.width);
  p.connectivity = static_cast<int>(connectivity);
  const Place place(mask);
  if (area <= gpu::kLabelSmallArea) {
    place.launch({"label_components", "label_small"}, {batch.images, gpu::kLabelThreads}, p);
    return labels;
  }
  p.chunks = static_cast<int>(blocks_for(area, gpu::kPixelsPerBlock));
  const int64_t blocks = batch.images * p.chunks;
  Tensor counts = make(mask, {blocks}, ScalarType::Int);
  p.counts = out<int32_t>(counts);
  for (const char* name : {"label_runs", "label_unite", "label_count"}) {
    place.launch({"label_components", name}, {blocks, gpu::kLabelThreads}, p);
  }
  place.launch({"label_components", "label_offsets"}, {batch.images, gpu::kLabelThreads}, p);
  for (const char* name : {"label_number", "label_write"}) {
    place.launch({"label_components", name}, {blocks, gpu::kLabelThreads}, p);
  }
  return labels;
}

}  // namespace

// Registers the kernels for CUDA tensors. Python calls it, through ctypes, after it has decided that
// they shall serve; what they need (driver, code for the device) is loaded by the first launch.
extern "C" __attribute__((visibility("default"))) void cxr_fast_serve_cuda(
    const char* driver, const char* nvrtc, const char* images, const char* sources, const char* cache) {
  gpu::places() = {driver, nvrtc, images, sources, cache};
  // Never deleted: an operator must not lose its kernels while the interpreter shuts down.
  static auto* const library = new torch::stable::detail::StableLibrary(
      torch::stable::detail::StableLibrary::Kind::IMPL, "cxr_fast", "CUDA", __FILE__, __LINE__);
  static bool registered = false;
  if (registered) return;
  registered = true;
  library->impl("mine_attention", TORCH_BOX(&mine_attention));
  library->impl("masked_gap", TORCH_BOX(&masked_gap));
  library->impl("masked_gap_backward", TORCH_BOX(&masked_gap_backward));
  library->impl("aggregate_heatmap", TORCH_BOX(&aggregate_heatmap));
  library->impl("heatmap_boxes", TORCH_BOX(&heatmap_boxes));
  library->impl("mine_cam", TORCH_BOX(&mine_cam));
  library->impl("label_components", TORCH_BOX(&label_components));
}

// Where the code for a device came from; false with the reason if there is none.
extern "C" __attribute__((visibility("default"))) bool cxr_fast_describe_cuda(int device, char* text,
                                                                              size_t size) {
  try {
    return answer(gpu::describe(device), true, text, size);
  } catch (const std::exception& error) {
    return answer(error.what(), false, text, size);
  }
}
