// SPDX-License-Identifier: MIT
// All_reduce between GPUs made of threads: the bits of the CPU's reduction and of the plan that
// each kernel declares, for 1 to 8 ranks, sizes, misalignments, calls in a row, numbers that wrap;
// and what happens when a peer does not come, comes with something else, or the host gives up.
#include "check.h"
#include "device_peers_world.h"
#include "kernels/all_reduce_launch.h"
#include "kernels_data.h"
#include "simulation.h"

using namespace pycomm;
using device_memory::Aligned;
using device_peers::ThreadedLaunch;
using device_peers::World;

namespace {

enum class Way { one_shot, two_shot, two_shot_in_buffer };
constexpr Way kWays[] = {Way::one_shot, Way::two_shot, Way::two_shot_in_buffer};
constexpr const char* kWayNames[] = {"one_shot", "two_shot", "two_shot in the buffer"};

// One all_reduce: every rank's memory, and what must be in it afterwards.
struct Call {
  Way way = Way::one_shot;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  size_t count = 0;
  int divisor = 1;
  size_t blocks = 1;
  bool in_place = true;
  std::vector<size_t> shifts{};  // bytes, by rank
  std::vector<std::vector<char>> inputs{};
  std::vector<std::unique_ptr<Aligned>> outputs{};
  std::vector<char> expected{};

