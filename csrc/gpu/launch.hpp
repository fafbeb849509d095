// Launching kernels by name: loads their code for a device when first needed, and keeps it.
#pragma once

#include <cstdint>
#include <string>

namespace cxr::gpu {

// A kernel of kernels/<unit>.cu.
struct Kernel {
  const char* unit;
  const char* name;
};

struct Grid {
  int64_t blocks;
  int threads;
  int64_t shared_bytes = 0;
};

struct Limits {
  int multiprocessors;
  int64_t shared_bytes;  // that one block may have
};

// What a device offers. std::runtime_error for one that the kernels do not run on, in a sentence.
const Limits& limits_of(int device);

// Enqueues the kernel on `stream` (a cudaStream_t of that device) and returns. `parameters` is the one
// struct that the kernel takes. std::runtime_error if it cannot be launched.
void launch(int device, void* stream, const Kernel& kernel, const Grid& grid, void* parameters);

// Loads every unit for the device; says where its code came from.
std::string describe(int device);

}  // namespace cxr::gpu
