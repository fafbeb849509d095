// The CUDA driver and NVRTC, found at run time: this library is built without a CUDA toolkit, loads on
// machines without a GPU, and works with any driver. Only what is called is declared.
#pragma once

#include <cstddef>
#include <string>

namespace cxr::gpu {

using Device = int;
using Context = struct ContextOpaque*;
using Module = struct ModuleOpaque*;
using Function = struct FunctionOpaque*;
using Program = struct ProgramOpaque*;

// Values of the driver's enumerations.
constexpr int kMultiprocessors = 16, kCapabilityMajor = 75, kCapabilityMinor = 76,
              kMaxSharedBytesOptIn = 97;
constexpr int kMaxDynamicSharedBytes = 8, kPreferredSharedCarveout = 9, kMaxSharedCarveout = 100;

struct Driver {
  int (*cuDeviceGet)(Device*, int ordinal);
  int (*cuDeviceGetAttribute)(int*, int attribute, Device);
  int (*cuDevicePrimaryCtxRetain)(Context*, Device);
  int (*cuCtxPushCurrent_v2)(Context);
  int (*cuCtxPopCurrent_v2)(Context*);
  int (*cuModuleLoadData)(Module*, const void* image);
  int (*cuModuleGetFunction)(Function*, Module, const char* name);
  int (*cuFuncSetAttribute)(Function, int attribute, int value);
  int (*cuLaunchKernel)(Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                        unsigned block_y, unsigned block_z, unsigned shared_bytes, void* stream,
                        void** parameters, void** extra);
  int (*cuGetErrorString)(int, const char**);
};

struct Nvrtc {
  int (*nvrtcVersion)(int* major, int* minor);
  int (*nvrtcGetNumSupportedArchs)(int*);
  int (*nvrtcGetSupportedArchs)(int*);
  int (*nvrtcCreateProgram)(Program*, const char* source, const char* name, int headers,
                            const char* const* header_sources, const char* const* header_names);
  int (*nvrtcCompileProgram)(Program, int options, const char* const*);
  int (*nvrtcGetProgramLogSize)(Program, size_t*);
  int (*nvrtcGetProgramLog)(Program, char*);
  int (*nvrtcGetCUBINSize)(Program, size_t*);
  int (*nvrtcGetCUBIN)(Program, char*);
  int (*nvrtcGetPTXSize)(Program, size_t*);
  int (*nvrtcGetPTX)(Program, char*);
  int (*nvrtcDestroyProgram)(Program*);
};

// Where things are, told by Python once, before the first launch.
struct Places {
  std::string driver;   // libcuda.so.1, or another path
  std::string nvrtc;    // path of libnvrtc, empty if there is none
  std::string images;   // folder of what nvcc compiled when the package was built: <unit>.fatbin
  std::string sources;  // folder of <unit>.cu, for NVRTC
  std::string cache;    // folder for what NVRTC compiled
};
Places& places();

// std::runtime_error where the library or one of its functions is missing.
const Driver& driver();
const Nvrtc& nvrtc();

// Throws std::runtime_error with the driver's own words unless `status` is 0.
void require_success(int status, const std::string& what);

// Machine code of <sources>/<unit>.cu, or for a device newer than NVRTC, PTX.
struct CompiledUnit {
  std::string image;
  std::string how;  // by which NVRTC, for what
  bool cached = false;
};

// For a capability such as 90; from the cache if it was compiled before. compile_anew replaces what is
// cached. std::runtime_error with the compiler's words.
CompiledUnit compile(const std::string& unit, int capability);
CompiledUnit compile_anew(const std::string& unit, int capability);

}  // namespace cxr::gpu
