// SPDX-License-Identifier: MIT
// Bucket assignment: examples by hand, then properties over random parameters.
#include <algorithm>
#include <numeric>
#include <random>

#include "base/error.h"
#include "bucket/assign.h"
#include "check.h"

using namespace pycomm;

namespace {

std::vector<int> reversed(size_t count) {
  std::vector<int> order(count);
  std::iota(order.rbegin(), order.rend(), 0);
  return order;
}

bool refuses(const std::vector<Parameter>& parameters, const std::vector<int>& order, size_t first,
             size_t limit) {
  try {
    assign_buckets(parameters, order, first, limit);
  } catch (const UsageError&) {
    return true;
  }
  return false;
}

}  // namespace

TEST("a bucket closes with the parameter that brings it to its limit") {
  const std::vector<Parameter> parameters(5, Parameter{40, DType::float32, -1});
  const auto buckets = assign_buckets(parameters, reversed(5), 40, 80);
  CHECK(buckets.size() == 3, buckets.size());
  CHECK((buckets[0].parameters == std::vector<int>{4}), "the first limit is the smaller one");
  CHECK((buckets[1].parameters == std::vector<int>{3, 2}), buckets[1].bytes);
  CHECK((buckets[2].parameters == std::vector<int>{1, 0}), buckets[2].bytes);
}

TEST("dtypes and devices never share a bucket") {
  const std::vector<Parameter> parameters{{8, DType::float32, -1},
                                          {8, DType::bfloat16, -1},
                                          {8, DType::float32, 0},
                                          {8, DType::float32, -1}};
  const auto buckets = assign_buckets(parameters, {0, 1, 2, 3}, 1000, 1000);
  CHECK(buckets.size() == 3, buckets.size());
  CHECK((buckets[0].parameters == std::vector<int>{0, 3}), "same dtype and device travel together");
}

TEST("no parameters make no buckets") { CHECK(assign_buckets({}, {}, 1, 1).empty(), ""); }

TEST("what is not a permutation is refused") {
  const std::vector<Parameter> two(2);
  CHECK(refuses(two, {0}, 1, 1), "too short");
  CHECK(refuses(two, {0, 0}, 1, 1), "twice");
  CHECK(refuses(two, {0, 2}, 1, 1), "beyond the end");
  CHECK(refuses(two, {0, -1}, 1, 1), "negative");
  CHECK(refuses(two, {0, 1}, 0, 1) && refuses(two, {0, 1}, 1, 0), "zero limits");
}

TEST(
    "every parameter is in exactly one bucket, in order, and only last ones stay below the limit") {
  for (unsigned seed = 0; seed < 500; ++seed) {
    std::mt19937 random(seed);
    std::vector<Parameter> parameters(random() % 40);
    for (auto& one : parameters) {
      one = {random() % 300, random() % 2 ? DType::float32 : DType::float16,
             static_cast<int>(random() % 2) - 1};
    }
    auto order = reversed(parameters.size());
    std::shuffle(order.begin(), order.end(), random);
    const size_t first = 1 + random() % 100, limit = 1 + random() % 500;
    const auto buckets = assign_buckets(parameters, order, first, limit);
    std::vector<int> seen(parameters.size());
    for (size_t b = 0; b < buckets.size(); ++b) {
      size_t bytes = 0, place = 0;
      for (const int index : buckets[b].parameters) {
        const auto& one = parameters[static_cast<size_t>(index)];
        ++seen[static_cast<size_t>(index)];
        bytes += one.bytes;
        CHECK(one.dtype == buckets[b].dtype && one.device == buckets[b].device, "seed ", seed);
        const auto at =
            static_cast<size_t>(std::find(order.begin(), order.end(), index) - order.begin());
        CHECK(index == buckets[b].parameters.front() || at > place, "order, seed ", seed);
        place = at;
        const bool last = index == buckets[b].parameters.back();
        CHECK(last || bytes < std::max(first, limit), "closes late, seed ", seed);
      }
      CHECK(bytes == buckets[b].bytes, "seed ", seed);
    }
    CHECK(std::all_of(seen.begin(), seen.end(), [](int n) { return n == 1; }), "seed ", seed);
  }
}
