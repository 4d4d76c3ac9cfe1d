// SPDX-License-Identifier: MIT
// Every fixed choice of algorithm and segment size against the automatic one, in one interleaved
// run.
//
//   core_tuner [world=2] [collectives=all_reduce] [min=8] [max=67108864] [factor=8]
//              [algorithms=direct,ring] [segments=0,131072] [dtype=float32] [rounds=11] [ms=2]
//
// Sizes are bytes of the tensor, or of one rank's block. algorithms: all where not given. segments:
// 0 is pycomm's own choice. A round times every contender once, so that a slow moment of the
// machine hits all alike; a sample is a meeting, then calls back to back for about `ms`
// milliseconds, and counts as long as it took the slowest rank. Printed are microseconds at the
// lower quartile, which a noisy machine disturbs least, for each size the automatic choice over the
// best fixed one, and at the end the worst of these.
#include <cstdlib>
#include <map>
#include <sstream>

#include "core_group.h"
#include "plan/algorithms.h"

using namespace core_group;

namespace {

using Given = std::map<std::string, std::string>;

struct Contender {
  std::string label;
  std::unique_ptr<Engine> engine;
  int calls = 1;
  std::vector<double> us;

  double typical_us() const {
    auto sorted = us;
    std::sort(sorted.begin(), sorted.end());
    return sorted[sorted.size() / 4];
  }
};

// One store for many groups.
class PrefixStore final : public Store {
 public:
  PrefixStore(Store& inner, std::string prefix) : inner_(inner), prefix_(std::move(prefix)) {}
  void set(const std::string& key, const std::string& value) override {
    inner_.set(prefix_ + key, value);
  }
  std::string get(const std::string& key, Deadline deadline) override {
    return inner_.get(prefix_ + key, deadline);
  }
  bool has(const std::string& key) override { return inner_.has(prefix_ + key); }
  int64_t add(const std::string& key, int64_t amount) override {
    return inner_.add(prefix_ + key, amount);
  }

 private:
  Store& inner_;
  std::string prefix_;
};

std::vector<std::string> split(const std::string& text) {
  std::vector<std::string> parts;
  std::stringstream in(text);
  for (std::string part; std::getline(in, part, ',');) parts.push_back(part);
  return parts;
}

template <class Code>
Code named(const std::string& name, int count) {
  for (int code = 0; code < count; ++code) {
    if (name_of(static_cast<Code>(code)) == name) return static_cast<Code>(code);
  }
  throw UsageError("unknown name '" + name + "'");
}

class Comparison {
 public:
  Comparison(const Given& given, Collective collective, int rank, Meeting& meeting)
      : given_(given),
        collective_(collective),
        dtype_(named<DType>(given.at("dtype"), kDTypeCount)),
        rank_(rank),
        world_size_(std::atoi(given.at("world").c_str())),
        meeting_(meeting) {}

  // Returns the worst ratio, on rank 0.
  double run(Store& store) {
    join(store);
    double worst = 0;
    for (size_t bytes = number("min"); bytes <= number("max"); bytes *= number("factor")) {
      worst = std::max(worst, compare(bytes));
    }
    for (auto& one : contenders_) one.engine->shutdown("the benchmark is over", true);
    return worst;
  }

 private:
  size_t number(const char* key) const {
    return std::strtoull(given_.at(key).c_str(), nullptr, 10);
  }

  void join(Store& store) {
    add(store, "", 0);
    auto algorithms = split(given_.at("algorithms"));
    if (algorithms.empty()) {
      for (const auto name : algorithms_for(collective_)) algorithms.emplace_back(name);
    }
    for (const auto& algorithm : algorithms) {
      for (const auto& segment : split(given_.at("segments"))) {
        add(store, algorithm, std::strtoull(segment.c_str(), nullptr, 10));
      }
    }
  }

  void add(Store& store, const std::string& algorithm, size_t segment_bytes) {
    PrefixStore mine(store, str(name_of(collective_), contenders_.size(), "/"));
    MeshOptions mesh;
    mesh.transports = "shm";
    mesh.segment_bytes = segment_bytes;
    mesh.figures = serialize(figures_of_this_process());
    EngineOptions options;
    if (!algorithm.empty()) options.algorithms[collective_] = algorithm;
    Contender one;
    one.label = algorithm.empty() ? "auto" : algorithm;
    if (segment_bytes) one.label += str("/", segment_bytes >> 10, "K");
    one.engine =
        std::make_unique<Engine>(Mesh::connect(mine, rank_, world_size_, mesh), std::move(options));
    contenders_.push_back(std::move(one));
  }

