// SPDX-License-Identifier: MIT
// Kernels whose ranks wait for one another, all ranks in this process on one GPU, each with a
// stream: legal because all blocks of all ranks fit the device at once.
#include "engine/lower_plan.h"
#include "gpu_memory.cuh"
#include "plan/algorithms.h"

namespace gpu {
namespace {

constexpr size_t kSlotBytes = 512 * 1024;
constexpr size_t kBufferBytes = size_t{64} << 20;
constexpr size_t kPieceBytes = 16 * 1024;

// A block of 512 threads takes a whole multiprocessor, so ranks times blocks must not exceed them.
int processors() {
  int count = 0;
  must(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0), "attribute");
  return count;
}
size_t bytes_that_fit(int ranks) {
  const int blocks = processors() / ranks;
  return blocks >= kPeerBlocksMax ? kBufferBytes : static_cast<size_t>(blocks) * 16 * 1024;
}

struct Group {
  PeerGroup peers;
  std::vector<cudaStream_t> streams;
  std::vector<std::unique_ptr<Twin>> memory;
  PeerControl* controls = nullptr;

  explicit Group(int ranks) {
    peers.world_size = ranks;
    peers.slots_bytes = 2 * static_cast<size_t>(ranks) * kSlotBytes;
    peers.buffer_bytes = kBufferBytes;
    peers.lanes_bytes = plan_lanes_bytes(ranks, kPieceBytes);
    peers.timeout_ns = 5'000'000'000;
    const auto place = [&](size_t bytes) {
      memory.push_back(std::make_unique<Twin>(bytes));
      return memory.back()->device();
    };
    for (int r = 0; r < ranks; ++r) {
      peers.flags[r] = reinterpret_cast<PeerFlags*>(place(sizeof(PeerFlags)));
      peers.slots[r] = place(peers.slots_bytes);
      peers.lanes[r] = place(peers.lanes_bytes);
      peers.buffers[r] = place(peers.buffer_bytes);
      must(cudaStreamCreateWithFlags(&streams.emplace_back(), cudaStreamNonBlocking), "stream");
    }
    must(cudaHostAlloc(&controls, sizeof(PeerControl) * kPeersMax, cudaHostAllocMapped), "host");
    std::memset(static_cast<void*>(controls), 0, sizeof(PeerControl) * kPeersMax);
  }
  ~Group() {
    for (auto stream : streams) cudaStreamDestroy(stream);
    cudaFreeHost(controls);
  }
  PeerGroup of(int rank) const {
    PeerGroup mine = peers;
    mine.rank = rank;
    mine.control = controls + rank;
    return mine;
  }
  bool healthy() const {
    for (int r = 0; r < peers.world_size; ++r) {
      if (controls[r].status != 0) return false;
    }
    return true;
  }
  void synchronize() const {
    for (auto stream : streams) must(cudaStreamSynchronize(stream), "stream");
  }
};

enum class Way { one_shot, two_shot, plan };

int launch(const Group& group, int rank, Way way, const AllReduceTask& like, const DevicePlan* plan,
           void* scratch) {
  AllReduceTask task = like;
  task.group = group.of(rank);
  void* const stream = group.streams[static_cast<size_t>(rank)];
  if (way == Way::one_shot) return cuda_kernels().all_reduce_one_shot(task, stream);
  if (way == Way::two_shot) return cuda_kernels().all_reduce_two_shot(task, stream);
  return cuda_kernels().run_plan({task.group, plan, task.op, task.dtype, task.divisor, task.output,
                                  task.count, scratch, task.signature},
                                 stream);
}

std::vector<DevicePlan> plans_for(const char* algorithm, int ranks) {
  std::vector<DevicePlan> plans(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const Program program(make_plan(Collective::all_reduce, algorithm, ranks, rank));
    const auto why = lower_plan(program, &plans[static_cast<size_t>(rank)]);
    if (!why.empty()) std::printf("%s: %s\n", algorithm, why.c_str());
  }
  return plans;
}

// Small whole numbers, whose sum is the same in any order.
void check_one(Tally& tally, std::mt19937& random, Group& group, Way way, const char* algorithm,
               size_t count) {
  const int ranks = group.peers.world_size;
  const auto plans = plans_for(algorithm, ranks);
  std::vector<std::unique_ptr<Twin>> tensors, scratch;
  std::vector<float> expected(count);
  for (int r = 0; r < ranks; ++r) {
    tensors.push_back(std::make_unique<Twin>(4 * count));
    scratch.push_back(std::make_unique<Twin>(
        plan_scratch_bytes(plans[static_cast<size_t>(r)], count, DType::float32)));
    auto* const values = reinterpret_cast<float*>(tensors.back()->host());
    for (size_t i = 0; i < count; ++i) {
      values[i] = static_cast<float>(random() % 1000);
      expected[i] += values[i];
    }
    tensors.back()->to_device();
  }
  for (int r = 0; r < ranks; ++r) {
    const auto at = static_cast<size_t>(r);
    AllReduceTask task;
    task.input = task.output = tensors[at]->device();
    task.count = count;
    task.signature = 1;
    must(launch(group, r, way, task, &plans[at], scratch[at]->device()), "launch");
  }
  group.synchronize();
  bool right = group.healthy();
  for (auto& tensor : tensors) {
    std::memcpy(tensor->host(), expected.data(), 4 * count);
    right = tensor->same() && right;
  }
  tally.add(right, std::string(algorithm) + " on " + std::to_string(ranks) + " ranks, " +
                       std::to_string(count));
}

}  // namespace

