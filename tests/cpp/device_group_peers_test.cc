// SPDX-License-Identifier: MIT
// What only mode K does: sums by kernels that wait for one another, bit for bit those of the CPU,
// and by algorithms that were chosen; what these kernels find out themselves; set-up that fails
// halfway. And ranks on several GPUs that may not use such kernels.
#include <random>

#include "device_ranks.h"

using namespace device_ranks;

namespace {

constexpr auto kK = DeviceMode::kernel;

// Any finite numbers of the dtype, so that another order of additions has other bits.
std::vector<std::byte> random_elements(DType dtype, size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<std::byte> bytes(count * size_of(dtype));
  for (size_t i = 0; i + size_of(dtype) <= bytes.size(); i += size_of(dtype)) {
    uint64_t bits = uint64_t{random()} << 32 | random();
    if (dtype == DType::float64) bits = (bits & 0x800F'FFFF'FFFF'FFFF) | 0x3FE0'0000'0000'0000;
    if (dtype == DType::float32) bits = (bits & 0x807F'FFFF) | 0x3F00'0000;
    if (dtype == DType::float16) bits = (bits & 0x83FF) | 0x3800;
    if (dtype == DType::bfloat16) bits = (bits & 0x807F) | 0x3F00;
    std::memcpy(bytes.data() + i, &bits, size_of(dtype));
  }
  return bytes;
}

// The CPU's kernel over all ranks' tensors in rank order.
std::vector<std::byte> on_cpu(const Operation& wanted, int world_size, size_t count) {
  std::vector<std::vector<std::byte>> inputs;
  std::vector<const void*> sources;
  for (int rank = 0; rank < world_size; ++rank) {
    inputs.push_back(random_elements(wanted.dtype, count, static_cast<unsigned>(rank)));
    sources.push_back(inputs.back().data());
  }
  std::vector<std::byte> result(count * size_of(wanted.dtype));
  ReduceTask task;
  task.op = wanted.op;
  task.dtype = wanted.dtype;
  task.target = result.data();
  task.sources = sources.data();
  task.source_count = world_size;
  task.count = count;
  task.divisor = wanted.op == ReduceOp::avg ? world_size : 1;
  reduce(task);
  return result;
}

// A kernel that another rank has released has nothing to say of its own.
void hear_of_failure(Engine& engine) {
  const auto until = Deadline::after(std::chrono::seconds(20));
  while (!engine.failure() && !until.expired()) std::this_thread::yield();
}

void check_bits(Rank& me, DType dtype, ReduceOp op, size_t count) {
  auto tensor = random_elements(dtype, count, static_cast<unsigned>(me.rank()));
  Operation wanted;
  wanted.dtype = dtype;
  wanted.op = op;
  wanted.work = {{tensor.data(), count}};
  me.finish(me.launch(wanted));
  CHECK(tensor == on_cpu(wanted, me.world_size(), count), name_of(op), " of ", count, " ",
        name_of(dtype), " by ", me.world_size(), " ranks on rank ", me.rank());
}

Rank rank_with_own_gpu(Engine& engine, int rank, int delay_us = 0) {
  return Rank(engine, seeded(rank, delay_us, kK), small_pool());
}

std::shared_ptr<const FakeGraph> captured(Rank& me, const Operation& wanted) {
  must(me.device().begin_capture(me.stream()));
  CHECK(!me.launch(wanted));
  std::shared_ptr<const FakeGraph> graph;
  must(me.device().end_capture(me.stream(), &graph));
  return graph;
}

}  // namespace

TEST("sums of kernels have the bits of the CPU's, for every size, dtype and number of ranks") {
  // Slots of 64 KiB: whole tensors up to 32 KiB are pushed, a buffer holds 128 KiB.
  for (int world_size = 2; world_size <= kPeersMax; ++world_size) {
    with_group({"shm"}, world_size, [&](auto& engine, int rank) {
      Rank me = rank_with_own_gpu(*engine, rank);
      for (const size_t count : {1, 8192, 8193, 32768, 32769, 70001}) {
        check_bits(me, DType::float32, ReduceOp::sum, count);
      }
      if (world_size % 2 == 0) return;
      for (const DType dtype : {DType::float16, DType::bfloat16, DType::float64, DType::int32,
                                DType::int64, DType::uint8, DType::int16}) {
        check_bits(me, dtype, ReduceOp::sum, 20011);
      }
      for (const ReduceOp op : {ReduceOp::avg, ReduceOp::max, ReduceOp::min, ReduceOp::product}) {
        check_bits(me, DType::float32, op, 20011);
      }
    });
  }
}

TEST("an algorithm chosen by name sums at once and in graphs, and says so") {
  for (const char* algorithm : {"ring", "double_binary_tree", "recursive_doubling",
                                "halving_doubling", "one_shot", "direct"}) {
    for (const int world_size : {2, 5, 8}) {
      with_group({"shm"}, world_size, [&](auto& engine, int rank) {
        auto options = small_pool();
        options.all_reduce = algorithm;
        Rank me(*engine, seeded(rank, 0, kK), options);
        const std::string said = me.group().describe();
        CHECK(said.find(str("; all_reduce by ", algorithm)) != std::string::npos, said);
        Tensors captured_one({Collective::all_reduce, ReduceOp::sum, 50001, 0}, rank, world_size);
        const auto graph = captured(me, captured_one.wanted());
        for (const size_t count : {0, 1, 1000, 100003}) {
          Tensors tensors({Collective::all_reduce, ReduceOp::avg, count, 0}, rank, world_size);
          me.finish(me.launch(tensors.wanted()));
          tensors.check(str(algorithm, ", ", world_size, " ranks"));
          captured_one.fill();
          must(me.device().replay(*graph, me.stream()));
          must(me.device().synchronize(me.stream()));
          captured_one.check(str(algorithm, " in a graph"));
        }
      });
    }
  }
}

TEST("an algorithm that no kernel runs is replaced by the size's choice, and it is said why") {
  std::string why;
  CHECK(make_peer_plan("hierarchical", 0, 2, &why).algorithm.empty() && !why.empty());
}

TEST("ranks of which some share a GPU work by streams across GPUs") {
  with_group({"shm"}, 5, [](auto& engine, int rank) {
    auto options = seeded(rank, 50);
    options.uuid = str("GPU-", rank / 2);
    Rank me(*engine, options, small_pool());
    CHECK(me.group().mode() == DeviceMode::stream, me.group().describe());
    for (const Collective collective : kServed) {
      for (const size_t count : {100, 40000}) {
        Tensors tensors({collective, ReduceOp::sum, count, 3}, rank, 5);
        me.finish(me.launch(tensors.wanted()));
        tensors.check("three GPUs");
      }
    }
  });
}

TEST("a replay that a peer does not come to ends by itself, and the next call names the peer") {
  with_group({"shm"}, 3, [](auto& engine, int rank) {
    Rank me = rank_with_own_gpu(*engine, rank);
    engine->set_timeout(std::chrono::milliseconds(200));
    Tensors tensors({Collective::all_reduce, ReduceOp::sum, 20000, 0}, rank, 3);
    const auto graph = captured(me, tensors.wanted());
    if (rank != 1) {
      must(me.device().replay(*graph, me.stream()));
      must(me.device().synchronize(me.stream()));
    }
    hear_of_failure(*engine);
    const auto failure = failure_of([&] { me.launch(tensors.wanted()); });
    CHECK(failure.kind == FailureKind::timeout, failure.text);
    CHECK(contains(failure, "waited for that of rank 1, which did not come"), failure.text);
    CHECK(failure.ranks == std::vector<int>{1}, failure.text);
  });
}

TEST(
    "a graph's kernel that gives up fails the group without a call, and its later replays do "
    "nothing") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    Rank me = rank_with_own_gpu(*engine, rank);
    engine->set_timeout(std::chrono::milliseconds(200));
    Tensors tensors({Collective::all_reduce, ReduceOp::sum, 1000, 0}, rank, 2);
    const auto graph = captured(me, tensors.wanted());
    if (rank == 0) {
      must(me.device().replay(*graph, me.stream()));
      must(me.device().synchronize(me.stream()));
    }
    hear_of_failure(*engine);
    const auto failure = engine->failure();
    CHECK(failure.kind == FailureKind::timeout, failure.text);
    CHECK(failure.ranks == std::vector<int>{1}, failure.text);
    if (rank == 1) return;
    tensors.fill();
    const Region& region = tensors.wanted().work[0];
    const std::vector<std::byte> before(region.data, region.data + region.count * sizeof(float));
    must(me.device().replay(*graph, me.stream()));
    must(me.device().synchronize(me.stream()));
    CHECK(std::equal(before.begin(), before.end(), region.data));
  });
}