  Regions regions(size_t bytes, std::byte* memory) const {
    const size_t count = bytes / size_of(dtype_);
    if (!moves_blocks(collective_)) return {{memory, count}};
    const auto p = static_cast<size_t>(world_size_);
    Regions blocks;
    for (size_t i = 0; i < (collective_ == Collective::all_to_all ? 2 * p : p + 1); ++i) {
      blocks.push_back({memory + i * bytes, count});
    }
    return blocks;
  }

  double once(Engine& engine, const Regions& work, int calls) {
    double us = median_us(rank_, world_size_, meeting_, 1, calls, [&] {
      auto operation = std::make_shared<Operation>();
      operation->collective = collective_;
      operation->dtype = dtype_;
      operation->work = work;
      engine.run(operation);
    });
    if (rank_ == 0) meeting_.microseconds[0] = us;  // for the others
    meeting_.wait(world_size_);
    us = meeting_.microseconds[0];
    meeting_.wait(world_size_);
    return us;
  }

  double compare(size_t bytes) {
    std::vector<std::byte> memory(regions(bytes, nullptr).size() * bytes + kPageBytes);
    const auto work = regions(bytes, memory.data());  // zeros stay zeros
    const double sample_us = 1000 * std::atof(given_.at("ms").c_str());
    for (auto& one : contenders_) {
      one.us.clear();
      once(*one.engine, work, 2);  // touches rings, makes programs
      one.calls = static_cast<int>(std::clamp(sample_us / once(*one.engine, work, 2), 1.0, 5000.0));
    }
    for (size_t round = 0; round < number("rounds"); ++round) {
      for (auto& one : contenders_) one.us.push_back(once(*one.engine, work, one.calls));
    }
    return rank_ == 0 ? print(bytes) : 0;
  }

  double print(size_t bytes) const {
    const auto best = std::min_element(
        contenders_.begin() + 1, contenders_.end(),
        [](const auto& a, const auto& b) { return a.typical_us() < b.typical_us(); });
    const double ratio = contenders_[0].typical_us() / best->typical_us();
    std::printf("%-14s %10zu B  auto is %s, %.2f of %s |",
                std::string(name_of(collective_)).c_str(), bytes,
                contenders_[0].engine->algorithm_for(collective_, bytes).c_str(), ratio,
                best->label.c_str());
    for (const auto& one : contenders_)
      std::printf(" %s %.2f", one.label.c_str(), one.typical_us());
    std::printf(" us\n");
    std::fflush(stdout);
    return ratio;
  }

  const Given& given_;
  const Collective collective_;
  const DType dtype_;
  const int rank_, world_size_;
  Meeting& meeting_;
  std::vector<Contender> contenders_;
};

}  // namespace

int main(int argc, char** argv) {
  Given given{{"world", "2"},    {"collectives", "all_reduce"},
              {"min", "8"},      {"max", "67108864"},
              {"factor", "8"},   {"algorithms", ""},
              {"segments", "0"}, {"dtype", "float32"},
              {"rounds", "11"},  {"ms", "2"}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto at = word.find('=');
    if (at == std::string::npos || !given.count(word.substr(0, at))) {
      std::fprintf(stderr, "unknown argument %s; see the head of core_tuner.cc\n", argv[i]);
      return 2;
    }
    given[word.substr(0, at)] = word.substr(at + 1);
  }
  const int world_size = std::atoi(given["world"].c_str());
  if (world_size < 1 || world_size > kRanksMax) return 2;
  return run_ranks(world_size, true, [&](int rank, Store& store, Meeting& meeting) {
    for (const auto& name : split(given["collectives"])) {
      const double worst =
          Comparison(given, named<Collective>(name, kCollectiveCount), rank, meeting).run(store);
      if (rank == 0) std::printf("%s: worst %.2f\n", name.c_str(), worst);
    }
  });
}
