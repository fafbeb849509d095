#include "thread_pool.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace cxr {
namespace {

class Pool {
 public:
  // Never destroyed while threads wait: the one pool of a process lives as long as the process.
  void run(int threads, int64_t items, int64_t grain, Scheduler::Body body, void* context) {
    const int64_t most = std::min<int64_t>(threads, (items + grain - 1) / grain);
    std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
    if (most <= 1 || !turn.owns_lock()) {
      body(context, 0, items);
      return;
    }
    while (static_cast<int64_t>(workers_.size()) < most - 1) {
      workers_.emplace_back([this] { serve(); });
      workers_.back().detach();
    }
    {
      std::lock_guard<std::mutex> lock(mutex_);
      job_ = {items, (items + most - 1) / most, body, context};
      next_.store(0);
      helpers_wanted_ = static_cast<int>(most) - 1;
      ++generation_;
    }
    wake_.notify_all();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    helpers_wanted_ = 0;  // who has not come yet is no longer needed
    done_.wait(lock, [this] { return active_ == 0; });
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct Job {
    int64_t items, chunk;
    Scheduler::Body body;
    void* context;
  };

  void work() {
    try {
      for (;;) {
        const int64_t begin = next_.fetch_add(1) * job_.chunk;
        if (begin >= job_.items) return;
        job_.body(job_.context, begin, std::min(begin + job_.chunk, job_.items));
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(error_mutex_);
      if (!error_) error_ = std::current_exception();
    }
  }

  void serve() {
    uint64_t seen = 0;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen && helpers_wanted_ > 0; });
      seen = generation_;
      --helpers_wanted_;
      ++active_;
      lock.unlock();
      work();
      lock.lock();
      if (--active_ == 0) done_.notify_all();
    }
  }

  std::mutex turn_;  // whose job it is
  std::mutex mutex_, error_mutex_;
  std::condition_variable wake_, done_;
  std::vector<std::thread> workers_;
  Job job_{};
  std::atomic<int64_t> next_{0};
  std::exception_ptr error_;
  uint64_t generation_ = 0;
  int helpers_wanted_ = 0, active_ = 0;
};

std::atomic<Pool*> pool{nullptr};

Pool& the_pool() {
  Pool* current = pool.load();
  if (current) return *current;
  static std::once_flag forks_watched;
  std::call_once(forks_watched, [] {
    // The parent's threads do not exist in the child. Its pool is left behind, locks and all.
    pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); });
  });
  Pool* fresh = new Pool;
  if (pool.compare_exchange_strong(current, fresh)) return *fresh;
  delete fresh;
  return *current;
}

}  // namespace

void run_on_pool(int threads, int64_t items, int64_t grain, Scheduler::Body body, void* context) {
  the_pool().run(threads, items, grain, body, context);
}

}  // namespace cxr
