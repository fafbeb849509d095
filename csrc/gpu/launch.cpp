#include "launch.hpp"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <sstream>
#include <stdexcept>
#include <utility>
#include <vector>

#include "driver.hpp"

namespace cxr::gpu {

namespace {

// Every file of kernels/ with its kernels. All of a file's are looked up when it is loaded: the driver
// may load a kernel's code only then, which it cannot while a graph is captured.
const std::map<std::string, std::vector<const char*>> kUnits{
    {"mine_attention", {"mine_attention_32", "mine_attention_64", "mine_attention_any"}},
    {"masked_gap",
     {"masked_gap_float", "masked_gap_double", "masked_gap_backward_float",
      "masked_gap_backward_double"}},
    {"aggregate_heatmap", {"aggregate_heatmap"}},
    {"heatmap_boxes", {"heatmap_boxes_shared", "heatmap_boxes_global"}},
    {"label_components",
     {"label_small", "label_runs", "label_unite", "label_count", "label_offsets", "label_number",
      "label_write"}},
};
constexpr int kLeastCapability = 75;
constexpr int64_t kMostBlocks = 2147483647;

// What the driver says of images that do not fit the device or itself: NVRTC may still make one that
// does.
constexpr int kDoesNotFit[] = {
    200,  // invalid image
    209,  // no binary for this GPU
    218,  // invalid PTX
    221,  // no compiler for PTX
    222,  // PTX of a later version
    223,  // compiling PTX is disabled
};
constexpr int kCapturing = 900;

struct LoadedUnit {
  std::map<std::string, Function> functions;
  std::string how;
};

// The context of one device, current for as long as this lives: threads that torch makes for the
// backward pass may have none.
class ContextGuard {
 public:
  explicit ContextGuard(Context context) {
    require_success(driver().cuCtxPushCurrent_v2(context), "cannot use the CUDA context");
  }
  ~ContextGuard() {
    Context popped;
    driver().cuCtxPopCurrent_v2(&popped);
  }
  ContextGuard(const ContextGuard&) = delete;
  ContextGuard& operator=(const ContextGuard&) = delete;
};

class DeviceCode {
 public:
  explicit DeviceCode(int ordinal) {
    Device device = 0;
    require_success(driver().cuDeviceGet(&device, ordinal),
                    "cannot find CUDA device " + std::to_string(ordinal));
    const auto attribute = [&](int which) {
      int value = 0;
      require_success(driver().cuDeviceGetAttribute(&value, which, device),
                      "cannot query the CUDA device");
      return value;
    };
    capability_ = 10 * attribute(kCapabilityMajor) + attribute(kCapabilityMinor);
    if (capability_ < kLeastCapability) {
      throw std::runtime_error(
          "cxr_fast's CUDA kernels need compute capability 7.5 or later, but device " +
          std::to_string(ordinal) + " has " + std::to_string(capability_ / 10) + "." +
          std::to_string(capability_ % 10) +
          "; set CXR_FAST_CUDA=reference for the slow plain-PyTorch operators, or move the tensors to "
          "the CPU");
    }
    limits = {attribute(kMultiprocessors), attribute(kMaxSharedBytesOptIn)};
    require_success(driver().cuDevicePrimaryCtxRetain(&context, device), "cannot use the CUDA device");
  }

  // With the context current.
  Function function(const Kernel& kernel, int64_t shared_bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const Function found = unit(kernel.unit).functions.at(kernel.name);
    if (shared_bytes > 0 && prepared_.insert(kernel.name).second) {
      // Once, for whatever later launches need; the more of it, the more blocks share a multiprocessor.
      const int most = static_cast<int>(dynamic_shared_limit());
      require_success(driver().cuFuncSetAttribute(found, kMaxDynamicSharedBytes, most),
                      std::string("cannot have shared memory for ") + kernel.name);
      require_success(driver().cuFuncSetAttribute(found, kPreferredSharedCarveout, kMaxSharedCarveout),
                      std::string("cannot have shared memory for ") + kernel.name);
    }
    return found;
  }

  // Room for the few static arrays that kernels have besides.
  int64_t dynamic_shared_limit() const { return limits.shared_bytes - (2 << 10); }

  std::string describe() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::map<std::string, std::string> by_way;
    for (const auto& [name, kernels] : kUnits) {
      std::string& units = by_way[unit(name).how];
      units += (units.empty() ? "" : ", ") + std::string(name);
    }
    if (by_way.size() == 1) return by_way.begin()->first;
    std::string text;
    for (const auto& [how, units] : by_way) text += (text.empty() ? "" : "; ") + units + ": " + how;
    return text;
  }