TEST("graphs replayed in another order on one rank are found out, and no sum is mixed up") {
  with_group({"shm"}, 2, [](auto& engine, int rank) {
    Rank me = rank_with_own_gpu(*engine, rank);
    Tensors first({Collective::all_reduce, ReduceOp::sum, 1000, 0}, rank, 2);
    Tensors second({Collective::all_reduce, ReduceOp::max, 1000, 0}, rank, 2);
    const auto one = captured(me, first.wanted()), other = captured(me, second.wanted());
    for (int round = 0; round < 3; ++round) {
      first.fill();
      second.fill();
      must(me.device().replay(*one, me.stream()));
      must(me.device().replay(*other, me.stream()));
      must(me.device().synchronize(me.stream()));
      first.check("in order");
      second.check("in order");
    }
    must(me.device().replay(rank == 0 ? *one : *other, me.stream()));
    must(me.device().synchronize(me.stream()));
    hear_of_failure(*engine);
    const auto failure = failure_of([&] { me.launch(first.wanted()); });
    CHECK(failure.kind == FailureKind::mismatch, failure.text);
    CHECK(contains(failure, "graphs must be replayed in the same order"), failure.text);
  });
}

TEST("a failure of a device at any call of set-up leaves all ranks in the same mode, and soon") {
  bool failed = false, worked = false;
  for (int calls = 0; calls < 32; ++calls) {
    std::array<char, 2> modes{};
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      FakeDevice device(seeded(rank, 0, kK));
      const auto kernels = host_kernels([&](void* stream, std::function<void()> work) {
        if (device.enqueue_host(stream, work)) must(device.enqueue_host(stream, work));
      });
      if (rank == 1) device.fail_after(calls, "an injected failure");
      auto group = DeviceGroup::connect(*engine, device, *kernels, small_pool());
      modes[static_cast<size_t>(rank)] = static_cast<char>(group->mode());
    });
    CHECK(modes[0] == modes[1], calls, " calls: ", modes[0], " and ", modes[1]);
    (modes[0] == 'K' ? worked : failed) = true;
  }
  CHECK(failed && worked);
}