  std::string text() const {
    return check::join(kWayNames[static_cast<int>(way)], " ", name_of(op), " ", name_of(dtype), "[",
                       count, "] on ", inputs.size(), " ranks, ", blocks, " blocks");
  }
  char* output(int rank) {
    const auto r = static_cast<size_t>(rank);
    return outputs[r]->data() + shifts[r];
  }
};

std::vector<char> reduced(const Call& call) {
  std::vector<char> result(call.count * size_of(call.dtype));
  std::vector<const void*> sources;
  for (const auto& input : call.inputs) sources.push_back(input.data());
  reduce({call.op, call.dtype, result.data(), sources.data(), static_cast<int>(sources.size()),
          call.count, call.divisor});
  return result;
}

Call make_call(std::mt19937_64& random, int ranks, Way way, size_t count) {
  constexpr std::pair<ReduceOp, DType> kKinds[] = {
      {ReduceOp::sum, DType::float32},  {ReduceOp::avg, DType::float16},
      {ReduceOp::sum, DType::bfloat16}, {ReduceOp::max, DType::float64},
      {ReduceOp::bxor, DType::int32},   {ReduceOp::product, DType::int64},
      {ReduceOp::avg, DType::float32},  {ReduceOp::min, DType::bfloat16}};
  const auto [op, dtype] = kKinds[random() % std::size(kKinds)];
  Call call{way, op, dtype, count};
  if (op == ReduceOp::avg) call.divisor = ranks;
  call.blocks = 1 + random() % 3;
  call.in_place = random() % 2 == 0;
  const size_t size = size_of(dtype), bytes = count * size;
  const size_t together = random() % 2 ? random() % 16 / size * size : 0;
  for (int r = 0; r < ranks; ++r) {
    call.shifts.push_back(random() % 3 ? together : random() % 16 / size * size);
    call.inputs.emplace_back(bytes);
    kernels_data::fill(random, dtype, call.inputs.back());
    call.outputs.push_back(std::make_unique<Aligned>(bytes + 16));
    if (call.in_place) std::copy_n(call.inputs.back().data(), bytes, call.output(r));
  }
  call.expected = reduced(call);
  return call;
}

constexpr size_t kBufferOffset = 48;

int launch(World& world, Call& call, int rank, uint64_t seed, uint32_t signature = 7) {
  const auto r = static_cast<size_t>(rank);
  AllReduceTask task{world.group(rank), call.op, call.dtype, call.divisor};
  task.count = call.count;
  task.signature = signature;
  task.output = call.output(rank);
  task.input = call.in_place ? task.output : call.inputs[r].data();
  const ThreadedLaunch threads{seed + 1009 * r, call.blocks};
  if (call.way == Way::one_shot) return launch_one_shot(task, threads, nullptr);
  if (call.way == Way::two_shot) return launch_two_shot(task, threads, nullptr);
  task.input = task.output = world.buffer(rank) + kBufferOffset;
  char* const inside = world.buffer(rank) + kBufferOffset;
  std::copy_n(call.inputs[r].data(), call.inputs[r].size(), inside);
  const int error = launch_two_shot(task, threads, nullptr);
  std::copy_n(inside, call.inputs[r].size(), call.output(rank));
  return error;
}

void check_result(World& world, Call& call) {
  for (int rank = 0; rank < world.size(); ++rank) {
    CHECK(world.fault(rank).status == PeerStatus::fine, "rank ", rank, ", ", call.text());
    CHECK(std::equal(call.expected.begin(), call.expected.end(), call.output(rank)), "rank ", rank,
          ", ", call.text());
    auto& memory = *call.outputs[static_cast<size_t>(rank)];
    CHECK(memory.is_untouched(call.output(rank) + call.expected.size()), call.text());
  }
}

constexpr size_t kLargest = 3001;

World make_world(int ranks) {
  return World(ranks, 2 * static_cast<size_t>(ranks) * (kLargest * 8 / 16 + 1) * 16,
               kLargest * 8 + kBufferOffset);
}

void run_in_a_row(World& world, std::vector<Call>& calls, uint64_t seed) {
  std::vector<std::function<void(int)>> work;
  for (auto& call : calls) {
    work.emplace_back(
        [&world, &call, seed](int rank) { CHECK(launch(world, call, rank, seed) == kLaunched); });
  }
  world.run(work);
  for (auto& call : calls) check_result(world, call);
}

std::vector<char> by_plan(const Call& call, const char* algorithm) {
  const int ranks = static_cast<int>(call.inputs.size());
  simulation::World world(ranks, 512);
  std::vector<std::vector<std::byte>> memory;
  std::vector<std::unique_ptr<Operation>> operations;
  std::vector<simulation::Script> scripts(call.inputs.size());
  for (int rank = 0; rank < ranks; ++rank) {
    const auto& input = call.inputs[static_cast<size_t>(rank)];
    const auto* bytes = reinterpret_cast<const std::byte*>(input.data());
    memory.emplace_back(bytes, bytes + input.size());
    auto& operation = *operations.emplace_back(std::make_unique<Operation>());
    operation.op = call.op;
    operation.dtype = call.dtype;
    operation.sequence = 1;
    operation.work = {{memory.back().data(), call.count}};
    scripts[static_cast<size_t>(rank)].push_back(
        {&simulation::program_for(Collective::all_reduce, algorithm, ranks, rank, 0), &operation});
  }
  std::mt19937_64 random(1);
  const auto outcome =
      simulation::Run(world, scripts, simulation::Order::round_robin, random).to_end();
  CHECK(outcome.all_done(scripts), outcome.text());
  const auto* begin = reinterpret_cast<const char*>(memory[0].data());
  return {begin, begin + memory[0].size()};
}

}  // namespace

TEST("calls in a row, of all kinds and sizes, give every rank the CPU's bits") {
  const auto seed = kernels_data::seed();
  std::mt19937_64 random(seed);
  for (int ranks = 1; ranks <= kPeersMax; ++ranks) {
    World world = make_world(ranks);
    std::vector<Call> calls;
    for (const size_t count :
         {size_t{0}, size_t{1}, size_t{7}, size_t{64}, size_t{999}, kLargest}) {
      for (const Way way : kWays) calls.push_back(make_call(random, ranks, way, count));
    }
    std::shuffle(calls.begin(), calls.end(), random);
    run_in_a_row(world, calls, seed);
  }
}

TEST("numbers of points and calls may wrap") {
  const auto seed = kernels_data::seed();
  std::mt19937_64 random(seed);
  World world = make_world(3);
  world.age(0xfffffffdu);
  std::vector<Call> calls;
  for (int i = 0; i < 12; ++i) calls.push_back(make_call(random, 3, kWays[i % 3], 200));
  run_in_a_row(world, calls, seed);
  CHECK(world.flags(0).epochs[0] < 100 && world.flags(0).calls < 100);
}

