// SPDX-License-Identifier: MIT
// What an engine keeps from call to call (programs, layouts) fits the call at hand: operations that
// resemble the last one in all but one respect.
#include <random>

#include "collective_data.h"
#include "groups.h"

using namespace groups;
using data::RankData;

namespace {

constexpr uint64_t kSeed = 90210;

}  // namespace

TEST("results are right when shapes, dtypes, ops, roots and addresses alternate") {
  struct Shape {
    Collective collective;
    size_t count;
    ReduceOp op;
    DType dtype;
    int root;
  };
  const std::vector<Shape> shapes{
      {Collective::all_reduce, 100, ReduceOp::sum, DType::float32, 0},
      {Collective::all_reduce, 101, ReduceOp::sum, DType::float32, 0},
      {Collective::all_reduce, 100, ReduceOp::max, DType::float32, 0},
      {Collective::all_reduce, 100, ReduceOp::sum, DType::float64, 0},
      {Collective::all_reduce, 100, ReduceOp::sum, DType::int64, 0},
      {Collective::all_reduce, 5000, ReduceOp::avg, DType::float32, 0},
      {Collective::all_reduce, 0, ReduceOp::sum, DType::float32, 0},
      {Collective::broadcast, 100, ReduceOp::sum, DType::float32, 0},
      {Collective::broadcast, 100, ReduceOp::sum, DType::float32, 1},
      {Collective::reduce, 100, ReduceOp::sum, DType::float32, 1},
      {Collective::reduce, 100, ReduceOp::min, DType::float32, 1},
      {Collective::all_gather, 100, ReduceOp::sum, DType::float32, 0},
      {Collective::all_gather, 7, ReduceOp::sum, DType::float32, 0},
      {Collective::barrier, 0, ReduceOp::sum, DType::float32, 0},
  };
  for (const int p : {2, 3}) {
    with_group({"shm"}, p, [&](auto& engine, int rank) {
      std::mt19937_64 random(kSeed);
      size_t now = 0;
      for (int k = 0; k < 300; ++k) {
        // Often the same again, elsewhere in memory.
        if (random() % 3 != 0) now = random() % shapes.size();
        const auto& [collective, count, op, dtype, root] = shapes[now];
        RankData memory({collective, p, root, op, dtype, count, false, k}, rank);
        engine->run({std::shared_ptr<void>(), &memory.operation});
        CHECK(memory.wrong().empty(), memory.wrong(), ", call ", k, ", seed ", kSeed);
      }
    });
  }
}
