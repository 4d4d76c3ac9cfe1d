// SPDX-License-Identifier: MIT
// Which operations travel narrow, which settings are refused, and what ranks that disagree hear.
#include "base/error.h"
#include "engine/wire_choice.h"
#include "wire_sums.h"

using namespace wire_sums;

TEST("ranks with different wire formats are told, all of them") {
  std::mt19937_64 random(kSeed);
  for (const Wire other : {Wire::fp32, Wire::fp16s}) {
    for (const int p : {2, 3, 5}) {
      for (int odd = 0; odd < p; ++odd) {
        simulation::World world(p, 1024);
        auto programs = programs_of(flat(p, "direct"), Collective::all_reduce, p, Wire::bf16);
        const auto others = programs_of(flat(p, "direct"), Collective::all_reduce, p, other);
        const std::vector<Program> plain{
            Program(make_plan(Collective::all_reduce, "ring", p, odd))};
        programs[static_cast<size_t>(odd)] =
            other == Wire::fp32 ? plain[0] : others[static_cast<size_t>(odd)];
        auto tensors = random_tensors(p, 4000, random);
        std::vector<simulation::Script> scripts(programs.size());
        std::vector<std::unique_ptr<Operation>> operations;
        const auto sequence = world.next_sequence();
        for (size_t rank = 0; rank < programs.size(); ++rank) {
          operations.push_back(operation_on(tensors[rank], ReduceOp::sum));
          operations.back()->sequence = sequence;
          scripts[rank].push_back({&programs[rank], operations.back().get()});
        }
        const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
        const auto& failure = outcome.failures[static_cast<size_t>(odd)];
        CHECK(failure.kind == FailureKind::mismatch, p, " ranks: ", outcome.text());
        CHECK(failure.text.find("as bf16") != std::string::npos, failure.text);
        CHECK(failure.text.find("PYCOMM_WIRE") != std::string::npos, failure.text);
        int told = 0;
        for (const auto& one : outcome.failures) told += one.kind == FailureKind::mismatch;
        CHECK(told >= 2, outcome.text());
      }
    }
  }
}

TEST("only float32 sums and averages of 64 KiB and more may travel narrow") {
  Tensor large(16384), small(16383);
  const auto with = [](Tensor& tensor, Collective collective, ReduceOp op, DType dtype) {
    auto operation = operation_on(tensor, op);
    operation->collective = collective;
    operation->dtype = dtype;
    return may_narrow(*operation);
  };
  CHECK(with(large, Collective::all_reduce, ReduceOp::sum, DType::float32));
  CHECK(with(large, Collective::all_reduce, ReduceOp::avg, DType::float32));
  CHECK(!with(small, Collective::all_reduce, ReduceOp::sum, DType::float32));
  for (const auto op : {ReduceOp::product, ReduceOp::min, ReduceOp::max}) {
    CHECK(!with(large, Collective::all_reduce, op, DType::float32));
  }
  for (const auto dtype : {DType::float64, DType::float16, DType::int32, DType::complex64}) {
    CHECK(!with(large, Collective::all_reduce, ReduceOp::sum, dtype));
  }
  for (const auto collective : {Collective::broadcast, Collective::reduce, Collective::all_gather,
                                Collective::all_to_all, Collective::send}) {
    CHECK(!with(large, collective, ReduceOp::sum, DType::float32), name_of(collective));
  }
  // Of a reduce_scatter all input blocks together count, and the output does not.
  Tensor block(8192), output(16384);
  auto operation = operation_on(block, ReduceOp::sum);
  operation->collective = Collective::reduce_scatter;
  operation->work.push_back(operation->work[0]);
  operation->work.push_back({reinterpret_cast<std::byte*>(output.data()), output.size()});
  CHECK(may_narrow(*operation));
  operation->work[0].count -= 1;
  CHECK(!may_narrow(*operation));
}

TEST("a chosen algorithm that rounds at every hop is refused together with a narrow format") {
  for (const std::string algorithm : {"ring", "all_reduce=one_shot", "reduce_scatter=ring"}) {
    std::string said;
    try {
      check_wire(parse_wire("bf16"), parse_algorithms(algorithm));
    } catch (const UsageError& error) {
      said = error.what();
    }
    CHECK(said.find("PYCOMM_WIRE=bf16 with PYCOMM_ALGO=") == 0, algorithm, ": ", said);
    check_wire(parse_wire("fp32"), parse_algorithms(algorithm));
    check_wire(parse_wire("auto"), parse_algorithms(algorithm));
  }
  for (const std::string algorithm : {"direct", "hierarchical", "broadcast=binomial_tree", ""}) {
    check_wire(parse_wire("int8"), parse_algorithms(algorithm));
  }
}
