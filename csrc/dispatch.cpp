// Which instruction set this processor gets.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "core/kernels.hpp"

namespace cxr {

namespace portable {
extern const Kernels table;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Kernels table;
}
namespace avx512 {
extern const Kernels table;
}
#endif

namespace {

const Kernels* choose() {
  const char* asked_for = std::getenv("CXR_FAST_ISA");
  const std::string asked = asked_for ? asked_for : "";
  std::string offered = "portable";
  const Kernels* best = &portable::table;
  const Kernels* match = asked == best->name ? best : nullptr;
  auto offer = [&](const Kernels& table, bool supported) {
    if (!supported) return;
    best = &table;
    if (asked == table.name) match = &table;
    offered = offered + ", " + table.name;
  };
#if defined(__x86_64__)
  __builtin_cpu_init();
  offer(avx2::table, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                         __builtin_cpu_supports("f16c") && __builtin_cpu_supports("bmi2") &&
                         __builtin_cpu_supports("bmi") && __builtin_cpu_supports("popcnt"));
  offer(avx512::table, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                           __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
                           __builtin_cpu_supports("bmi2"));
#endif
  if (asked.empty()) return best;
  if (!match) {
    throw std::runtime_error("CXR_FAST_ISA is '" + asked + "', but this processor and build offer " +
                             offered + "; unset it, or name one of these");
  }
  return match;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels* const chosen = choose();
  return *chosen;
}

}  // namespace cxr