  Context context = nullptr;
  Limits limits{};

 private:
  const LoadedUnit& unit(const std::string& name) {
    LoadedUnit& loaded = units_[name];
    if (loaded.functions.empty()) load(name, loaded);
    return loaded;
  }

  static void look_up_kernels(const std::string& name, LoadedUnit& loaded, Module module) {
    std::map<std::string, Function> functions;
    for (const char* kernel : kUnits.at(name)) {
      const int status = driver().cuModuleGetFunction(&functions[kernel], module, kernel);
      refuse_while_capturing(status, name);
      require_success(status, std::string("cannot find the kernel ") + kernel);
    }
    loaded.functions = std::move(functions);
  }

  static void refuse_while_capturing(int status, const std::string& name) {
    if (status != kCapturing) return;
    throw std::runtime_error(
        "the CUDA kernels of " + name +
        " cannot be loaded while a graph is captured; call the operator once before");
  }

  void load(const std::string& name, LoadedUnit& loaded) const {
    Module module = nullptr;
    std::ifstream file(places().images + "/" + name + ".fatbin", std::ios::binary);
    std::string why_not = "the package was built without nvcc";
    if (file) {
      std::ostringstream image;
      image << file.rdbuf();
      const int status = driver().cuModuleLoadData(&module, image.str().c_str());
      refuse_while_capturing(status, name);
      if (status == 0) {
        look_up_kernels(name, loaded, module);
        loaded.how = "nvcc, when the package was built";
        return;
      }
      if (std::find(std::begin(kDoesNotFit), std::end(kDoesNotFit), status) == std::end(kDoesNotFit)) {
        require_success(status, "cannot load the CUDA kernels of " + name);
      }
      why_not = "what nvcc built does not fit this device and driver";
    }
    CompiledUnit compiled;
    int status = 0;
    try {
      compiled = compile(name, capability_);
      status = driver().cuModuleLoadData(&module, compiled.image.c_str());
      if (status != 0 && status != kCapturing && compiled.cached) {  // damaged, then
        compiled = compile_anew(name, capability_);
        status = driver().cuModuleLoadData(&module, compiled.image.c_str());
      }
      if (status != kCapturing) {
        require_success(status, "cannot load what " + compiled.how + " made of " + name);
      }
    } catch (const std::exception& error) {
      throw std::runtime_error(
          "no CUDA kernels for this device: " + why_not + ", and " + error.what() +
          "; set CXR_FAST_CUDA=triton or CXR_FAST_CUDA=reference to do without them");
    }
    refuse_while_capturing(status, name);
    look_up_kernels(name, loaded, module);
    loaded.how = compiled.how + (compiled.cached ? ", cached" : "") + " (" + why_not + ")";
  }

  int capability_ = 0;
  std::mutex mutex_;
  std::map<std::string, LoadedUnit> units_;
  std::set<std::string> prepared_;
};

DeviceCode& code_of(int device) {
  static std::mutex mutex;
  static std::map<int, std::unique_ptr<DeviceCode>> devices;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& code = devices[device];
  if (!code) code = std::make_unique<DeviceCode>(device);
  return *code;
}

}  // namespace

const Limits& limits_of(int device) { return code_of(device).limits; }

void launch(int device, void* stream, const Kernel& kernel, const Grid& grid, void* parameters) {
  if (grid.blocks == 0) return;
  DeviceCode& code = code_of(device);
  if (grid.blocks > kMostBlocks || grid.shared_bytes > code.dynamic_shared_limit()) {
    throw std::runtime_error(std::string(kernel.name) +
                             ": the batch is too large for one launch; split it");
  }
  const ContextGuard current(code.context);
  void* all[] = {parameters};
  require_success(driver().cuLaunchKernel(
                      code.function(kernel, grid.shared_bytes), static_cast<unsigned>(grid.blocks), 1,
                      1, static_cast<unsigned>(grid.threads), 1, 1,
                      static_cast<unsigned>(grid.shared_bytes), stream, all, nullptr),
                  std::string("cannot launch ") + kernel.name);
}

std::string describe(int device) {
  DeviceCode& code = code_of(device);
  const ContextGuard current(code.context);
  return code.describe();
}

}  // namespace cxr::gpu
