// SPDX-License-Identifier: MIT
// What this machine can do at best: the numbers that every collective is held against.
//
//   g++ -O3 -march=native -std=c++20 benchmarks/floors.cc -o floors && ./floors
//
// Two processes pinned to the first two usable cores; medians of 9 samples. One line each: what,
// bytes, value, unit. Bytes per second count the bytes of one buffer, as algbw does: a memcpy of n
// bytes counts n, a reduction of two buffers of n bytes counts n.
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <climits>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <new>
#include <vector>

namespace {

constexpr int kSamples = 9;
constexpr size_t kBufferBytes = size_t{64} << 20;
constexpr size_t kPageBytes = 4096;

struct alignas(64) Word {
  std::atomic<uint32_t> value{0};
};

struct Shared {
  Word epochs[2];       // barrier
  Word ball;            // crosses between the cores
  double slower_us[2];  // each process's time of the last sample
};

Shared* shared;
std::byte* buffers[2];  // of the two processes, mapped by both
int self;
uint32_t epoch = 0;
cpu_set_t usable;

void pin(int index) {
  cpu_set_t one;
  CPU_ZERO(&one);
  int skip = index % CPU_COUNT(&usable);
  int cpu = 0;
  while (!CPU_ISSET(cpu, &usable) || skip-- > 0) ++cpu;
  CPU_SET(cpu, &one);
  ::sched_setaffinity(0, sizeof(one), &one);
}

void meet() {
  shared->epochs[self].value.store(++epoch, std::memory_order_release);
  for (int spins = 0; shared->epochs[1 - self].value.load(std::memory_order_acquire) < epoch;) {
    if (++spins % 100000 == 0) ::sched_yield();  // both may be on one core
    __builtin_ia32_pause();
  }
}

double once_us(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin)
      .count();
}

// The slower process's time, median over samples; both run `body`, or only the first.
double median_us(bool both, const std::function<void()>& body) {
  std::vector<double> times;
  for (int sample = 0; sample < kSamples; ++sample) {
    meet();
    shared->slower_us[self] = both || self == 0 ? once_us(body) : 0;
    meet();
    times.push_back(std::max(shared->slower_us[0], shared->slower_us[1]));
    meet();
  }
  std::nth_element(times.begin(), times.begin() + kSamples / 2, times.end());
  return times[kSamples / 2];
}

void say(const char* what, size_t bytes, double value, const char* unit) {
  if (self == 0) std::printf("%-44s %10zu %10.3f %s\n", what, bytes, value, unit);
}

int calls_for(size_t bytes) {
  return static_cast<int>(std::max<size_t>(2, (size_t{16} << 20) / bytes));
}

double rate(size_t bytes, int calls, double us) {
  return static_cast<double>(bytes) * calls / us / 1e3;  // GB/s
}

// A store that the compiler may not leave out.
void keep(const void* data) { asm volatile("" : : "r"(data) : "memory"); }

void bandwidths() {
  auto* from = static_cast<float*>(std::aligned_alloc(kPageBytes, kBufferBytes));
  auto* to = static_cast<float*>(std::aligned_alloc(kPageBytes, kBufferBytes));
  std::fill_n(from, kBufferBytes / sizeof(float), 0.0f);
  std::fill_n(to, kBufferBytes / sizeof(float), 0.0f);
  for (const size_t bytes : {size_t{1} << 18, size_t{1} << 22, size_t{1} << 24, kBufferBytes}) {
    const int calls = calls_for(bytes);
    const auto copy = [&] {
      for (int i = 0; i < calls; ++i) {
        std::memcpy(to, from, bytes);
        keep(to);
      }
    };
    const auto add = [&] {
      for (int i = 0; i < calls; ++i) {
        for (size_t at = 0; at < bytes / sizeof(float); ++at) to[at] += from[at];
        keep(to);
      }
    };
    say("memcpy, one core", bytes, rate(bytes, calls, median_us(false, copy)), "GB/s");
    say("memcpy, both cores at once, each", bytes, rate(bytes, calls, median_us(true, copy)),
        "GB/s");
    say("float32 a += b, one core", bytes, rate(bytes, calls, median_us(false, add)), "GB/s");
    say("float32 a += b, both cores at once, each", bytes, rate(bytes, calls, median_us(true, add)),
        "GB/s");
  }
  std::free(from);
  std::free(to);
}

