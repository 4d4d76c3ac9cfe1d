// SPDX-License-Identifier: MIT
// Encoded buckets: who owns what, and all ranks of a group played in one thread.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "base/error.h"
#include "bucket/encoded_bucket.h"
#include "check.h"

using namespace pycomm;

namespace {

const std::vector<size_t> kSizes{1, 5000, 70, 257, 1024, 0, 4097, 64};
constexpr size_t kExactBelow = 65;

// The parameters of kSizes in this order, as a bucket; residuals always in the order of kSizes.
std::vector<BucketPart> parts_in(const std::vector<size_t>& order) {
  std::vector<size_t> offsets{0};
  for (const size_t size : kSizes) offsets.push_back(offsets.back() + size);
  std::vector<BucketPart> parts;
  size_t at = 0;
  for (const size_t index : order) {
    parts.push_back({index, at, offsets[index], kSizes[index]});
    at += kSizes[index];
  }
  return parts;
}

std::vector<size_t> all_parameters() { return {0, 1, 2, 3, 4, 5, 6, 7}; }

// One bucket of one group, with the memory of each rank.
struct Group {
  struct Rank {
    EncodedBucket bucket;
    std::vector<float> values, kept;
    std::vector<std::byte> sent, mean;
    ResidualMemories residuals;
  };
  std::vector<Rank> ranks;

  Group(Wire wire, int world_size, const std::vector<BucketPart>& parts) {
    ranks.reserve(world_size);  // residuals point into them
    for (int r = 0; r < world_size; ++r) {
      ranks.push_back({EncodedBucket(wire, r, world_size, parts, kExactBelow), {}, {}, {}, {}, {}});
      Rank& rank = ranks.back();
      rank.values.resize(rank.bucket.elements());
      rank.kept.resize(20000);
      const std::vector<uint8_t> first(parts.size(), 0);
      rank.residuals = {{rank.kept.data(), rank.kept.data()}, first, first};
    }
  }

  size_t offset_of(int sender, int owner) const {
    size_t at = 0;
    for (int o = 0; o < owner; ++o) at += o == sender ? 0 : ranks[sender].bucket.bytes_for(o);
    return at;
  }

  void all_reduce() {
    const int world_size = static_cast<int>(ranks.size());
    for (int r = 0; r < world_size; ++r) {
      ranks[r].sent.resize(offset_of(r, world_size));
      ranks[r].bucket.encode(ranks[r].values.data(), ranks[r].residuals, ranks[r].sent.data());
    }
    for (int r = 0; r < world_size; ++r) {
      const size_t bytes = ranks[r].bucket.bytes_for(r);
      std::vector<std::byte> received;
      for (int source = 0; source < world_size; ++source) {
        if (source == r) continue;
        const auto begin = ranks[source].sent.begin() + offset_of(source, r);
        received.insert(received.end(), begin, begin + bytes);
      }
      ranks[r].mean.resize(bytes);
      ranks[r].bucket.reduce(ranks[r].values.data(), received.data(), ranks[r].residuals,
                             ranks[r].mean.data());
    }
    std::vector<const std::byte*> means;
    for (const Rank& rank : ranks) means.push_back(rank.mean.data());
    for (Rank& rank : ranks) rank.bucket.decode(means.data(), rank.values.data());
  }
};

// The gradient of one parameter on one rank.
std::vector<float> gradient(size_t index, size_t rank) {
  std::mt19937 random(100 * index + rank);
  std::normal_distribution<float> draw;
  std::vector<float> values(kSizes[index]);
  for (float& value : values) value = draw(random);
  return values;
}

void fill(Group& group, const std::vector<BucketPart>& parts) {
  for (size_t r = 0; r < group.ranks.size(); ++r) {
    for (const BucketPart& part : parts) {
      const auto values = gradient(part.index, r);
      std::copy(values.begin(), values.end(), group.ranks[r].values.begin() + part.in_bucket);
    }
  }
}

bool same_bits(const float* a, const float* b, size_t count) {
  return count == 0 || std::memcmp(a, b, count * sizeof(float)) == 0;
}

}  // namespace

TEST("every element has one owner, and all ranks agree on the bytes") {
  for (const Wire wire : {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4}) {
    for (int world_size = 1; world_size <= 9; ++world_size) {
      const auto parts = parts_in(all_parameters());
      std::vector<int> owners(11000, 0);
      for (int r = 0; r < world_size; ++r) {
        const EncodedBucket bucket(wire, r, world_size, parts, kExactBelow);
        for (const auto& [begin, count] : bucket.owned()) {
          for (size_t i = begin; i < begin + count; ++i) ++owners[i];
        }
        for (int o = 0; o < world_size; ++o) {
          const EncodedBucket other(wire, o, world_size, parts, kExactBelow);
          CHECK(bucket.bytes_for(o) == other.bytes_for(o), world_size, " ", r, " ", o);
        }
        CHECK(bucket.residual_elements() == bucket.elements(), bucket.elements());
      }
      const size_t elements = EncodedBucket(wire, 0, world_size, parts, kExactBelow).elements();
      CHECK(std::all_of(owners.begin(), owners.begin() + elements, [](int n) { return n == 1; }),
            name_of(wire), " ", world_size);
      CHECK(owners[elements] == 0, elements);
    }
  }
}

