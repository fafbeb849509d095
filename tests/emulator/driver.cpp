// A stand-in for libcuda.so.1 that runs the kernels of kernels/*.cu on the CPU, so that the real
// bindings and launcher run against it on CPU tensors: grids, parameters, scratch and all. Compiled
// with
// `-include cuda_on_cpu.hpp`, which has to come before any kernel.
#include "aggregate_heatmap.cu"
#include "heatmap_boxes.cu"
#include "label_components.cu"
#include "masked_gap.cu"
#include "mine_attention.cu"

namespace {

using Status = int;

std::map<std::string, std::unique_ptr<emulator::Kernel>> kernels;

template <class... Parameters>
void offer(const char* name, void (*function)(Parameters...)) {
  kernels[name] = std::make_unique<emulator::KernelOf<Parameters...>>(function);
}

const bool offered = [] {
#define OFFER(name) offer(#name, name)
  OFFER(mine_attention_32);
  OFFER(mine_attention_64);
  OFFER(mine_attention_any);
  OFFER(masked_gap_float);
  OFFER(masked_gap_double);
  OFFER(masked_gap_backward_float);
  OFFER(masked_gap_backward_double);
  OFFER(aggregate_heatmap);
  OFFER(heatmap_boxes_shared);
  OFFER(heatmap_boxes_global);
  OFFER(label_small);
  OFFER(label_runs);
  OFFER(label_unite);
  OFFER(label_count);
  OFFER(label_offsets);
  OFFER(label_number);
  OFFER(label_write);
  return true;
}();

// What the device is said to be, and what was launched; the tests set and read them.
int capability = 90, multiprocessors = 2, shared_bytes = 100 << 10, refuse_images = 0;
std::vector<std::string> launched;
std::string joined;

}  // namespace

extern "C" {

Status cuDeviceGet(int* device, int ordinal) {
  *device = ordinal;
  return 0;
}
Status cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 16   ? multiprocessors
           : attribute == 75 ? capability / 10
           : attribute == 76 ? capability % 10
           : attribute == 97 ? shared_bytes
                             : -1;
  return 0;
}
Status cuDevicePrimaryCtxRetain(void** context, int) {
  *context = nullptr;
  return 0;
}
Status cuCtxPushCurrent_v2(void*) { return 0; }
Status cuCtxPopCurrent_v2(void**) { return 0; }
Status cuModuleLoadData(void** module, const void* image) {
  // What nvcc made is refused on demand; machine code that NVRTC made is not.
  if (refuse_images && std::memcmp(image, "\177ELF", 4) != 0) return refuse_images;
  *module = &kernels;
  return 0;
}
Status cuModuleGetFunction(void** function, void*, const char* name) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) return 500;
  *function = &*found;
  return 0;
}
Status cuFuncSetAttribute(void*, int, int) { return 0; }
Status cuLaunchKernel(void* function, unsigned blocks, unsigned, unsigned, unsigned threads, unsigned,
                      unsigned, unsigned shared, void*, void** parameters, void**) {
  const auto& [name, kernel] = *static_cast<decltype(kernels)::value_type*>(function);
  if (static_cast<int>(shared) > shared_bytes) return 1;
  launched.push_back(name);
  emulator::launch(name, *kernel, blocks, threads, shared, parameters);
  return 0;
}
Status cuGetErrorString(int status, const char** text) {
  *text = status == 209 ? "no kernel image is available" : "refused by the emulator";
  return 0;
}

// What torch's CUDA library has.
int aoti_torch_get_current_cuda_stream(int, void** stream) {
  *stream = nullptr;
  return 0;
}

// ---- for the tests ----

void emulator_set(const char* what, int value) {
  const std::string name = what;
  (name == "capability"        ? capability
   : name == "multiprocessors" ? multiprocessors
   : name == "shared_bytes"    ? shared_bytes
                               : refuse_images) = value;
}
void emulator_seed(unsigned seed) { emulator::chance.seed(seed); }

// The kernels launched since the last call, separated by spaces.
const char* emulator_launched() {
  joined.clear();
  for (const auto& name : launched) joined += (joined.empty() ? "" : " ") + name;
  launched.clear();
  return joined.c_str();
}
}
