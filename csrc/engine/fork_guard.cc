// SPDX-License-Identifier: MIT
#include "engine/fork_guard.h"

#include <fcntl.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <mutex>
#include <set>

namespace pycomm {

// Handlers cannot be taken back, so what they touch lives as long as the process.
struct ForkHandlers {
  std::mutex mutex;
  std::set<ForkGuard*> guards;
  std::atomic<int> generation{0};  // counts forks on the child's side
  // Takes the sockets' numbers, which their owners in the child still hold and will close.
  const int nowhere = ::open("/dev/null", O_RDONLY | O_CLOEXEC);

  static ForkHandlers& get() {
    static ForkHandlers* const all = [] {
      static ForkHandlers handlers;
      ::pthread_atfork([] { get().mutex.lock(); }, [] { get().mutex.unlock(); },
                       [] { get().in_child(); });
      return &handlers;
    }();
    return *all;
  }

  void in_child() {
    generation.fetch_add(1);
    for (const ForkGuard* guard : guards) {
      for (const int descriptor : guard->descriptors_) ::dup3(nowhere, descriptor, O_CLOEXEC);
    }
    guards.clear();
    mutex.unlock();
  }
};

ForkGuard::ForkGuard(std::vector<int> descriptors)
    : descriptors_(std::move(descriptors)), born_in_(ForkHandlers::get().generation) {
  const std::lock_guard lock(ForkHandlers::get().mutex);
  ForkHandlers::get().guards.insert(this);
}

ForkGuard::~ForkGuard() {
  const std::lock_guard lock(ForkHandlers::get().mutex);
  ForkHandlers::get().guards.erase(this);
}

bool ForkGuard::forked() const {
  return born_in_ != ForkHandlers::get().generation.load(std::memory_order_relaxed);
}

}  // namespace pycomm
