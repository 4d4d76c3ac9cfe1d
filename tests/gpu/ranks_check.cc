// SPDX-License-Identifier: MIT
// Right results of ranks that share the GPU, and of ranks with a GPU each where there are several,
// also from replayed graphs; deaths and aborts.
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "ranks.h"

namespace ranks {
namespace {

constexpr size_t kCounts[] = {1, 1000, 3'000'017};

// Integers that float32 and any order of addition keep exact.
float value(int rank, int block, size_t index) {
  return static_cast<float>(
      (static_cast<size_t>(rank) * 7 + static_cast<size_t>(block) * 3 + index % 101) % 23);
}

float sum(int count, int block, size_t index) {
  float all = 0;
  for (int rank = 0; rank < count; ++rank) all += value(rank, block, index);
  return all;
}

// One rank's memory on the GPU, and pinned memory to fill it from and to look at it through.
class Buffer {
 public:
  Buffer(Device& device, void* stream, size_t elements)
      : device_(device), stream_(stream), memory_(device, elements * sizeof(float)) {
    must(device.allocate_pinned(elements * sizeof(float), &host_));
  }
  ~Buffer() { (void)device_.release_pinned(host_); }
  float* host() { return static_cast<float*>(host_.host); }
  Region region(size_t begin, size_t count) const {
    return {memory_.data + begin * sizeof(float), count};
  }
  void to_gpu() { must(device_.copy(stream_, memory_.data, host_.device, host_.bytes)); }
  void to_host() {
    must(device_.copy(stream_, host_.device, memory_.data, host_.bytes));
    must(device_.synchronize(stream_));
  }

 private:
  Device& device_;
  void* const stream_;
  Memory memory_;
  HostAllocation host_;
};

struct Case {
  Collective collective;
  size_t count;
  int ranks, rank;

