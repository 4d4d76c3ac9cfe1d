// SPDX-License-Identifier: MIT
// The interpreter of plans on GPUs made of threads: every all_reduce, broadcast and reduce of the
// catalogue that can be lowered gives the bits of the CPU's executor, on 1 to 8 ranks, also in many
// small pieces, on numbers that wrap; no plan is run that could stall; what ends a wait early.
#include <set>

#include "check.h"
#include "device_peers_world.h"
#include "engine/lower_plan.h"
#include "kernels/plan_launch.h"
#include "kernels_data.h"
#include "simulation.h"

using namespace pycomm;
using device_memory::Aligned;
using device_peers::ThreadedLaunch;
using device_peers::World;

namespace {

constexpr Collective kCollectives[] = {Collective::all_reduce, Collective::broadcast,
                                       Collective::reduce};

std::vector<DevicePlan> lowered(Collective collective, const std::string& algorithm, int ranks,
                                int root = 0) {
  std::vector<DevicePlan> plans(static_cast<size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) {
    const auto& program = simulation::program_for(collective, algorithm, ranks, rank, root);
    const auto why = lower_plan(program, &plans[static_cast<size_t>(rank)]);
    CHECK(why.empty(), algorithm, ": ", why);
  }
  return plans;
}

struct Call {
  Collective collective = Collective::all_reduce;
  std::string algorithm;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  size_t count = 0;
  int root = 0;
  size_t blocks = 1;
  size_t shift = 0;
  std::vector<DevicePlan> plans{};
  std::vector<std::vector<char>> tensors{};
  std::vector<std::unique_ptr<Aligned>> memory{}, scratch{};

  char* tensor(int rank) { return memory[static_cast<size_t>(rank)]->data() + shift; }
  std::string text() const {
    return check::join(name_of(collective), " by ", algorithm, ", ", name_of(op), " ",
                       name_of(dtype), "[", count, "] on ", plans.size(), " ranks, ", blocks,
                       " blocks");
  }
};

void prepare(std::mt19937_64& random, Call& call, int ranks) {
  constexpr std::pair<ReduceOp, DType> kKinds[] = {
      {ReduceOp::sum, DType::float32}, {ReduceOp::avg, DType::bfloat16},
      {ReduceOp::max, DType::float16}, {ReduceOp::sum, DType::float64},
      {ReduceOp::bor, DType::int64},   {ReduceOp::product, DType::int32}};
  std::tie(call.op, call.dtype) = kKinds[random() % std::size(kKinds)];
  call.root =
      call.collective == Collective::all_reduce ? 0 : static_cast<int>(random() % 8) % ranks;
  call.blocks = 1 + random() % 3;
  call.shift = random() % 2 ? 0 : size_of(call.dtype);
  call.plans = lowered(call.collective, call.algorithm, ranks, call.root);
  const size_t bytes = call.count * size_of(call.dtype);
  for (int rank = 0; rank < ranks; ++rank) {
    call.tensors.emplace_back(bytes);
    kernels_data::fill(random, call.dtype, call.tensors.back());
    call.memory.push_back(std::make_unique<Aligned>(bytes + call.shift));
    std::copy_n(call.tensors.back().data(), bytes, call.tensor(rank));
    const auto& plan = call.plans[static_cast<size_t>(rank)];
    call.scratch.push_back(
        std::make_unique<Aligned>(plan_scratch_bytes(plan, call.count, call.dtype)));
  }
}

int launch(World& world, Call& call, int rank, uint64_t seed, uint32_t signature = 7) {
  const auto r = static_cast<size_t>(rank);
  PlanTask task{world.group(rank), &call.plans[r], call.op, call.dtype};
  if (call.op == ReduceOp::avg) task.divisor = world.size();
  task.tensor = call.tensor(rank);
  task.count = call.count;
  task.scratch = call.scratch[r]->data();
  task.signature = signature;
  return launch_plan(task, ThreadedLaunch{seed + 1009 * r, call.blocks}, nullptr);
}

// What the CPU's executor makes of the same tensors.
void run_on_cpu(Call& call) {
  const int ranks = static_cast<int>(call.tensors.size());
  simulation::World world(ranks, 512);
  std::vector<std::unique_ptr<Operation>> operations;
  std::vector<simulation::Script> scripts(call.tensors.size());
  for (int rank = 0; rank < ranks; ++rank) {
    auto& operation = *operations.emplace_back(std::make_unique<Operation>());
    operation.collective = call.collective;
    operation.op = call.op;
    operation.dtype = call.dtype;
    operation.root = call.root;
    operation.sequence = 1;
    auto& tensor = call.tensors[static_cast<size_t>(rank)];
    operation.work = {{reinterpret_cast<std::byte*>(tensor.data()), call.count}};
    scripts[static_cast<size_t>(rank)].push_back(
        {&simulation::program_for(call.collective, call.algorithm, ranks, rank, call.root),
         &operation});
  }
  std::mt19937_64 random(1);
  const auto outcome =
      simulation::Run(world, scripts, simulation::Order::round_robin, random).to_end();
  CHECK(outcome.all_done(scripts), outcome.text());
}

void run_in_a_row(World& world, std::vector<Call>& calls, uint64_t seed) {
  std::vector<std::function<void(int)>> work;
  for (auto& call : calls) {
    work.emplace_back(
        [&world, &call, seed](int rank) { CHECK(launch(world, call, rank, seed) == kLaunched); });
  }
  world.run(work);
  for (auto& call : calls) {
    run_on_cpu(call);
    for (int rank = 0; rank < world.size(); ++rank) {
      CHECK(world.fault(rank).status == PeerStatus::fine, "rank ", rank, ", ", call.text());
      const auto& expected = call.tensors[static_cast<size_t>(rank)];
      CHECK(std::equal(expected.begin(), expected.end(), call.tensor(rank)), "rank ", rank, ", ",
            call.text());
      CHECK(call.memory[static_cast<size_t>(rank)]->is_untouched(call.tensor(rank) +
                                                                 expected.size()));
    }
  }
}

bool can_be_lowered(Collective collective, const std::string& algorithm, int ranks) {
  DevicePlan plan;
  return lower_plan(simulation::program_for(collective, algorithm, ranks, 0, 0), &plan).empty();
}

}  // namespace

