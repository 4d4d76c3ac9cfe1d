// SPDX-License-Identifier: MIT
#include "engine/tuner.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <vector>

#include "base/deadline.h"
#include "base/error.h"
#include "base/limits.h"
#include "kernels/reduce.h"
#include "transport/doorbell.h"
#include "transport/shared_memory.h"

namespace pycomm {
namespace {

using Clock = std::chrono::steady_clock;

// One word in each direction, and the memory through which bytes pass. Shared: nobody waits for a
// partner that has not begun, since nobody knows when it gets a core.
struct Desk {
  alignas(kCacheLineBytes) std::atomic<uint32_t> asked{0};
  alignas(kCacheLineBytes) std::atomic<uint32_t> answered{0};
  alignas(kCacheLineBytes) std::atomic<size_t> bytes{0};
  std::atomic<uint32_t> there{0};  // the partner runs
  std::atomic<bool> over{false};
  Mapping staged{create_shared_memory(kMeasureBytes).get(), 0, kMeasureBytes};
  std::vector<std::byte> target = std::vector<std::byte>(kMeasureBytes);
};

void wait_a_little(int& tries) {
  if (++tries % kMeasureSpins == 0) std::this_thread::yield();
}

// Off the core that measures, also where ranks are pinned to one core each; the kernel keeps to the
// cores that this process may use at all.
void leave_core(int core) {
  cpu_set_t others;
  std::memset(&others, 0xff, sizeof(others));
  if (core >= 0) CPU_CLR(static_cast<size_t>(core), &others);
  (void)::sched_setaffinity(0, sizeof(others), &others);
}

// Copies out what was copied in, as a receiving rank does, until all is over.
void partner_of(Desk& desk) {
  desk.there = 1;
  futex_wake_all(desk.there);
  uint32_t seen = 0;
  for (int tries = 0; !desk.over.load(std::memory_order_relaxed);) {
    const uint32_t asked = desk.asked.load(std::memory_order_acquire);
    if (asked == seen) {
      wait_a_little(tries);
      continue;
    }
    std::memcpy(desk.target.data(), desk.staged.data(), desk.bytes.load(std::memory_order_relaxed));
    seen = asked;
    desk.answered.store(asked, std::memory_order_release);
  }
}

class Measurement {
 public:
  Measurement() {
    partner_ = std::thread([desk = desk_, core = ::sched_getcpu()] {
      leave_core(core);
      partner_of(*desk);
    });
    // Asleep: who spins here may keep the partner from its core for a tick.
    const auto patience = Deadline::after(kMeasurePatience);
    while (!desk_->there && !patience.expired()) {
      futex_wait(desk_->there, 0, patience.remaining());
    }
    deadline_ = Deadline::after(kMeasureMax);
  }
  ~Measurement() {
    desk_->over = true;
    if (desk_->there) {
      partner_.join();
    } else {
      partner_.detach();
    }
  }

  std::optional<LinkCost> result() {
    if (!desk_->there) return std::nullopt;
    LinkCost link;
    const double round = best_of([this] { return round_trips(0, kMeasureRounds); });
    link.alpha_s = round / 2;
    const double copies = best_of([this] { return round_trips(kMeasureBytes, 1); });
    link.beta_s_per_byte = std::max(0.0, copies - round) / kMeasureBytes;
    link.gamma_s_per_byte = best_of([this] { return addition(); }) / kMeasureBytes;
    if (!in_time_) return std::nullopt;
    return link;
  }

 private:
  template <class Once>
  static double best_of(const Once& once) {
    once();  // pages are touched, the partner is awake
    double best = once();
    for (int i = 1; i < kMeasureTimes; ++i) best = std::min(best, once());
    return best;
  }

  double round_trips(size_t bytes, int rounds) {
    const auto begun = Clock::now();
    for (int i = 0; i < rounds && in_time_; ++i) {
      std::memcpy(desk_->staged.data(), here_.data(), bytes);
      desk_->bytes.store(bytes, std::memory_order_relaxed);
      const uint32_t question = desk_->asked.load(std::memory_order_relaxed) + 1;
      desk_->asked.store(question, std::memory_order_release);
      for (int tries = 0; desk_->answered.load(std::memory_order_acquire) != question;) {
        wait_a_little(tries);
        if (tries % kMeasureSpins == 0 && deadline_.expired()) in_time_ = false;
        if (!in_time_) break;
      }
    }
    return std::chrono::duration<double>(Clock::now() - begun).count() / rounds;
  }

  double addition() {
    const auto begun = Clock::now();
    const void* sources[2] = {here_.data(), desk_->staged.data()};
    ReduceTask task;
    task.dtype = DType::float32;
    task.target = here_.data();
    task.sources = sources;
    task.source_count = 2;
    task.count = kMeasureBytes / sizeof(float);
    reduce(task);
    return std::chrono::duration<double>(Clock::now() - begun).count();
  }

  const std::shared_ptr<Desk> desk_ = std::make_shared<Desk>();
  std::vector<std::byte> here_ = std::vector<std::byte>(kMeasureBytes);
  Deadline deadline_ = Deadline::never();  // until the partner runs
  bool in_time_ = true;
  std::thread partner_;
};

bool credible(const LinkCost& link) {
  const auto within = [](double value, double low, double high) {
    return value >= low && value <= high;  // false for NaN
  };
  return within(link.alpha_s, 1e-8, 1e-4) && within(link.beta_s_per_byte, 1e-12, 1e-8) &&
         within(link.gamma_s_per_byte, 1e-12, 1e-8);
}

// Bytes that move in the time of one message.
double bytes_per_message(const LinkCost& link) {
  return link.alpha_s / (link.beta_s_per_byte + link.gamma_s_per_byte);
}

}  // namespace

Figures assumed_figures() {
  return {{kAssumedAlphaS, kAssumedBetaSPerByte, kAssumedGammaSPerByte}, false};
}

const Figures& figures_of_this_process() {
  static const Figures figures = [] {
    std::optional<LinkCost> found;
    try {
      found = Measurement().result();
    } catch (const std::system_error&) {  // no thread
    } catch (const CommError&) {          // no memory
    }
    if (!found || !credible(*found)) return assumed_figures();
    return Figures{*found, true};
  }();
  return figures;
}

std::string serialize(const Figures& figures) {
  char text[128];
  std::snprintf(text, sizeof(text), "%d %.4g %.4g %.4g", figures.measured ? 1 : 0,
                figures.link.alpha_s, figures.link.beta_s_per_byte, figures.link.gamma_s_per_byte);
  return text;
}

Figures parse_figures(const std::string& text) {
  Figures figures;
  int measured = 0, used = 0;
  const int read =
      std::sscanf(text.c_str(), "%d %lg %lg %lg%n", &measured, &figures.link.alpha_s,
                  &figures.link.beta_s_per_byte, &figures.link.gamma_s_per_byte, &used);
  if (read != 4 || static_cast<size_t>(used) != text.size() || !credible(figures.link)) {
    return assumed_figures();
  }
  figures.measured = measured == 1;
  return figures;
}

double size_factor(const Figures& figures) {
  if (!credible(figures.link)) return 1;
  const double ratio = bytes_per_message(figures.link) / bytes_per_message(assumed_figures().link);
  // Towards 1: a factor of less than two may be noise.
  return std::exp2(std::clamp(std::trunc(std::log2(ratio)), -2.0, 2.0));
}

}  // namespace pycomm
