// The kernels over numpy arrays, for processes that have no torch. cxr_fast/runtime.py checks the
// arguments and makes them contiguous; here only types and sizes are asserted.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "core/kernels.hpp"
#include "thread_pool.hpp"

namespace py = pybind11;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;
using Shape = std::vector<py::ssize_t>;

void assert_that(bool condition, const char* what) {
  if (!condition) {
    throw std::invalid_argument(std::string(what) + ": call the function of cxr_fast.runtime");
  }
}

cxr::Maps maps_of(const py::array& a) {
  assert_that(a.ndim() == 4 && a.shape(2) >= 1 && a.shape(3) >= 1, "maps [N, C, H, W] expected");
  return {a.shape(0), a.shape(1), a.shape(2), a.shape(3)};
}

void assert_maps(const py::array& a, const cxr::Maps& maps) {
  assert_that(a.ndim() == 4 && a.shape(0) == maps.images && a.shape(1) == maps.classes &&
                  a.shape(2) == maps.height && a.shape(3) == maps.width,
              "arrays of one shape expected");
}

// The pool's threads may not hold the GIL, nor wait for who does.
class Threads {
 public:
  explicit Threads(int count) : count_(count) {}
  cxr::Scheduler scheduler() {
    return {[](void* self, int64_t items, int64_t grain, cxr::Scheduler::Body body, void* context) {
              cxr::run_on_pool(static_cast<Threads*>(self)->count_, items, grain, body, context);
            },
            this};
  }

 private:
  int count_;
  py::gil_scoped_release release_;
};

py::array cam(const py::array& features, const py::array& weight, int threads) {
  assert_that(features.ndim() == 4 && weight.ndim() == 2 && weight.shape(1) == features.shape(1),
              "features [N, D, H, W] and weight [C, D] expected");
  const auto item = features.itemsize();
  const bool wide = item == 8;
  assert_that(features.dtype().kind() == 'f' && (item == 2 || item == 4 || item == 8) &&
                  weight.itemsize() == (wide ? 8 : 4),
              "float features with a float32 weight (or both float64) expected");
  const cxr::Dtype dtype = wide        ? cxr::Dtype::float64
                           : item == 4 ? cxr::Dtype::float32
                                       : cxr::Dtype::float16;
  const Shape shape{features.shape(0), weight.shape(0), features.shape(2), features.shape(3)};
  py::array result(weight.dtype(), shape);
  // runtime.py passes C order; its pixels are contiguous, its channels a plane apart.
  const int64_t pixels = shape[2] * shape[3], channels = features.shape(1);
  const cxr::Features f{features.data(),   dtype,  shape[0], channels, pixels,
                        channels * pixels, pixels, 1};
  void* out = result.mutable_data();
  const void* w = weight.data();
  if (result.size() > 0) {
    Threads pool(threads);
    cxr::kernels().cam(f, w, shape[1], out, pool.scheduler());
  }
  return result;
}

cxr::MiningOptions mining_options(int steps, double threshold, int connectivity, int first_step) {
  assert_that(steps >= 1 && first_step >= 1 && steps + first_step <= 256, "1 to 255 steps expected");
  return {steps, static_cast<float>(threshold), connectivity, first_step};
}

py::tuple mine_attention(const Array<float>& cam, int steps, double threshold, int connectivity,
                         const std::optional<Array<uint8_t>>& before, int first_step, int threads) {
  const cxr::Maps maps = maps_of(cam);
  const auto options = mining_options(steps, threshold, connectivity, first_step);
  if (before) assert_maps(*before, maps);
  Array<uint8_t> erased_at(Shape{cam.shape(0), cam.shape(1), cam.shape(2), cam.shape(3)});
  Array<float> extent(Shape{cam.shape(0), cam.shape(1), steps, 2});
  const float* h = cam.data();
  const uint8_t* earlier = before ? before->data() : nullptr;
  uint8_t* erased = erased_at.mutable_data();
  float* limits = extent.mutable_data();
  {
    Threads pool(threads);
    cxr::kernels().mine_attention(maps, h, earlier, options, erased, limits, pool.scheduler());
  }
  return py::make_tuple(erased_at, extent);
}

Array<float> masked_gap(const Array<float>& cam, const Array<uint8_t>& erased_at, int steps,
                        int threads) {
  const cxr::Maps maps = maps_of(cam);
  assert_maps(erased_at, maps);
  assert_that(steps >= 1 && steps <= 255, "1 to 255 steps expected");
  Array<float> logits(Shape{cam.shape(0), cam.shape(1), steps});
  const float* h = cam.data();
  const uint8_t* erased = erased_at.data();
  float* out = logits.mutable_data();
  {
    Threads pool(threads);
    cxr::kernels().masked_gap(maps, cxr::Dtype::float32, h, erased, steps, out, pool.scheduler());
  }
  return logits;
}