TEST("all ranks end with the same bits, close to the mean") {
  for (const Wire wire : {Wire::bf16, Wire::fp16s, Wire::int8, Wire::int4}) {
    for (const int world_size : {1, 2, 3, 7}) {
      const auto parts = parts_in(all_parameters());
      Group group(wire, world_size, parts);
      fill(group, parts);
      std::vector<double> mean(group.ranks[0].values.size(), 0);
      for (const auto& rank : group.ranks) {
        for (size_t i = 0; i < mean.size(); ++i) mean[i] += rank.values[i] / double(world_size);
      }
      group.all_reduce();
      const auto& first = group.ranks[0].values;
      double error = 0, norm = 0;
      for (size_t i = 0; i < mean.size(); ++i) {
        error += (first[i] - mean[i]) * (first[i] - mean[i]);
        norm += mean[i] * mean[i];
      }
      const double allowed = wire == Wire::int4 ? 0.2 : wire == Wire::int8 ? 0.012 : 0.003;
      CHECK(std::sqrt(error / norm) < allowed, name_of(wire), " ", world_size);
      for (const auto& rank : group.ranks) {
        CHECK(same_bits(rank.values.data(), first.data(), first.size()), name_of(wire));
      }
    }
  }
}

TEST("a parameter's mean and residual have the same bits in any bucket") {
  for (const Wire wire : {Wire::int8, Wire::int4}) {
    const auto whole = parts_in(all_parameters());
    const auto shuffled = parts_in({6, 3, 7, 0, 2, 1, 5, 4}), few = parts_in({4, 1, 3});
    Group reference(wire, 3, whole);
    for (int step = 0; step < 3; ++step) {
      fill(reference, whole);
      reference.all_reduce();
    }
    for (const auto& parts : {shuffled, few}) {
      Group group(wire, 3, parts);
      for (int step = 0; step < 3; ++step) {
        fill(group, parts);
        group.all_reduce();
      }
      for (const BucketPart& part : parts) {
        const auto at = whole[part.index].in_bucket;
        for (size_t r = 0; r < 3; ++r) {
          CHECK(same_bits(group.ranks[r].values.data() + part.in_bucket,
                          reference.ranks[r].values.data() + at, part.count),
                name_of(wire), " parameter ", part.index);
          CHECK(same_bits(group.ranks[r].kept.data() + part.in_residuals,
                          reference.ranks[r].kept.data() + part.in_residuals, part.count),
                name_of(wire), " residual ", part.index);
        }
      }
    }
  }
}

TEST("small parameters travel as they are, and keep nothing") {
  const auto parts = parts_in(all_parameters());
  Group group(Wire::int4, 2, parts);
  fill(group, parts);
  group.all_reduce();
  for (const BucketPart& part : parts) {
    const auto a = gradient(part.index, 0), b = gradient(part.index, 1);
    size_t kept = 0, wrong = 0;
    for (size_t i = 0; i < part.count; ++i) {
      wrong += group.ranks[0].values[part.in_bucket + i] != (a[i] + b[i]) / 2;
      kept += group.ranks[0].kept[part.in_residuals + i] != 0;
    }
    const bool small = part.count < kExactBelow;
    CHECK(small ? wrong == 0 && kept == 0 : wrong > 0 && kept > 0, part.index, " ", wrong);
  }
}

TEST("each part reads one memory and writes the one that is named for it") {
  const std::vector<BucketPart> parts{{0, 0, 0, 100}, {1, 100, 100, 100}};
  Group group(Wire::int4, 1, parts);
  auto& rank = group.ranks[0];
  std::vector<float> a(200, 0.25f), b(200, 0.75f);
  rank.residuals = {{a.data(), b.data()}, {0, 1}, {1, 1}};
  std::fill(rank.values.begin(), rank.values.end(), 1.0f);
  group.all_reduce();
  CHECK(std::fabs(rank.values[0] - 1.25f) < 1e-4f, rank.values[0]);
  CHECK(std::fabs(rank.values[150] - 1.75f) < 1e-4f, rank.values[150]);
  CHECK(a[0] == 0.25f && a[150] == 0.25f, a[0], " ", a[150]);
  CHECK(std::fabs(b[0]) < 1e-4f && std::fabs(b[150]) < 1e-4f, b[0], " ", b[150]);
}

TEST("a rank that is none is refused") {
  for (const int rank : {-1, 2}) {
    bool refused = false;
    try {
      EncodedBucket(Wire::int8, rank, 2, {}, 0);
    } catch (const UsageError&) {
      refused = true;
    }
    CHECK(refused, rank);
  }
}
