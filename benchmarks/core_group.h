// SPDX-License-Identifier: MIT
// Ranks for benchmarks of the core: forked processes, each with an engine of its own, pinned to the
// usable cores in turn, and shared memory in which they meet and leave their times.
//
// run_ranks() forks before any thread exists and returns in the parent when all ranks have ended.
// One thread per rank uses what is here.
#pragma once

#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "connections.h"
#include "engine/engine.h"
#include "pinning.h"

namespace core_group {

using namespace pycomm;

inline constexpr int kRanksMax = 64;

// Meeting point of all ranks; costs a yield when it waits, so it also works with more ranks than
// cores. Lies in memory that all ranks map.
struct Meeting {
  std::atomic<int> arrived{0};
  std::atomic<int> generation{0};
  double microseconds[kRanksMax] = {};

  void wait(int world_size) {
    const int mine = generation.load();
    if (arrived.fetch_add(1) + 1 == world_size) {
      arrived = 0;
      ++generation;
      return;
    }
    while (generation.load() == mine) ::sched_yield();
  }
};

// body(rank, store, meeting) in world_size processes. Returns 0 when all ended well.
inline int run_ranks(int world_size, bool pin,
                     const std::function<void(int, Store&, Meeting&)>& body) {
  void* shared =
      ::mmap(nullptr, sizeof(Meeting), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) throw_system("mmap");
  auto& meeting = *new (shared) Meeting;
  connections::FileStore store;
  std::vector<pid_t> ranks;
  for (int rank = 0; rank < world_size; ++rank) {
    const pid_t pid = ::fork();
    if (pid < 0) throw_system("fork");
    if (pid > 0) {
      ranks.push_back(pid);
      continue;
    }
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (pin) pin_in_turn(rank);
    int code = 0;
    try {
      body(rank, store, meeting);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
      code = 1;
    }
    std::fflush(nullptr);
    ::_exit(code);
  }
  int failed = 0;
  for (size_t left = ranks.size(); left > 0; --left) {
    int status = 0;
    if (::wait(&status) < 0) break;
    if (status == 0 || failed++) continue;
    for (const pid_t pid : ranks) ::kill(pid, SIGKILL);  // a rank that waits at the meeting point
  }
  ::munmap(shared, sizeof(Meeting));
  return failed ? 1 : 0;
}

inline std::unique_ptr<Engine> make_engine(Store& store, int rank, int world_size,
                                           const std::string& transports,
                                           const std::string& algorithms) {
  MeshOptions mesh;
  mesh.transports = transports;
  EngineOptions engine;
  engine.algorithms = parse_algorithms(algorithms);
  return std::make_unique<Engine>(Mesh::connect(store, rank, world_size, mesh), std::move(engine));
}

// Medians of `samples` rounds: a round is a meeting, then `calls` calls back to back; its value is
// the slowest rank's time for one call, in microseconds. On rank 0; others get 0.
inline double median_us(int rank, int world_size, Meeting& meeting, int samples, int calls,
                        const std::function<void()>& call) {
  std::vector<double> times;
  for (int sample = 0; sample < samples; ++sample) {
    meeting.wait(world_size);
    const auto begin = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) call();
    const std::chrono::duration<double, std::micro> took = std::chrono::steady_clock::now() - begin;
    meeting.microseconds[rank] = took.count() / calls;
    meeting.wait(world_size);
    if (rank == 0) {
      times.push_back(*std::max_element(meeting.microseconds, meeting.microseconds + world_size));
    }
  }
  if (rank != 0) return 0;
  std::nth_element(times.begin(), times.begin() + samples / 2, times.end());
  return times[static_cast<size_t>(samples) / 2];
}

}  // namespace core_group
