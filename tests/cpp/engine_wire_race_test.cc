// SPDX-License-Identifier: MIT
// PYCOMM_WIRE=auto on whole engines, ranks as threads: all decide alike, and what follows is right.
#include "groups.h"
#include "plan/algorithms.h"

using namespace groups;

namespace {

std::vector<Wire> decisions(const Layout& layout, int world_size, const std::string& algorithms) {
  auto meshes = connect_threads(world_size, layout);
  std::vector<std::unique_ptr<Engine>> engines;
  for (auto& mesh : meshes) {
    auto options = quick();
    options.wire = parse_wire("auto");
    options.algorithms = parse_algorithms(algorithms);
    engines.push_back(std::make_unique<Engine>(std::move(mesh), std::move(options)));
  }
  std::vector<Wire> decided(engines.size());
  on_threads(world_size, [&](int rank) {
    auto& engine = *engines[static_cast<size_t>(rank)];
    engine.settle_wire();
    decided[static_cast<size_t>(rank)] = engine.programs().wire();
    for (const size_t count : {1, 20000, 300001}) {
      auto memory = tensor(count, 3);  // exact in every format that auto may choose
      engine.run(make(Collective::all_reduce, memory));
      check_all(memory, static_cast<float>(3 * world_size), "after the race");
    }
    engine.shutdown("the test is over", true);
  });
  return decided;
}

}  // namespace

TEST("auto decides the same on all ranks, for fp32 or 16 bits") {
  for (const auto& layout : {Layout{"tcp"}, Layout{"shm,tcp", {0, 0, 1}}}) {
    const auto decided = decisions(layout, 3, "");
    for (const Wire one : decided) {
      CHECK(one == decided[0] && (one == Wire::fp32 || one == Wire::fp16s || one == Wire::bf16),
            name_of(one), " and ", name_of(decided[0]));
    }
  }
}

TEST("auto stays with float32 in shared memory, and where the algorithm chosen cannot narrow") {
  for (const Wire one : decisions({"shm"}, 2, "")) CHECK(one == Wire::fp32, name_of(one));
  for (const Wire one : decisions({"tcp"}, 2, "ring")) CHECK(one == Wire::fp32, name_of(one));
}
