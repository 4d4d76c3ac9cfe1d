// SPDX-License-Identifier: MIT
// float32 sums that travel narrow: all ranks in one thread over loopback, in many orders. Every
// rank must hold the same bits; by "direct" the bits that a sum written down in wire_sums.h has;
// and the error must be that of one narrowing, whatever the number of ranks.
#include <limits>

#include "wire_sums.h"

using namespace wire_sums;

TEST("direct: all ranks have the bits of the owner's narrowed sum, for 1 to 8 ranks, any order") {
  std::mt19937_64 random(kSeed);
  int turn = 0;
  for (const Wire wire : kNarrow) {
    for (int p = 1; p <= 8; ++p) {
      simulation::World world(p, 1024), starved(p, 1024, 1), sliced(p, Cut{2048, 1024, 2, 6400});
      const auto programs = programs_of(flat(p, "direct"), Collective::all_reduce, p, wire);
      for (const size_t count : {0, 1, 2, 255, 256, 257, 1000, 4099, 9001}) {
        const auto op = ++turn % 2 ? ReduceOp::sum : ReduceOp::avg;
        const auto inputs = random_tensors(p, count, random);
        const auto context = str(name_of(wire), ", ", p, " ranks, ", count, " elements");
        for (auto* each : {&world, &starved}) {
          auto tensors = inputs;
          all_reduce(*each, programs, tensors, op, order_of(++turn), random, context);
          check_same_on_all(tensors, context);
          CHECK(same_bits(tensors[0], sum_by_direct(wire, inputs, op)), context, ", seed ", kSeed);
        }
        auto tensors = inputs;
        all_reduce(sliced, programs, tensors, op, order_of(++turn), random, context);
        check_same_on_all(tensors, context + ", sliced");
        CHECK(count < 1000 || p == 1 ||
                  relative_error(tensors[0], inputs, op) < error_bound(wire, false),
              context, ", sliced");
      }
    }
  }
}

TEST("two levels: all ranks have the same bits, and the error is that of two narrowings") {
  std::mt19937_64 random(kSeed);
  std::vector<std::pair<int, Way>> ways;
  for (const int p : {4, 6, 7, 12, 34, 36, 37}) ways.emplace_back(p, flat(p, kGrid));
  ways.emplace_back(4, between({{0, 1}, {2, 3}}));
  ways.emplace_back(6, between({{0, 2, 4}, {1, 3, 5}}));
  ways.emplace_back(6, between({{0}, {1, 2, 3}, {4, 5}}));
  ways.emplace_back(8, between({{0, 1}, {2, 3}, {4, 5}, {6, 7}}, kGrid));
  int turn = 0;
  for (const auto& [p, way] : ways) {
    simulation::World world(p, 1024, 2);
    for (const Wire wire : kNarrow) {
      const auto programs = programs_of(way, Collective::all_reduce, p, wire);
      for (const size_t count : {1, 4099, 20011}) {
        if (p > 12 && count == 4099) continue;
        const auto op = ++turn % 2 ? ReduceOp::sum : ReduceOp::avg;
        const auto inputs = random_tensors(p, count, random);
        auto tensors = inputs;
        const auto context = str(name_of(wire), ", ", way.name, ", ", count, " elements");
        all_reduce(world, programs, tensors, op, order_of(turn), random, context);
        check_same_on_all(tensors, context);
        const double error = relative_error(tensors[0], inputs, op);
        CHECK(count == 1 || error < error_bound(wire, true), context, ": error ", error);
      }
    }
  }
}

TEST("the error does not grow with the number of ranks") {
  std::mt19937_64 random(kSeed);
  for (const Wire wire : kNarrow) {
    for (const int p : {2, 4, 8, 16, 32, 64}) {
      const auto way = flat(p, p > 32 ? kGrid : "direct");
      simulation::World world(p, 4096);
      const auto programs = programs_of(way, Collective::all_reduce, p, wire);
      const auto inputs = random_tensors(p, 16384, random);
      auto tensors = inputs;
      all_reduce(world, programs, tensors, ReduceOp::sum, Order::random, random, way.name);
      const double error = relative_error(tensors[0], inputs, ReduceOp::sum);
      CHECK(error < error_bound(wire, p > 32), name_of(wire), ", ", way.name, ": ", error);
    }
  }
}