cxr::Mode mode_of(const std::string& mode) {
  return mode == "raw" ? cxr::Mode::raw : cxr::Mode::normalized;
}

Array<float> aggregate_heatmap(const Array<float>& cam, const Array<uint8_t>& erased_at,
                               const Array<float>& extent, const std::string& mode, int threads) {
  const cxr::Maps maps = maps_of(erased_at);
  const bool per_step = cam.ndim() == 5;
  assert_that(extent.ndim() == 4, "extent [N, C, T, 2] expected");
  const int steps = static_cast<int>(extent.shape(2));
  assert_that(cam.size() == erased_at.size() * (per_step ? steps : 1) &&
                  extent.size() == maps.count() * steps * 2,
              "arrays of one shape expected");
  Array<float> heatmap(
      Shape{erased_at.shape(0), erased_at.shape(1), erased_at.shape(2), erased_at.shape(3)});
  const float* h = cam.data();
  const uint8_t* erased = erased_at.data();
  const float* limits = extent.data();
  float* out = heatmap.mutable_data();
  const cxr::Mode how = mode_of(mode);
  {
    Threads pool(threads);
    cxr::kernels().aggregate_heatmap(maps, h, per_step, erased, limits, steps, how, out,
                                     pool.scheduler());
  }
  return heatmap;
}

struct BoxSettings {
  std::vector<float> thresholds;
  std::string select;
  int max_boxes;
  double max_overlap;
  int upsample;
  int connectivity;

  cxr::BoxOptions options(const Array<double>& sizes, const cxr::Maps& maps) const {
    assert_that(sizes.ndim() == 2 && sizes.shape(1) == 2 &&
                    (sizes.shape(0) == 1 || sizes.shape(0) == maps.images),
                "image sizes [1, 2] or [N, 2] expected");
    assert_that(max_boxes >= 1 && max_boxes <= 255, "1 to 255 boxes expected");
    return {thresholds.data(),
            static_cast<int>(thresholds.size()),
            select == "peak" ? cxr::Select::peak : cxr::Select::components,
            max_boxes,
            max_overlap,
            upsample,
            connectivity,
            sizes.data(),
            sizes.shape(0) != 1};
  }
};

py::tuple heatmap_boxes(const Array<float>& heatmap, const Array<double>& sizes,
                        const BoxSettings& settings, int threads) {
  const cxr::Maps maps = maps_of(heatmap);
  const cxr::BoxOptions options = settings.options(sizes, maps);
  const py::ssize_t n = heatmap.shape(0), c = heatmap.shape(1), k = settings.max_boxes;
  Array<float> boxes(Shape{n, c, k, 4}), scores(Shape{n, c, k});
  Array<int32_t> counts(Shape{n, c});
  const float* h = heatmap.data();
  float* b = boxes.mutable_data();
  float* s = scores.mutable_data();
  int32_t* found = counts.mutable_data();
  {
    Threads pool(threads);
    cxr::kernels().heatmap_boxes(maps, h, options, b, s, found, pool.scheduler());
  }
  return py::make_tuple(boxes, scores, counts);
}

py::tuple mine_cam(const Array<float>& cam, const std::optional<Array<float>>& bias, int steps,
                   double threshold, const std::string& mode, const Array<double>& sizes,
                   const BoxSettings& settings, int threads) {
  const cxr::Maps maps = maps_of(cam);
  const cxr::BoxOptions options = settings.options(sizes, maps);
  const auto mining = mining_options(steps, threshold, settings.connectivity, 1);
  assert_that(!bias || bias->size() == maps.classes, "bias [C] expected");
  const py::ssize_t n = cam.shape(0), c = cam.shape(1), k = settings.max_boxes;
  const Shape shape{n, c, cam.shape(2), cam.shape(3)};
  Array<float> logits(Shape{n, c, steps}), extent(Shape{n, c, steps, 2}), heatmap(shape);
  Array<float> boxes(Shape{n, c, k, 4}), scores(Shape{n, c, k});
  Array<uint8_t> erased_at(shape);
  Array<int32_t> counts(Shape{n, c});
  const cxr::MiningOutputs outputs{
      logits.mutable_data(), erased_at.mutable_data(), extent.mutable_data(), heatmap.mutable_data(),
      boxes.mutable_data(),  scores.mutable_data(),    counts.mutable_data()};
  const float* h = cam.data();
  const float* b = bias ? bias->data() : nullptr;
  const cxr::Mode how = mode_of(mode);
  {
    Threads pool(threads);
    cxr::kernels().mine_cam(maps, h, b, mining, how, options, outputs, pool.scheduler());
  }
  return py::make_tuple(logits, erased_at, extent, heatmap, boxes, scores, counts);
}