// Each process adds its half of both buffers and writes the sum to both.
void window_reduce() {
  auto* a = reinterpret_cast<float*>(buffers[0]);
  auto* b = reinterpret_cast<float*>(buffers[1]);
  for (const size_t bytes : {size_t{1} << 16, size_t{1} << 18, size_t{1} << 20, size_t{1} << 22,
                             size_t{1} << 24, kBufferBytes}) {
    const size_t half = bytes / sizeof(float) / 2;
    const size_t first = self == 0 ? 0 : half;
    const int calls = calls_for(bytes);
    const double us = median_us(true, [&] {
      for (int i = 0; i < calls; ++i) {
        meet();
#pragma GCC ivdep
        for (size_t at = first; at < first + half; ++at) a[at] = b[at] = a[at] + b[at];
        meet();
      }
    });
    say("all_reduce of two mapped buffers in place", bytes, us / calls, "us");
  }
}

void futex(std::atomic<uint32_t>& word, int operation, uint32_t value) {
  ::syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), operation, value, nullptr, nullptr, 0);
}

enum class Waiting { spin, yield, sleep };

// The ball goes back and forth; every return is one more trip.
void play(Waiting waiting, int trips) {
  auto& ball = shared->ball.value;
  for (int trip = 0; trip < trips; ++trip) {
    const auto mine = static_cast<uint32_t>(2 * trip + self);
    while (true) {
      const uint32_t now = ball.load(std::memory_order_acquire);
      if (now == mine) break;
      if (waiting == Waiting::sleep) futex(ball, FUTEX_WAIT, now);
      if (waiting == Waiting::yield) ::sched_yield();
    }
    ball.store(mine + 1, std::memory_order_release);
    if (waiting == Waiting::sleep) futex(ball, FUTEX_WAKE, INT_MAX);
  }
  meet();
  ball.store(0, std::memory_order_release);
  meet();
}

double one_way_us(Waiting waiting, int trips) {
  return median_us(true, [&] { play(waiting, trips); }) / trips / 2;
}

void latencies() {
  say("cache line, one way", 64, 1e3 * one_way_us(Waiting::spin, 10000), "ns");
  say("futex, one way between cores", 4, one_way_us(Waiting::sleep, 1000), "us");
  constexpr int kYields = 10000;
  const double alone_us = median_us(false, [] {
    for (int i = 0; i < kYields; ++i) ::sched_yield();
  });
  say("sched_yield, nobody else waits", 0, 1e3 * alone_us / kYields, "ns");
  pin(0);  // both on one core
  say("sched_yield to another process", 0, one_way_us(Waiting::yield, 1000), "us");
  say("futex, one way on one core", 4, one_way_us(Waiting::sleep, 1000), "us");
  pin(self);
}

void first_touch() {
  const size_t bytes = size_t{32} << 20;
  const double us = median_us(false, [&] {
    auto* fresh = static_cast<std::byte*>(
        ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (size_t at = 0; at < bytes; at += kPageBytes) fresh[at] = std::byte{1};
    ::munmap(fresh, bytes);
  });
  say("first touch of a page, its release included", kPageBytes,
      us / static_cast<double>(bytes / kPageBytes), "us");
}

void* map_shared(size_t bytes) {
  void* data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) std::abort();
  return data;
}

}  // namespace

int main() {
  CPU_ZERO(&usable);
  ::sched_getaffinity(0, sizeof(usable), &usable);
  shared = new (map_shared(sizeof(Shared))) Shared;
  for (auto& buffer : buffers) buffer = static_cast<std::byte*>(map_shared(kBufferBytes));
  const pid_t child = ::fork();
  self = child == 0;
  if (child == 0) ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  pin(self);
  std::memset(buffers[self], 0, kBufferBytes);
  bandwidths();
  window_reduce();
  first_touch();
  latencies();
  if (child == 0) std::_Exit(0);
  ::waitpid(child, nullptr, 0);
  return 0;
}