  int blocks() const {
    return collective == Collective::all_reduce || collective == Collective::broadcast ? 0 : ranks;
  }
  size_t elements() const { return static_cast<size_t>(blocks() + 1) * count; }
  float before(size_t at) const {
    const auto block = static_cast<int>(at / std::max<size_t>(count, 1));
    const bool input = collective == Collective::reduce_scatter ? block < ranks
                       : collective == Collective::all_gather   ? block == ranks
                                                                : true;
    return input ? value(rank, collective == Collective::reduce_scatter ? block : 0, at % count)
                 : -1;
  }
  float after(size_t at) const {
    const auto block = static_cast<int>(at / std::max<size_t>(count, 1));
    const size_t index = at % count;
    if (collective == Collective::all_reduce) return sum(ranks, 0, index);
    if (collective == Collective::broadcast) return value(ranks - 1, 0, index);
    if (collective == Collective::all_gather) return value(block < ranks ? block : rank, 0, index);
    return block < ranks ? value(rank, block, index) : sum(ranks, rank, index);
  }
  Operation* wanted(const Buffer& buffer) const {
    auto* operation = new Operation;
    operation->collective = collective;
    operation->root = collective == Collective::broadcast ? ranks - 1 : 0;
    for (int b = 0; b <= blocks(); ++b) {
      operation->work.push_back(buffer.region(static_cast<size_t>(b) * count, count));
    }
    return operation;
  }
};

bool right(Buffer& buffer, const Case& one, const char* how) {
  buffer.to_host();
  for (size_t at = 0; at < one.elements(); ++at) {
    if (buffer.host()[at] == one.after(at)) continue;
    std::fprintf(stderr, "%s %s of %zu, rank %d of %d: element %zu is %g, expected %g\n", how,
                 std::string(name_of(one.collective)).c_str(), one.count, one.rank, one.ranks, at,
                 buffer.host()[at], one.after(at));
    return false;
  }
  return true;
}

void fill(Buffer& buffer, const Case& one) {
  for (size_t at = 0; at < one.elements(); ++at) buffer.host()[at] = one.before(at);
  buffer.to_gpu();
}

bool collectives(DeviceGroup& group, Engine& engine, const Gpu& gpu, void* stream, bool small) {
  const int rank = engine.mesh().rank(), count = engine.mesh().world_size();
  bool all = true;
  for (const Collective collective : {Collective::all_reduce, Collective::broadcast,
                                      Collective::all_gather, Collective::reduce_scatter}) {
    for (const size_t elements : kCounts) {
      if (small && elements > 100'000) continue;
      const Case one{collective, elements, count, rank};
      Buffer buffer(*gpu.device, stream, one.elements());
      const std::unique_ptr<Operation> wanted(one.wanted(buffer));
      const auto launch = [&](bool captured) {
        const auto call = group.prepare(*wanted, captured);
        if (call.operation) engine.submit(call.operation);
        must(group.enqueue(call, stream));
        return call.operation;
      };
      fill(buffer, one);
      engine.wait(*launch(false), {});
      all &= right(buffer, one, "direct");
      const auto replay = gpu.capture(stream, [&] { (void)launch(true); });
      for (int round = 0; round < 3; ++round) {
        fill(buffer, one);
        replay();
        all &= right(buffer, one, "replayed");
      }
    }
  }
  return all;
}

bool a_rank_dies(Engine& engine, DeviceGroup& group, const Gpu& gpu, void* stream) {
  const int rank = engine.mesh().rank();
  Buffer buffer(*gpu.device, stream, 100'000);
  Operation wanted;
  wanted.work = {buffer.region(0, 100'000)};
  if (rank == 1) ::_exit(0);  // without a word
  try {
    const auto call = group.prepare(wanted, false);
    engine.submit(call.operation);
    must(group.enqueue(call, stream));
    engine.wait(*call.operation, {});
    std::fprintf(stderr, "rank %d did not hear of the death of rank 1\n", rank);
    return false;
  } catch (const CommError& error) {
    const bool named = error.failure().ranks == std::vector<int>{1};
    if (!named) std::fprintf(stderr, "rank %d heard: %s\n", rank, error.what());
    must(gpu.device->synchronize(stream));  // the context lives, and no wait is left
    return named;
  }
}

// Counted in another process: one that has called CUDA cannot be forked.
int gpus_there(bool fake) {
  if (fake) return 4;
  double count = 0;
  (void)run(1, &count, 1, [](int, double* out) {
    int error = 0;
    *out = cuda_device_count(&error);
    return true;
  });
  return static_cast<int>(count);
}

// `own`: each has a GPU to itself.
bool check_ranks(bool fake, int count, bool own, bool dies) {
  return run_group(count, nullptr, 0, [&](Engine& engine, int rank, double*) {
    std::string why;
    const Gpu gpu = open_gpu(fake, &why, own ? rank : 0);
    const DeviceScope scope(*gpu.device);
    const auto group = DeviceGroup::connect(engine, *gpu.device, *gpu.kernels, {});
    if (rank == 0 && !dies) std::printf("%s\n", group->describe().c_str());
    // GPUs that do not reach each other are no fault.
    if (own && !fake && group->mode() == DeviceMode::host) return true;
    if (group->mode() != (own ? DeviceMode::kernel : DeviceMode::stream)) return false;
    void* stream = nullptr;
    must(gpu.device->create_stream(true, &stream));
    return dies ? a_rank_dies(engine, *group, gpu, stream)
                : collectives(*group, engine, gpu, stream, fake);
  });
}

}  // namespace

int check(bool fake) {
  int failed = 0;
  const int gpus = gpus_there(fake);
  for (const bool own : {false, true}) {
    for (const int count : {2, 4, 8}) {
      for (const bool dies : {false, true}) {
        if (own && count > gpus) continue;
        const bool right = check_ranks(fake, count, own, dies);
        failed += !right;
        std::printf("%s: %d ranks %s%s\n", right ? "passed" : "FAILED", count,
                    own ? "with a GPU each" : "on one GPU", dies ? ", one of which dies" : "");
        std::fflush(stdout);
      }
    }
  }
  return failed != 0;
}

}  // namespace ranks