void check_peers(Tally& tally, unsigned seed) {
  std::mt19937 random(seed);
  for (const int ranks : {2, 3, 4, 8}) {
    Group group(ranks);
    for (const size_t count : {1, 1000, 30001}) {
      for (int again = 0; again < 3; ++again) {
        check_one(tally, random, group, Way::one_shot, "one_shot", count);
        check_one(tally, random, group, Way::two_shot, "direct", count);
        for (const char* algorithm : {"ring", "double_binary_tree", "halving_doubling", "direct"}) {
          check_one(tally, random, group, Way::plan, algorithm, count);
        }
      }
    }
    // A peer that never comes: every block ends by itself, and the context lives.
    Group alone(ranks);
    alone.peers.timeout_ns = 50'000'000;
    Twin tensor(4000);
    AllReduceTask task;
    task.input = task.output = tensor.device();
    task.count = 1000;
    must(launch(alone, 0, Way::two_shot, task, nullptr, nullptr), "launch");
    alone.synchronize();
    const PeerFault fault = unpack_fault(alone.controls[0].status);
    tally.add(fault.status == PeerStatus::timed_out && fault.peer > 0, "a peer that does not come");
  }
}

std::string measure_peers(double copy_gbs) {
  std::string rows;
  for (const int ranks : {2, 4, 8}) {
    Group group(ranks);
    for (const Way way : {Way::one_shot, Way::two_shot, Way::plan}) {
      const char* const name = way == Way::plan       ? "ring"
                               : way == Way::one_shot ? "one_shot"
                                                      : "two_shot";
      const auto plans = plans_for("ring", ranks);
      for (size_t bytes = 1024; bytes <= kBufferBytes; bytes *= 4) {
        if (bytes > bytes_that_fit(ranks) || (way == Way::one_shot && bytes > kSlotBytes)) break;
        cudaEvent_t ready;
        must(cudaEventCreateWithFlags(&ready, cudaEventDisableTiming), "event");
        const double us = median_us([&](int) {
          // The default stream holds the events: all streams begin after it, and end before it.
          must(cudaEventRecord(ready, nullptr), "record");
          for (int r = 0; r < ranks; ++r) {
            const auto at = static_cast<size_t>(r);
            must(cudaStreamWaitEvent(group.streams[at], ready), "wait");
            AllReduceTask task;
            task.input = task.output = group.peers.buffers[r];
            task.count = bytes / 4;
            must(launch(group, r, way, task, &plans[at], nullptr), "launch");
          }
          for (int r = 0; r < ranks; ++r) {
            must(cudaEventRecord(ready, group.streams[static_cast<size_t>(r)]), "record");
            must(cudaStreamWaitEvent(nullptr, ready), "wait");
          }
        });
        must(cudaEventDestroy(ready), "event");
        const double floor_us = 2.0 * ranks * static_cast<double>(bytes) / copy_gbs / 1e3;
        char row[256];
        std::snprintf(row, sizeof row,
                      "  {\"kernel\": \"%s\", \"ranks\": %d, \"bytes\": %zu, \"us\": %.2f, "
                      "\"floor_us\": %.2f, \"healthy\": %s},\n",
                      name, ranks, bytes, us, floor_us, group.healthy() ? "true" : "false");
        rows += row;
      }
    }
  }
  return rows;
}

}  // namespace gpu
