// Compiling device code on the user's machine: for packages that were built without nvcc, and for
// devices or drivers that what nvcc made does not fit.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "driver.hpp"

namespace cxr::gpu {

namespace {

namespace fs = std::filesystem;

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path.string() + "; reinstall cxr_fast");
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// FNV-1a: the cache must tell versions apart, nobody attacks it.
uint64_t hash_of(const std::string& text, uint64_t hash) {
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3u;
  return hash;
}

// Everything that a unit's code depends on.
std::string key_of(const std::string& unit, const std::string& compiler) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(places().sources)) {
    const auto extension = entry.path().extension();
    if (extension == ".cuh" || extension == ".hpp") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  files.push_back(fs::path(places().sources) / (unit + ".cu"));
  uint64_t hash = hash_of(compiler, 0xcbf29ce484222325u);
  for (const auto& file : files) hash = hash_of(read_file(file), hash);
  char text[17];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

// Another process or thread may write the same file: each writes its own and renames it. A cache that
// cannot be written costs time, nothing else.
void store(const fs::path& path, const std::string& image) {
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  static std::atomic<int> count{0};
  const fs::path fresh =
      path.string() + "." + std::to_string(getpid()) + "." + std::to_string(count.fetch_add(1));
  {
    std::ofstream file(fresh, std::ios::binary);
    file << image;
    if (!file.flush()) {
      fs::remove(fresh, ignored);
      return;
    }
  }
  fs::rename(fresh, path, ignored);
  if (ignored) fs::remove(fresh, ignored);
}

std::string log_of(Program program) {
  size_t size = 0;
  if (nvrtc().nvrtcGetProgramLogSize(program, &size) != 0 || size == 0) return "";
  std::string log(size, '\0');
  nvrtc().nvrtcGetProgramLog(program, log.data());
  return log.c_str();
}

// The greatest architecture NVRTC knows that the device runs.
int target_of(int capability) {
  int count = 0;
  nvrtc().nvrtcGetNumSupportedArchs(&count);
  std::vector<int> known(static_cast<size_t>(count));
  nvrtc().nvrtcGetSupportedArchs(known.data());
  int best = 0;
  for (int arch : known) {
    if (arch <= capability && arch > best) best = arch;
  }
  if (best == 0) {
    throw std::runtime_error("this NVRTC knows no architecture for compute capability " +
                             std::to_string(capability / 10) + "." + std::to_string(capability % 10));
  }
  return best;
}

// What a unit is compiled to for a device, and where that is kept.
struct Target {
  std::string compiler, arch, how;
  bool exact;  // machine code for the device itself, not PTX that its driver compiles
  fs::path cached;

  Target(const std::string& unit, int capability) {
    int major = 0, minor = 0;
    nvrtc().nvrtcVersion(&major, &minor);
    const int target = target_of(capability);
    exact = target == capability;
    const std::string name = (exact ? "sm_" : "compute_") + std::to_string(target);
    compiler = "NVRTC " + std::to_string(major) + "." + std::to_string(minor);
    arch = "--gpu-architecture=" + name;
    how = compiler + ", " + name;
    const std::string file = unit + "-" + key_of(unit, compiler + arch) + (exact ? ".cubin" : ".ptx");
    cached = fs::path(places().cache) / file;
  }
};

}  // namespace

CompiledUnit compile(const std::string& unit, int capability) {
  const Target target(unit, capability);
  if (std::ifstream(target.cached).good()) return {read_file(target.cached), target.how, true};
  return compile_anew(unit, capability);
}

CompiledUnit compile_anew(const std::string& unit, int capability) {
  const Target target(unit, capability);
  const std::string include = "--include-path=" + places().sources;
  // No fused multiply-adds: a threshold must cut the same pixels as on a CPU.
  const std::vector<const char*> options{target.arch.c_str(), include.c_str(), "--std=c++17",
                                         "--fmad=false"};
  const std::string source = read_file(fs::path(places().sources) / (unit + ".cu"));
  Program program = nullptr;
  if (nvrtc().nvrtcCreateProgram(&program, source.c_str(), (unit + ".cu").c_str(), 0, nullptr,
                                 nullptr)) {
    throw std::runtime_error("NVRTC cannot create a program for " + unit);
  }
  const int status =
      nvrtc().nvrtcCompileProgram(program, static_cast<int>(options.size()), options.data());
  const std::string log = log_of(program);
  std::string image;
  size_t size = 0;
  if (status == 0) {
    (target.exact ? nvrtc().nvrtcGetCUBINSize : nvrtc().nvrtcGetPTXSize)(program, &size);
    image.resize(size);
    (target.exact ? nvrtc().nvrtcGetCUBIN : nvrtc().nvrtcGetPTX)(program, image.data());
  }
  nvrtc().nvrtcDestroyProgram(&program);
  if (status != 0 || image.empty()) {
    throw std::runtime_error(target.compiler + " cannot compile " + unit + ".cu:\n" + log);
  }
  store(target.cached, image);
  return {image, target.how, false};
}

}  // namespace cxr::gpu
