// SPDX-License-Identifier: MIT
// Kernels whose blocks are made of real threads, as a GPU's are: between two barriers a thread may
// be far ahead of another. What one thread leaves in memory for another without a barrier between
// gives a wrong sum here, or a report of the thread sanitizer, where HostEnv, which runs a block's
// threads one after the other, sees nothing.
#include <barrier>
#include <deque>
#include <numeric>

#include "check.h"
#include "device_peers_world.h"
#include "kernels/plan_launch.h"
#include "kernels_data.h"

using namespace pycomm;
using device_memory::Aligned;
using device_peers::World;

namespace {

constexpr int kThreads = 4;

// What the threads of one block share.
struct Block {
  std::barrier<> barrier{kThreads};
  alignas(16) char shared[1024] = {};
};

// One thread of a block. Before each share of work it may fall behind, as a seed decides.
class ThreadEnv : public HostEnv {
 public:
  ThreadEnv(size_t block, size_t blocks, Block& shared, int thread, uint64_t seed)
      : HostEnv(block, blocks, kThreads),
        block_(shared),
        thread_(thread),
        random_(static_cast<uint32_t>(seed * kThreads) + static_cast<uint32_t>(thread)) {}

  template <class Share>
  void each_thread(const Share& share) const {
    const auto draw = random_() % 32;
    if (draw == 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (draw < 8) std::this_thread::yield();
    share(thread_);
  }
  void barrier() const { block_.barrier.arrive_and_wait(); }
  template <class T>
  T& shared() const {
    static_assert(sizeof(T) <= sizeof block_.shared);
    return *reinterpret_cast<T*>(block_.shared);
  }

 private:
  Block& block_;
  const int thread_;
  mutable std::minstd_rand random_;
};

struct RealThreads {
  uint64_t seed;
  template <class Body>
  int exactly(const Body& body, size_t blocks, void*) const {
    std::deque<Block> shared;
    std::vector<std::thread> all;
    for (size_t block = 0; block < blocks; ++block) {
      Block& mine = shared.emplace_back();
      for (int thread = 0; thread < kThreads; ++thread) {
        all.emplace_back([&, block, thread] {
          body(ThreadEnv(block, blocks, mine, thread, seed + 31 * block));
        });
      }
    }
    for (auto& thread : all) thread.join();
    return 0;
  }
};

// Every rank sends both chunks to all and then adds both up itself: sums that follow one another
// with no step between, which no plan of the catalogue has.
DevicePlan fold_after_fold(int ranks, int rank) {
  DevicePlan plan{};
  plan.rank = static_cast<int16_t>(rank);
  plan.world_size = static_cast<int16_t>(ranks);
  plan.work_chunks = 2;
  std::iota(plan.operands, plan.operands + ranks, uint8_t{0});
  for (uint8_t chunk = 0; chunk < 2; ++chunk) {
    for (int peer = 0; peer < ranks; ++peer) {
      if (peer == rank) continue;
      plan.steps[plan.step_count++] = {PlanOp::send, 0, static_cast<int8_t>(peer), 0, chunk, 0, 0};
    }
  }
  for (uint8_t chunk = 0; chunk < 2; ++chunk) {
    plan.steps[plan.step_count++] = {PlanOp::fold, 1,     0, static_cast<uint8_t>(ranks),
                                     chunk,        chunk, 0};
  }
  return plan;
}

enum class Way { one_shot, two_shot, plan };

// Whole numbers so small that float32 adds them exactly.
void check_sum(Way way, int ranks, size_t count, uint64_t seed) {
  World world(ranks, 2 * static_cast<size_t>(ranks) * (4 * count + 16), 4 * count + 16,
              plan_lanes_bytes(ranks, 64));
  std::vector<std::unique_ptr<Aligned>> tensors;
  std::vector<DevicePlan> plans;
  std::vector<float> sum(count);
  std::mt19937_64 random(seed);
  for (int rank = 0; rank < ranks; ++rank) {
    plans.push_back(fold_after_fold(ranks, rank));
    tensors.push_back(std::make_unique<Aligned>(4 * count));
    auto* const values = reinterpret_cast<float*>(tensors.back()->data());
    for (size_t i = 0; i < count; ++i) {
      values[i] = static_cast<float>(random() % 1000);
      sum[i] += values[i];
    }
  }
  world.run({[&](int rank) {
    const auto r = static_cast<size_t>(rank);
    const RealThreads launch{seed + 1009 * r};
    int error = 1;
    if (way == Way::plan) {
      PlanTask task{world.group(rank), &plans[r]};
      task.tensor = tensors[r]->data();
      task.count = count;
      error = launch_plan(task, launch, nullptr);
    } else {
      AllReduceTask task;
      task.group = world.group(rank);
      task.input = task.output = tensors[r]->data();
      task.count = count;
      error = way == Way::one_shot ? launch_one_shot(task, launch, nullptr)
                                   : launch_two_shot(task, launch, nullptr);
    }
    CHECK(error == kLaunched);
  }});
  for (int rank = 0; rank < ranks; ++rank) {
    CHECK(world.fault(rank).status == PeerStatus::fine, "rank ", rank);
    const auto* const got = reinterpret_cast<float*>(tensors[static_cast<size_t>(rank)]->data());
    for (size_t i = 0; i < count; ++i) {
      CHECK(got[i] == sum[i], "rank ", rank, " of ", ranks, ", element ", i, " of ", count, ": ",
            got[i], ", expected ", sum[i]);
    }
  }
}

}  // namespace

TEST("one_shot and two_shot are right when the threads of a block run apart") {
  const auto seed = kernels_data::seed();
  for (const int ranks : {2, 3}) {
    for (const size_t count : {size_t{50}, size_t{4500}}) {  // one block, two blocks
      for (uint64_t round = 0; round < 3; ++round) {
        check_sum(Way::one_shot, ranks, count, seed + round);
        check_sum(Way::two_shot, ranks, count, seed + round);
      }
    }
  }
}

TEST("sums of the interpreter that follow one another are right when threads run apart") {
  const auto seed = kernels_data::seed();
  for (uint64_t round = 0; round < 10; ++round) check_sum(Way::plan, 3, 300, seed + round);
}
