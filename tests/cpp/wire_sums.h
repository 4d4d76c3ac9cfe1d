// SPDX-License-Identifier: MIT
// Sums of float32 tensors that travel narrow, run by executors over loopback, all ranks in one
// thread, and what they must come to: for engine_wire*_test.
#pragma once

#include <cmath>
#include <cstring>

#include "check.h"
#include "simulation.h"

namespace wire_sums {

using namespace pycomm;
using simulation::Order;

inline constexpr uint64_t kSeed = 20261121;
inline constexpr Wire kNarrow[] = {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4};
using Tensor = std::vector<float>;
using Tensors = std::vector<Tensor>;  // by rank

// How a group is laid out, and which of its links are narrow.
struct Way {
  std::string name;
  std::function<Plan(Collective, int rank)> plan;
  std::function<bool(int, int)> narrow = [](int, int) { return true; };
};

inline Way flat(int p, const std::string& algorithm) {
  return {str(algorithm, " on ", p, " ranks"), [=](Collective collective, int rank) {
            return algorithm == kGrid ? make_grid_plan(collective, p, rank)
                                      : make_plan(collective, algorithm, p, rank);
          }};
}

inline Way between(const std::vector<std::vector<int>>& hosts,
                   const std::string& inter = "direct") {
  const auto host_of = [hosts](int rank) {
    size_t host = 0;
    while (std::find(hosts[host].begin(), hosts[host].end(), rank) == hosts[host].end()) ++host;
    return host;
  };
  return {str(hosts.size(), " hosts, ", inter, " between"),
          [=](Collective collective, int rank) {
            return collective == Collective::all_reduce
                       ? make_hierarchical_plan(hosts, inter, rank)
                       : make_hierarchical_plan(collective, hosts, rank);
          },
          [=](int a, int b) { return host_of(a) != host_of(b); }};
}

inline std::vector<Program> programs_of(const Way& way, Collective collective, int p, Wire wire) {
  std::vector<Program> programs;
  for (int rank = 0; rank < p; ++rank) {
    NarrowLinks links{&codec_for(wire), {}};
    for (int peer = 0; peer < p; ++peer) links.peers.push_back(way.narrow(rank, peer));
    programs.emplace_back(way.plan(collective, rank), links);
  }
  return programs;
}

// What `operations` of all ranks, one after the other, come to; in a random order of events.
inline void run(simulation::World& world, const std::vector<Program>& programs,
                std::vector<std::vector<std::unique_ptr<Operation>>>& operations, Order order,
                std::mt19937_64& random, const std::string& context) {
  std::vector<simulation::Script> scripts(programs.size());
  for (auto& row : operations) {
    const auto sequence = world.next_sequence();
    for (size_t rank = 0; rank < programs.size(); ++rank) {
      row[rank]->sequence = sequence;
      scripts[rank].push_back({&programs[rank], row[rank].get()});
    }
  }
  const auto outcome = simulation::Run(world, scripts, order, random).to_end();
  CHECK(!outcome.stalled && outcome.all_done(scripts), context, ", order ",
        simulation::name_of(order), ", seed ", kSeed, ": ", outcome.text());
}

inline std::unique_ptr<Operation> operation_on(Tensor& tensor, ReduceOp op) {
  auto operation = std::make_unique<Operation>();
  operation->op = op;
  operation->work = {{reinterpret_cast<std::byte*>(tensor.data()), tensor.size()}};
  return operation;
}

inline void all_reduce(simulation::World& world, const std::vector<Program>& programs,
                       Tensors& tensors, ReduceOp op, Order order, std::mt19937_64& random,
                       const std::string& context) {
  std::vector<std::vector<std::unique_ptr<Operation>>> operations(1);
  for (auto& tensor : tensors) operations[0].push_back(operation_on(tensor, op));
  run(world, programs, operations, order, random, context);
}

inline Tensors random_tensors(int p, size_t count, std::mt19937_64& random) {
  std::normal_distribution<float> values;
  Tensors tensors(static_cast<size_t>(p), Tensor(count));
  for (auto& tensor : tensors) {
    for (float& one : tensor) one = values(random);
  }
  return tensors;
}

inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

inline void check_same_on_all(const Tensors& tensors, const std::string& context) {
  for (size_t rank = 1; rank < tensors.size(); ++rank) {
    CHECK(same_bits(tensors[rank], tensors[0]), context, ": rank ", rank,
          " has other bits than rank 0, seed ", kSeed);
  }
}

inline Tensor decoded(const Codec& codec, const float* from, size_t count) {
  std::vector<std::byte> bytes(codec.wire_bytes(count));
  Tensor result(count);
  codec.encode(from, bytes.data(), count);
  codec.decode(bytes.data(), result.data(), count);
  return result;
}

// Of one chunk that `owner` sums: each contribution but its own narrowed, added in rank order in
// float32, divided, and narrowed once if all are to have it.
inline Tensor owners_sum(const Codec& codec, const Tensors& tensors, size_t begin, size_t count,
                         size_t owner, ReduceOp op, bool narrows) {
  Tensor sum(count);
  for (size_t rank = 0; rank < tensors.size(); ++rank) {
    const float* const given = tensors[rank].data() + begin;
    const Tensor one = rank == owner ? Tensor(given, given + count) : decoded(codec, given, count);
    for (size_t i = 0; i < count; ++i) sum[i] = rank ? sum[i] + one[i] : one[i];
  }
  if (op == ReduceOp::avg) {
    for (float& one : sum) one /= static_cast<float>(tensors.size());
  }
  return narrows ? decoded(codec, sum.data(), count) : sum;
}

inline Tensor sum_by_direct(Wire wire, const Tensors& tensors, ReduceOp op) {
  const size_t count = tensors[0].size();
  const int p = static_cast<int>(tensors.size());
  Tensor result;
  for (int owner = 0; owner < p; ++owner) {
    const size_t begin = chunk_begin(count, p, owner, sizeof(float));
    const size_t end = chunk_begin(count, p, owner + 1, sizeof(float));
    const Tensor chunk = owners_sum(codec_at(CpuLevel::scalar, wire), tensors, begin, end - begin,
                                    static_cast<size_t>(owner), op, p > 1);
    result.insert(result.end(), chunk.begin(), chunk.end());
  }
  return result;
}

// ||got - exact|| / ||exact||, the exact sum in float64.
inline double relative_error(const Tensor& got, const Tensors& inputs, ReduceOp op) {
  double off = 0, all = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    double exact = 0;
    for (const Tensor& one : inputs) exact += one[i];
    if (op == ReduceOp::avg) exact /= static_cast<double>(inputs.size());
    off += (got[i] - exact) * (got[i] - exact);
    all += exact * exact;
  }
  return std::sqrt(off / all);
}

// Of independent normal values, narrowed before and after one addition; a second level narrows once
// more.
inline double error_bound(Wire wire, bool two_levels) {
  const double one = wire == Wire::bf16    ? 2.6e-3
                     : wire == Wire::fp16s ? 3.3e-4
                     : wire == Wire::int8  ? 1.1e-2
                                           : 1.7e-1;
  return two_levels ? 1.5 * one : one;
}

inline Order order_of(int turn) { return simulation::kOrders[turn % 4]; }

}  // namespace wire_sums