TEST("reduce_scatter adds up narrowed contributions and does not narrow the sum") {
  std::mt19937_64 random(kSeed);
  int turn = 0;
  for (const Wire wire : kNarrow) {
    for (const int p : {1, 2, 3, 5, 8}) {
      simulation::World world(p, 1024, 2);
      const auto programs = programs_of(flat(p, "direct"), Collective::reduce_scatter, p, wire);
      for (const size_t count : {1, 257, 3001}) {
        const auto op = ++turn % 2 ? ReduceOp::sum : ReduceOp::avg;
        // Blocks differ in size.
        std::vector<size_t> begins{0};
        for (int q = 0; q < p; ++q) begins.push_back(begins.back() + count + 7 * begins.size());
        auto inputs = random_tensors(p, begins.back(), random);
        Tensors outputs;
        std::vector<std::vector<std::unique_ptr<Operation>>> operations(1);
        for (size_t rank = 0; rank < inputs.size(); ++rank) {
          outputs.emplace_back(begins[rank + 1] - begins[rank]);
          auto operation = operation_on(outputs.back(), op);
          const Region output = operation->work[0];
          operation->collective = Collective::reduce_scatter;
          operation->work = {};
          for (size_t q = 0; q < inputs.size(); ++q) {
            auto* const data = reinterpret_cast<std::byte*>(inputs[rank].data() + begins[q]);
            operation->work.push_back({data, begins[q + 1] - begins[q]});
          }
          operation->work.push_back(output);
          operations[0].push_back(std::move(operation));
        }
        const auto untouched = inputs;
        const auto context = str(name_of(wire), ", ", p, " ranks, blocks from ", count);
        run(world, programs, operations, order_of(turn), random, context);
        for (size_t rank = 0; rank < inputs.size(); ++rank) {
          const auto expected = owners_sum(codec_at(CpuLevel::scalar, wire), inputs, begins[rank],
                                           begins[rank + 1] - begins[rank], rank, op, false);
          CHECK(same_bits(outputs[rank], expected), context, ", rank ", rank, ", seed ", kSeed);
          CHECK(same_bits(inputs[rank], untouched[rank]), context, ": an input was written");
        }
      }
    }
  }
}

TEST("NaN, Inf, huge and tiny values and zeros arrive as such on all ranks") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float tiny = std::numeric_limits<float>::denorm_min();
  std::mt19937_64 random(kSeed);
  for (const Wire wire : kNarrow) {
    for (const int p : {2, 3, 5}) {
      simulation::World world(p, 4096);
      const auto programs = programs_of(flat(p, "direct"), Collective::all_reduce, p, wire);
      // A block of 256 for each kind, whatever the format's own.
      Tensors tensors(static_cast<size_t>(p), Tensor(256 * 6 * static_cast<size_t>(p), 1.0f));
      for (auto& tensor : tensors) {
        for (size_t i = 0; i < tensor.size(); ++i) {
          const size_t kind = i / 256 % 6, place = i % 256;
          if (kind == 1) tensor[i] = 1e6f;    // beyond float16
          if (kind == 2) tensor[i] = 1e-12f;  // below it
          if (kind == 3) tensor[i] = 3e-39f;  // subnormal in float32
          if (kind == 4) tensor[i] = -0.0f;
          if (kind == 5 && place == 7) tensor[i] = tiny;
        }
      }
      tensors[0][256 * 5 + 3] = inf;
      tensors[1][256 * 5 + 4] = std::numeric_limits<float>::quiet_NaN();
      all_reduce(world, programs, tensors, ReduceOp::avg, Order::random, random, "special");
      check_same_on_all(tensors, str(name_of(wire), ", special values, ", p, " ranks"));
      const bool blockwise = wire == Wire::int8 || wire == Wire::int4;
      for (size_t i = 0; i < tensors[0].size(); ++i) {
        const size_t kind = i / 256 % 6;
        const float got = tensors[0][i];
        const float given[] = {1, 1e6f, 1e-12f, 3e-39f, -0.0f};
        if (kind < 5) {
          const float off = std::abs(got - given[kind]);
          CHECK(off <= 0.02f * std::abs(given[kind]) + 2 * tiny, name_of(wire), ": ", got,
                " instead of ", given[kind]);
          CHECK(kind != 4 || std::signbit(got) != blockwise, name_of(wire), ": sign of -0.0");
        }
      }
      CHECK(blockwise ? std::isnan(tensors[0][256 * 5 + 3]) : tensors[0][256 * 5 + 3] == inf);
      CHECK(std::isnan(tensors[0][256 * 5 + 4]), name_of(wire));
    }
  }
}

TEST("operations in a row do not mix, narrow and plain ones, with tensors in reach and without") {
  std::mt19937_64 random(kSeed);
  const std::vector<std::vector<int>> hosts{{0, 1}, {2, 3}};
  for (const Wire wire : kNarrow) {
    Tensors tensors = random_tensors(4, 5003, random);
    const LoopbackReach reach = [&](const std::byte* data, size_t) {
      const auto* const at = reinterpret_cast<const float*>(data);
      return at >= tensors[1].data() && at < tensors[1].data() + tensors[1].size();
    };
    simulation::World world(4, size_t{1024}, kSlots, {}, reach);
    const auto narrow = programs_of(between(hosts), Collective::all_reduce, 4, wire);
    std::vector<Program> plain;
    for (int rank = 0; rank < 4; ++rank) {
      plain.emplace_back(make_plan(Collective::all_reduce, "direct", 4, rank));
    }
    const auto inputs = tensors;
    std::vector<simulation::Script> scripts(4);
    std::vector<std::unique_ptr<Operation>> operations;
    for (int k = 0; k < 12; ++k) {
      const auto sequence = world.next_sequence();
      for (size_t rank = 0; rank < 4; ++rank) {
        operations.push_back(operation_on(tensors[rank], ReduceOp::avg));
        operations.back()->sequence = sequence;
        scripts[rank].push_back(
            {k % 3 == 1 ? &plain[rank] : &narrow[rank], operations.back().get()});
      }
    }
    const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
    CHECK(outcome.all_done(scripts), name_of(wire), ": ", outcome.text());
    check_same_on_all(tensors, str(name_of(wire), ", in a row"));
    CHECK(relative_error(tensors[0], inputs, ReduceOp::avg) < 3 * error_bound(wire, true));
  }
}