TEST("each kernel gives the bits of the plan it declares, run by the executor") {
  std::mt19937_64 random(kernels_data::seed());
  for (int ranks : {2, 3, 5, 8}) {
    for (const Way way : kWays) {
      World world = make_world(ranks);
      std::vector<Call> calls;
      calls.push_back(make_call(random, ranks, way, 777));
      run_in_a_row(world, calls, 1);
      const char* const plan = way == Way::one_shot ? kOneShotPlan : kTwoShotPlan;
      CHECK(by_plan(calls[0], plan) == calls[0].expected, calls[0].text(), " as ", plan);
    }
  }
}

TEST("a peer that does not come is named when the time is over, and all blocks end") {
  for (const Way way : kWays) {
    std::mt19937_64 random(1);
    World world = make_world(3);
    world.set_timeout_ns(30'000'000);
    Call call = make_call(random, 3, way, 2000);
    call.blocks = 3;
    world.run({[&](int rank) {
      if (rank != 1) launch(world, call, rank, 1);
    }});
    for (const int rank : {0, 2}) {
      const PeerFault fault = world.fault(rank);
      CHECK(fault.status == PeerStatus::timed_out && fault.peer == 1, fault.peer, " named by rank ",
            rank, ", ", call.text());
      CHECK(world.control(rank).abort == 1);
    }
  }
}

TEST("the host ends all waits by one store") {
  std::mt19937_64 random(1);
  World world = make_world(2);
  Call call = make_call(random, 2, Way::two_shot, 2000);
  std::thread host([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    std::atomic_ref(world.control(0).abort).store(1, std::memory_order_release);
  });
  world.run({[&](int rank) {
    if (rank == 0) launch(world, call, rank, 1);
  }});
  host.join();
  CHECK(world.fault(0).status == PeerStatus::aborted && world.fault(0).peer == 1);
}

TEST("ranks that call different things find out at their first wait, and who it was") {
  for (const Way way : kWays) {
    std::mt19937_64 random(1);
    World world = make_world(2);
    Call call = make_call(random, 2, way, 500);
    world.set_timeout_ns(200'000'000);
    world.run({[&](int rank) { launch(world, call, rank, 1, rank == 1 ? 0xabcd : 0x1234); }});
    const PeerFault first = world.fault(0), second = world.fault(1);
    CHECK(first.status == PeerStatus::mismatch && first.peer == 1 && first.signature == 0xabcd);
    CHECK(second.status == PeerStatus::mismatch && second.peer == 0 && second.signature == 0x1234);
  }
}

TEST("what a group cannot do is refused") {
  World world(2, 64, 64);
  float x[64] = {};
  const auto refused = [&](bool one_shot, size_t count, DType dtype, ReduceOp op, auto change) {
    AllReduceTask task{world.group(0), op, dtype, 1, x, x, count};
    change(task);
    const ThreadedLaunch threads{1};
    return (one_shot ? launch_one_shot(task, threads, nullptr)
                     : launch_two_shot(task, threads, nullptr)) == kInvalidValue;
  };
  const auto as_it_is = [](AllReduceTask&) {};
  CHECK(one_shot_count(world.group(0), DType::float32) == 4);
  CHECK(refused(true, 5, DType::float32, ReduceOp::sum, as_it_is));
  CHECK(refused(false, 17, DType::float32, ReduceOp::sum, as_it_is));
  CHECK(refused(true, 1, DType::uint8, ReduceOp::sum, as_it_is));
  CHECK(refused(true, 1, DType::float32, ReduceOp::bxor, as_it_is));
  CHECK(refused(true, 1, DType::float32, ReduceOp::sum, [](auto& t) { t.group.rank = 2; }));
  CHECK(refused(true, 1, DType::float32, ReduceOp::sum, [](auto& t) { t.group.world_size = 9; }));
  CHECK(refused(true, 1, DType::float32, ReduceOp::sum, [](auto& t) { t.group.timeout_ns = 0; }));
  CHECK(refused(false, 1, DType::float32, ReduceOp::max, [](auto& t) { t.divisor = 2; }));
}
