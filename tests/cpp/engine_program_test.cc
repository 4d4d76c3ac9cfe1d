// SPDX-License-Identifier: MIT
// How plans become programs: what is joined, and what must wait for what.
#include "check.h"
#include "engine/program.h"
#include "plan/algorithms.h"
#include "plan/builder.h"

using namespace pycomm;
using Kind = Instruction::Kind;

namespace {

// "2 -> 0" reads: instruction 2 follows 0 segment by segment; "2 => 0": it follows all of 0.
std::string dependencies_of(const Program& program) {
  std::string text;
  for (size_t i = 0; i < program.instructions.size(); ++i) {
    for (int d = program.first_dependency[i]; d < program.first_dependency[i + 1]; ++d) {
      const auto& one = program.dependencies[static_cast<size_t>(d)];
      text += check::join(text.empty() ? "" : ", ", i, one.whole ? " => " : " -> ", one.before);
    }
  }
  return text;
}

std::string kinds_of(const Program& program) {
  static constexpr const char* kNames[] = {"send", "recv", "fold", "reduce", "copy"};
  std::string text;
  for (const auto& one : program.instructions) {
    text += check::join(text.empty() ? "" : " ", kNames[static_cast<int>(one.kind)]);
  }
  return text;
}

PlanBuilder builder(int world_size, int rank) {
  return PlanBuilder(Collective::all_reduce, "test", {world_size, rank, 0}, 2);
}

}  // namespace

TEST("consecutive receives into one chunk become one fold in rank order") {
  auto plan = builder(4, 1);
  plan.recv_reduce(3, work(0), false);
  plan.recv_reduce(0, work(0), false);
  plan.recv_reduce(2, work(0), true);
  const Program program(std::move(plan).build());
  CHECK(kinds_of(program) == "fold", kinds_of(program));
  const auto& fold = program.instructions[0];
  CHECK((fold.operands == std::vector<int>{0, 1, 2, 3}));
  CHECK(fold.completes && fold.target == 0 && fold.source == 0);
}

TEST("receives into different chunks, or with a step between them, stay apart") {
  auto plan = builder(4, 0);
  plan.recv_reduce(1, work(0), false);
  plan.recv_reduce(2, work(1), false);
  plan.recv_reduce(3, work(0), false);
  plan.send(1, work(1));
  plan.recv_reduce(2, work(0), true);
  const Program program(std::move(plan).build());
  CHECK(kinds_of(program) == "fold fold fold send fold", kinds_of(program));
  CHECK((program.instructions[2].operands == std::vector<int>{0, 3}));
}

TEST("a copy right before a fold into the same chunk becomes the fold's own operand") {
  auto plan = builder(3, 2);
  const ChunkRef sum = plan.add_scratch(0);
  plan.copy(work(1), sum);
  plan.recv_reduce(0, sum, false);
  plan.recv_reduce(1, sum, true);
  plan.copy(sum, work(0));
  const Program program(std::move(plan).build());
  CHECK(kinds_of(program) == "fold copy", kinds_of(program));
  CHECK(program.instructions[0].target == 2 && program.instructions[0].source == 1);
  CHECK(program.instructions[1].target == 0 && program.instructions[1].source == 2);
  CHECK(program.chunk_count() == 3);
  CHECK(dependencies_of(program) == "1 -> 0", dependencies_of(program));
}

TEST("a copy into another chunk, or one used before the fold, is not joined") {
  auto plan = builder(3, 2);
  const ChunkRef sum = plan.add_scratch(0);
  plan.copy(work(1), sum);
  plan.send(0, sum);
  plan.recv_reduce(0, sum, false);
  plan.copy(work(0), work(1));
  plan.recv_reduce(1, sum, true);
  const Program program(std::move(plan).build());
  CHECK(kinds_of(program) == "copy send fold copy fold", kinds_of(program));
}

TEST("a local reduce knows whose contribution it adds") {
  auto plan = builder(4, 2);
  const ChunkRef other = plan.add_scratch(0);
  plan.recv(3, other);
  plan.reduce(other, work(0), true);
  const Program program(std::move(plan).build());
  CHECK(kinds_of(program) == "recv reduce", kinds_of(program));
  CHECK(program.instructions[1].peer == 3 && program.instructions[1].completes);
  CHECK(dependencies_of(program) == "1 -> 0", dependencies_of(program));
}

TEST("lanes are followed whole, chunks segment by segment") {
  auto plan = builder(3, 0);
  plan.send(1, work(0));                // 0
  plan.send(1, work(1));                // 1: same lane
  plan.recv(1, work(0));                // 2: overwrites what 0 sends
  plan.send(2, work(0));                // 3: what 2 received
  plan.recv_reduce(1, work(1), false);  // 4: same lane as 2; overwrites what 1 sends
  plan.send(2, work(1));                // 5: same lane as 3; what 4 made
  const Program program(std::move(plan).build());
  CHECK(dependencies_of(program) == "1 => 0, 2 -> 0, 3 -> 2, 4 -> 1, 4 => 2, 5 -> 4, 5 => 3",
        dependencies_of(program));
}

TEST("two reads of a chunk do not wait for each other, a later write waits for both") {
  auto plan = builder(4, 0);
  plan.send(1, work(0));
  plan.send(2, work(0));
  plan.recv(3, work(0));
  const Program program(std::move(plan).build());
  CHECK(dependencies_of(program) == "2 -> 1, 2 -> 0", dependencies_of(program));
}

TEST("what shares a lane and a chunk is listed once, as whole") {
  auto plan = builder(2, 0);
  plan.recv(1, work(0));
  plan.recv_reduce(1, work(0), true);
  const Program program(std::move(plan).build());
  CHECK(dependencies_of(program) == "1 => 0", dependencies_of(program));
}

TEST("programs of all ranks share a hash, programs of other algorithms do not") {
  const auto hash = [](const char* algorithm, int p, int rank) {
    return Program(make_plan(Collective::all_reduce, algorithm, p, rank)).hash;
  };
  CHECK(hash("ring", 4, 0) == hash("ring", 4, 3));
  CHECK(hash("ring", 4, 0) != hash("direct", 4, 0));
  CHECK(hash("ring", 4, 0) != hash("ring", 5, 0));
}

TEST("every algorithm's direct sum over many ranks is one pass") {
  const Program shot(make_plan(Collective::all_reduce, "one_shot", 6, 2));
  CHECK(kinds_of(shot) == "send send send send send fold copy", kinds_of(shot));
  const Program scatter(make_plan(Collective::reduce_scatter, "direct", 3, 0));
  CHECK(kinds_of(scatter) == "send send fold", kinds_of(scatter));
  CHECK(scatter.instructions[2].target == 3 && scatter.instructions[2].source == 0);
}
