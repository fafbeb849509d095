#include "driver.hpp"

#include <dlfcn.h>

#include <stdexcept>

namespace cxr::gpu {

namespace {

void* open_library(const std::string& path, const char* what) {
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char* reason = dlerror();
    throw std::runtime_error(std::string(what) + " cannot be loaded: " + (reason ? reason : path));
  }
  return library;
}

template <class F>
void find(void* library, const char* name, F& function) {
  void* symbol = dlsym(library, name);
  if (!symbol)
    throw std::runtime_error(std::string(name) + " is missing from the CUDA libraries; update them");
  function = reinterpret_cast<F>(symbol);
}

Driver load_driver() {
  void* library = open_library(places().driver, "the CUDA driver");
  Driver d;
#define CXR_FIND(name) find(library, #name, d.name)
  CXR_FIND(cuDeviceGet);
  CXR_FIND(cuDeviceGetAttribute);
  CXR_FIND(cuDevicePrimaryCtxRetain);
  CXR_FIND(cuCtxPushCurrent_v2);
  CXR_FIND(cuCtxPopCurrent_v2);
  CXR_FIND(cuModuleLoadData);
  CXR_FIND(cuModuleGetFunction);
  CXR_FIND(cuFuncSetAttribute);
  CXR_FIND(cuLaunchKernel);
  CXR_FIND(cuGetErrorString);
  return d;
}

Nvrtc load_nvrtc() {
  void* library = open_library(places().nvrtc, "NVRTC");
  Nvrtc d;
  CXR_FIND(nvrtcVersion);
  CXR_FIND(nvrtcGetNumSupportedArchs);
  CXR_FIND(nvrtcGetSupportedArchs);
  CXR_FIND(nvrtcCreateProgram);
  CXR_FIND(nvrtcCompileProgram);
  CXR_FIND(nvrtcGetProgramLogSize);
  CXR_FIND(nvrtcGetProgramLog);
  CXR_FIND(nvrtcGetCUBINSize);
  CXR_FIND(nvrtcGetCUBIN);
  CXR_FIND(nvrtcGetPTXSize);
  CXR_FIND(nvrtcGetPTX);
  CXR_FIND(nvrtcDestroyProgram);
#undef CXR_FIND
  return d;
}

}  // namespace

Places& places() {
  static Places of_this_process;
  return of_this_process;
}

const Driver& driver() {
  static const Driver loaded = load_driver();
  return loaded;
}

const Nvrtc& nvrtc() {
  if (places().nvrtc.empty()) {
    throw std::runtime_error("NVRTC, which CUDA builds of torch bring, was not found");
  }
  static const Nvrtc loaded = load_nvrtc();
  return loaded;
}

void require_success(int status, const std::string& what) {
  if (status == 0) return;
  const char* reason = nullptr;
  driver().cuGetErrorString(status, &reason);
  throw std::runtime_error(what + ": " + (reason ? reason : "unknown CUDA error") + " (" +
                           std::to_string(status) + ")");
}

}  // namespace cxr::gpu
