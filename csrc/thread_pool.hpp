// A pool of threads for callers that bring none: the numpy module. (Torch brings its own.)
#pragma once

#include "core/kernels.hpp"

namespace cxr {

// Runs jobs on up to `threads` threads, the caller among them. One job at a time has the pool; a
// second caller meanwhile does its own work alone, which is what threads that mine in parallel want.
// Survives fork: the child starts a pool of its own when it first needs one.
void run_on_pool(int threads, int64_t items, int64_t grain, Scheduler::Body body, void* context);

}  // namespace cxr