Array<int32_t> label_components(const Array<bool>& mask, int connectivity, int threads) {
  assert_that(mask.ndim() >= 2, "mask [..., H, W] expected");
  Array<int32_t> labels(Shape(mask.shape(), mask.shape() + mask.ndim()));
  const int64_t height = mask.shape(mask.ndim() - 2), width = mask.shape(mask.ndim() - 1);
  assert_that(height <= 32768 && width <= 32768, "sides of at most 32768 expected");
  const uint8_t* m = reinterpret_cast<const uint8_t*>(mask.data());
  int32_t* out = labels.mutable_data();
  if (labels.size() > 0) {
    Threads pool(threads);
    cxr::kernels().label_components(labels.size() / (height * width), height, width, m, connectivity,
                                    out, pool.scheduler());
  }
  return labels;
}

Array<float> resize(const py::array& pixels, py::ssize_t size, float scale) {
  const auto item = pixels.itemsize();
  assert_that(pixels.ndim() == 2 && pixels.dtype().kind() == 'u' && (item == 1 || item == 2) &&
                  (pixels.flags() & py::array::c_style) && pixels.size() > 0 && size > 0,
              "grey pixels [H, W] of 8 or 16 bits in C order expected");
  Array<float> result(Shape{size, size});
  const void* source = pixels.data();
  float* out = result.mutable_data();
  {
    py::gil_scoped_release release;
    cxr::kernels().resize(source, static_cast<int>(item), pixels.shape(0), pixels.shape(1), scale, out,
                          size);
  }
  return result;
}

py::array png_unfilter(const py::buffer& filtered, py::ssize_t height, py::ssize_t width, int channels,
                       int sample_bytes) {
  const py::buffer_info info = filtered.request();
  assert_that(height >= 1 && width >= 1 && channels >= 1 && channels <= 4 && sample_bytes >= 1 &&
                  channels * sample_bytes <= 4,
              "1 to 4 bytes a pixel expected");
  const int64_t row_bytes = width * channels * sample_bytes;
  assert_that(info.ndim == 1 && info.itemsize == 1 && info.size >= height * (1 + row_bytes),
              "a filter type and a row of bytes expected, height times");
  const Shape shape = channels == 1 ? Shape{height, width} : Shape{height, width, channels};
  py::array result(py::dtype(sample_bytes == 1 ? "u1" : "u2"), shape);
  const uint8_t* source = static_cast<const uint8_t*>(info.ptr);
  uint8_t* out = static_cast<uint8_t*>(result.mutable_data());
  bool known;
  {
    py::gil_scoped_release release;
    known = cxr::kernels().png_unfilter(source, height, row_bytes, channels * sample_bytes,
                                        sample_bytes, out);
  }
  if (!known) throw py::value_error("a row with a filter type above 4");
  return result;
}

// By itself glibc gives pages back after every picture, and the system clears them again for the next.
bool keep_freed_memory() {
#ifdef __GLIBC__
  return mallopt(M_MMAP_THRESHOLD, 32 << 20) == 1 && mallopt(M_TRIM_THRESHOLD, 256 << 20) == 1;
#else
  return false;
#endif
}

// Kept pages pile up between blocks in use over days; those of a moment are soon fetched again.
bool give_back_memory() {
#ifdef __GLIBC__
  return malloc_trim(0) == 1;
#else
  return false;
#endif
}

}  // namespace

PYBIND11_MODULE(_numpy_ops, m) {
  m.doc() = "Kernels of cxr_fast over numpy arrays; cxr_fast.runtime is the public face.";
  py::class_<BoxSettings>(m, "BoxSettings")
      .def(py::init([](std::vector<float> thresholds, std::string select, int max_boxes,
                       double max_overlap, int upsample, int connectivity) {
        return BoxSettings{std::move(thresholds), std::move(select), max_boxes,
                           max_overlap,           upsample,          connectivity};
      }));
  m.def("isa", [] { return cxr::kernels().name; });
  m.def("cam", &cam);
  m.def("mine_attention", &mine_attention);
  m.def("masked_gap", &masked_gap);
  m.def("aggregate_heatmap", &aggregate_heatmap);
  m.def("heatmap_boxes", &heatmap_boxes);
  m.def("mine_cam", &mine_cam);
  m.def("label_components", &label_components);
  m.def("resize", &resize);
  m.def("png_unfilter", &png_unfilter);
  m.def("keep_freed_memory", &keep_freed_memory);
  m.def("give_back_memory", &give_back_memory, py::call_guard<py::gil_scoped_release>());
}