TEST("every plan of the catalogue gives the executor's bits, call after call") {
  const auto seed = kernels_data::seed();
  std::mt19937_64 random(seed);
  std::set<std::string> seen;
  for (int ranks = 1; ranks <= kPeersMax; ++ranks) {
    World world(ranks, 0, 0, plan_lanes_bytes(ranks, 256));
    if (ranks == 3) world.age(0xfffffff0u);
    std::vector<Call> calls;
    for (const Collective collective : kCollectives) {
      for (const auto algorithm : algorithms_for(collective)) {
        if (!can_be_lowered(collective, std::string(algorithm), ranks)) continue;
        seen.insert(check::join(name_of(collective), " ", algorithm));
        for (const size_t count : {size_t{0}, size_t{1}, size_t{37}, size_t{2500}}) {
          Call call{collective, std::string(algorithm)};
          call.count = count;
          prepare(random, call, ranks);
          calls.push_back(std::move(call));
        }
      }
    }
    std::shuffle(calls.begin(), calls.end(), random);
    run_in_a_row(world, calls, seed);
  }
  for (const char* wanted :
       {"all_reduce ring", "all_reduce double_binary_tree", "all_reduce direct",
        "all_reduce one_shot", "all_reduce halving_doubling", "all_reduce recursive_doubling"}) {
    CHECK(seen.contains(wanted), wanted);
  }
}

TEST("no plan of the catalogue stalls in order with the slots that lanes have") {
  for (int ranks = 1; ranks <= kPeersMax; ++ranks) {
    for (const Collective collective : kCollectives) {
      for (const auto algorithm : algorithms_for(collective)) {
        if (!can_be_lowered(collective, std::string(algorithm), ranks)) continue;
        for (int root = 0; root < (collective == Collective::all_reduce ? 1 : ranks); ++root) {
          const auto why = check_in_order(lowered(collective, std::string(algorithm), ranks, root));
          CHECK(why.empty(), name_of(collective), " ", algorithm, " on ", ranks, ": ", why);
        }
      }
    }
  }
}

TEST("a plan that would stall is found out, with the rank and the step") {
  auto plans = lowered(Collective::all_reduce, "ring", 3);
  CHECK(!check_in_order(plans, 0).empty());
  for (auto& plan : plans) std::swap(plan.steps[0], plan.steps[1]);  // receive before sending
  CHECK(check_in_order(plans) == "rank 0 waits for ever in step 0 of run 0", check_in_order(plans));
  plans = lowered(Collective::all_reduce, "ring", 3);
  plans[1].step_count -= 1;  // leaves a piece in its lane
  CHECK(check_in_order(plans, kLaneSlots, 1) == "rank 1 does not take all that rank 0 sends it",
        check_in_order(plans, kLaneSlots, 1));
}

TEST("what has no place in the table is refused with its reason") {
  DevicePlan plan;
  const auto refusal = [&](Collective collective, const char* algorithm, int ranks) {
    return lower_plan(simulation::program_for(collective, algorithm, ranks, 0, 0), &plan);
  };
  CHECK(refusal(Collective::all_reduce, "ring", 9) == "it is for 9 ranks, at most 8 can be peers");
  CHECK(refusal(Collective::all_gather, "ring", 4) == "all_gather has more than one tensor");
}

TEST("a peer that does not come, or comes with something else, is named") {
  std::mt19937_64 random(1);
  Call call{Collective::all_reduce, "ring"};
  call.count = 500;
  prepare(random, call, 3);
  World world(3, 0, 0, plan_lanes_bytes(3, 256));
  world.set_timeout_ns(30'000'000);
  world.run({[&](int rank) {
    if (rank != 1) launch(world, call, rank, 1);
  }});
  CHECK(world.fault(2).status == PeerStatus::timed_out && world.fault(2).peer == 1);

  World other(3, 0, 0, plan_lanes_bytes(3, 256));
  other.set_timeout_ns(200'000'000);
  other.run({[&](int rank) { launch(other, call, rank, 1, rank == 1 ? 0xabcd : 0x1234); }});
  const PeerFault fault = other.fault(2);
  CHECK(fault.status == PeerStatus::mismatch && fault.peer == 1 && fault.signature == 0xabcd);
}
