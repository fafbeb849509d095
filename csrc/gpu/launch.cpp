#include "launch.hpp"

#include <cstdlib>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <utility>

#include "driver.hpp"

namespace cxr::gpu {

namespace {

constexpr const char* kUnits[] = {"mine_attention", "masked_gap", "aggregate_heatmap", "heatmap_boxes",
                                  "label_components"};
constexpr int kLeastCapability = 75;
constexpr int64_t kMostBlocks = 2147483647;

// Images that do not fit the device or the driver: NVRTC may still make one.
constexpr int kInvalidImage = 200, kNoBinaryForGpu = 209, kUnsupportedPtx = 222, kJitTooOld = 223;

constexpr int kCapturing = 900;

struct LoadedUnit {
  Module module = nullptr;
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
  Function function(const Kernel& kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    Function& known = functions_[kernel.name];
    if (!known) {
      const Module module = unit(kernel.unit).module;
      require_success(driver().cuModuleGetFunction(&known, module, kernel.name),
                      std::string("cannot find the kernel ") + kernel.name);
      // Asked for once, for whatever a launch may need; it costs nothing where it is not used.
      driver().cuFuncSetAttribute(known, kMaxDynamicSharedBytes,
                                  static_cast<int>(dynamic_shared_limit()));
    }
    return known;
  }

  // Room for the few static arrays that kernels have besides.
  int64_t dynamic_shared_limit() const { return limits.shared_bytes - (2 << 10); }

  std::string describe() {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::map<std::string, std::string> by_way;
    for (const char* name : kUnits) {
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
  const LoadedUnit& unit(const char* name) {
    LoadedUnit& loaded = units_[name];
    if (!loaded.module) load(name, loaded);
    return loaded;
  }

  void load(const std::string& name, LoadedUnit& loaded) const {
    std::ifstream file(places().images + "/" + name + ".fatbin", std::ios::binary);
    std::string why_not = "the package was built without nvcc";
    if (file) {
      std::ostringstream image;
      image << file.rdbuf();
      const int status = driver().cuModuleLoadData(&loaded.module, image.str().c_str());
      if (status == 0) {
        loaded.how = "nvcc, when the package was built";
        return;
      }
      loaded.module = nullptr;
      if (status == kCapturing) {
        throw std::runtime_error(
            "the CUDA kernels of " + name +
            " cannot be loaded while a graph is captured; call the operator once before");
      }
      if (status != kInvalidImage && status != kNoBinaryForGpu && status != kUnsupportedPtx &&
          status != kJitTooOld) {
        require_success(status, "cannot load the CUDA kernels of " + name);
      }
      why_not = "what nvcc built does not fit this device and driver";
    }
    std::string how;
    try {
      const std::string image = compile(name, capability_, how);
      require_success(driver().cuModuleLoadData(&loaded.module, image.c_str()),
                      "cannot load what " + how + " made of " + name);
    } catch (const std::exception& error) {
      loaded.module = nullptr;
      throw std::runtime_error(
          "no CUDA kernels for this device: " + why_not + ", and " + error.what() +
          "; set CXR_FAST_CUDA=triton or CXR_FAST_CUDA=reference to do without them");
    }
    loaded.how = how + " (" + why_not + ")";
  }

  int capability_ = 0;
  std::mutex mutex_;
  std::map<std::string, LoadedUnit> units_;
  std::map<std::string, Function> functions_;
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
  require_success(
      driver().cuLaunchKernel(code.function(kernel), static_cast<unsigned>(grid.blocks), 1, 1,
                              static_cast<unsigned>(grid.threads), 1, 1,
                              static_cast<unsigned>(grid.shared_bytes), stream, all, nullptr),
      std::string("cannot launch ") + kernel.name);
}

std::string describe(int device) {
  DeviceCode& code = code_of(device);
  const ContextGuard current(code.context);
  return code.describe();
}

}  // namespace cxr::gpu
