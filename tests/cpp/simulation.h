// SPDX-License-Identifier: MIT
// All ranks of a group in one thread: executors over loopback channels, stepped in an order that a
// seed decides, so that every interleaving can be had again.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "engine/executor.h"
#include "plan/algorithms.h"
#include "transport/faulty.h"
#include "transport/loopback.h"

namespace simulation {

using namespace pycomm;

// What goes wrong on the way from one rank to another; both lanes are treated alike.
using Faults = std::function<FaultPlan(int from, int to)>;

class World {
 public:
  World(int world_size, size_t segment_bytes, int slots = kSlots, const Faults& faults = {},
        const LoopbackReach& reach = {})
      : World(world_size, cut_for(world_size, segment_bytes, false, true), slots, faults, reach) {}
  World(int world_size, const Cut& cut, int slots = kSlots, const Faults& faults = {},
        const LoopbackReach& reach = {}) {
    const size_t segment_bytes = cut.segment_bytes;
    const auto ranks = static_cast<size_t>(world_size);
    std::vector<std::vector<Link>> links(ranks);
    for (auto& row : links) row.resize(ranks);
    const auto wrap = [&](std::unique_ptr<Channel> channel, size_t from, size_t to) {
      if (!faults) return channel;
      const int peer = static_cast<int>(to);
      return make_faulty(std::move(channel), faults(static_cast<int>(from), peer), peer);
    };
    for (size_t a = 0; a < ranks; ++a) {
      for (size_t b = a + 1; b < ranks; ++b) {
        for (int lane = 0; lane < kLanes; ++lane) {
          auto [here, there] = make_loopback_pair(slots, segment_bytes, reach);
          links[a][b].lanes[lane] = wrap(std::move(here), a, b);
          links[b][a].lanes[lane] = wrap(std::move(there), b, a);
        }
      }
    }
    for (size_t rank = 0; rank < ranks; ++rank) {
      meshes_.push_back(
          std::make_unique<Mesh>(static_cast<int>(rank), std::move(links[rank]), segment_bytes));
      executors_.push_back(std::make_unique<Executor>(*meshes_.back(), cut));
    }
  }

  int size() const { return static_cast<int>(meshes_.size()); }
  Mesh& mesh(int rank) { return *meshes_[static_cast<size_t>(rank)]; }
  Executor& executor(int rank) { return *executors_[static_cast<size_t>(rank)]; }
  uint64_t next_sequence() { return ++sequence_; }

 private:
  std::vector<std::unique_ptr<Mesh>> meshes_;
  std::vector<std::unique_ptr<Executor>> executors_;
  uint64_t sequence_ = 0;
};

// Programs are built once.
inline const Program& program_for(Collective collective, const std::string& algorithm,
                                  int world_size, int rank, int root) {
  static std::map<std::tuple<Collective, std::string, int, int, int>, std::unique_ptr<Program>> all;
  auto& one = all[{collective, algorithm, world_size, rank, root}];
  if (!one) {
    one = std::make_unique<Program>(make_plan(collective, algorithm, world_size, rank, root));
  }
  return *one;
}

struct Task {
  const Program* program = nullptr;
  const Operation* operation = nullptr;
};
using Script = std::vector<Task>;  // what one rank does, one after the other

enum class Order { random, round_robin, reversed, starve };
inline constexpr Order kOrders[] = {Order::random, Order::round_robin, Order::reversed,
                                    Order::starve};
inline const char* name_of(Order order) {
  static constexpr const char* kNames[] = {"random", "round robin", "reversed", "starve"};
  return kNames[static_cast<int>(order)];
}

struct Outcome {
  bool stalled = false;           // nobody can move and not everybody is done
  std::vector<size_t> done;       // operations that each rank completed
  std::vector<Failure> failures;  // by rank

  bool all_done(const std::vector<Script>& scripts) const {
    for (size_t rank = 0; rank < scripts.size(); ++rank) {
      if (done[rank] != scripts[rank].size()) return false;
    }
    return true;
  }
  std::string text() const {
    std::string text = stalled ? "stalled;" : "";
    for (size_t rank = 0; rank < done.size(); ++rank) {
      text += str(" rank ", rank, " completed ", done[rank]);
      if (failures[rank]) text += str(" and failed: ", failures[rank].text);
      text += ";";
    }
    return text;
  }
};

class Run {
 public:
  // A stall is believed after `patience` fruitless rounds; more than one for channels that delay.
  Run(World& world, const std::vector<Script>& scripts, Order order, std::mt19937_64& random,
      int patience = 1)
      : world_(world), scripts_(scripts), order_(order), random_(random), patience_(patience) {
    outcome_.done.resize(scripts.size());
    outcome_.failures.resize(scripts.size());
    running_.resize(scripts.size());
    victim_ = static_cast<int>(random_() % scripts.size());
  }

  Outcome to_end() {
    int fruitless = 0;
    while (!finished()) {
      bool moved = false;
      if (order_ == Order::random) {
        for (int i = 0; i < 4 * world_.size() && !moved; ++i) {
          moved = step(static_cast<int>(random_() % scripts_.size()));
        }
      }
      if (!moved) moved = round();
      fruitless = moved ? 0 : fruitless + 1;
      if (fruitless < patience_) continue;
      if (contradicted()) continue;
      outcome_.stalled = true;
      break;
    }
    return outcome_;
  }

  // One advance of one rank; false when it could not move.
  bool step(int rank) {
    const auto at = static_cast<size_t>(rank);
    const Script& script = scripts_[at];
    if (outcome_.failures[at] || outcome_.done[at] == script.size()) return false;
    Executor& executor = world_.executor(rank);
    if (!running_[at]) {
      const Task& task = script[outcome_.done[at]];
      executor.start(*task.program, *task.operation);
      running_[at] = true;
    }
    switch (executor.advance()) {
      case Executor::Progress::blocked:
        return false;
      case Executor::Progress::moved:
        return true;
      case Executor::Progress::done:
        running_[at] = false;
        ++outcome_.done[at];
        return true;
      case Executor::Progress::failed:
        outcome_.failures[at] = executor.failure();
        return true;
    }
    return false;
  }

  const Outcome& outcome() const { return outcome_; }

 private:
  bool finished() const {
    for (size_t rank = 0; rank < scripts_.size(); ++rank) {
      if (!outcome_.failures[rank] && outcome_.done[rank] != scripts_[rank].size()) return false;
    }
    return true;
  }

  bool round() {
    bool moved = false;
    for (int i = 0; i < world_.size(); ++i) {
      const int rank = order_ == Order::reversed ? world_.size() - 1 - i : i;
      if (order_ == Order::starve && rank == victim_) continue;
      moved |= step(rank);
    }
    if (!moved && order_ == Order::starve) moved = step(victim_);
    return moved;
  }

  // What the engine does before it sleeps.
  bool contradicted() {
    bool any = false;
    for (int rank = 0; rank < world_.size(); ++rank) {
      const auto at = static_cast<size_t>(rank);
      if (outcome_.failures[at] || !running_[at]) continue;
      if (!world_.executor(rank).find_contradiction()) continue;
      outcome_.failures[at] = world_.executor(rank).failure();
      any = true;
    }
    return any;
  }

  World& world_;
  const std::vector<Script>& scripts_;
  Order order_;
  std::mt19937_64& random_;
  int patience_;
  int victim_ = 0;
  std::vector<bool> running_;
  Outcome outcome_;
};

}  // namespace simulation
