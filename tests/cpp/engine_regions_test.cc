// SPDX-License-Identifier: MIT
// A list of regions is a list, whether it holds none, one in place, or several elsewhere.
#include "check.h"
#include "engine/regions.h"

using namespace pycomm;

TEST("regions keep their order and values while they grow past the one that is kept in place") {
  std::byte memory[8];
  Regions regions;
  CHECK(regions.empty() && regions.begin() == regions.end());
  for (size_t i = 0; i < 8; ++i) {
    regions.push_back({&memory[i], i});
    CHECK(regions.size() == i + 1 && regions.back().count == i);
    CHECK(regions.front().data == &memory[0], i);
    size_t at = 0;
    for (const Region& one : regions) CHECK(one.data == &memory[at] && one.count == at++, i);
    CHECK(at == i + 1);
  }
}

TEST("copies and lists are independent of where they came from") {
  std::byte memory[3];
  for (const size_t count : {0u, 1u, 3u}) {
    Regions regions;
    for (size_t i = 0; i < count; ++i) regions.push_back({&memory[i], i + 1});
    Regions copy = regions;
    for (Region& one : regions) one.count = 99;
    regions.add_empty(2);
    CHECK(copy.size() == count && regions.size() == count + 2);
    for (size_t i = 0; i < count; ++i) CHECK(copy[i].count == i + 1);
    CHECK(regions[count].count == 0 && regions.back().data == nullptr);
    copy = {{&memory[2], 7}};
    CHECK(copy.size() == 1 && copy.front().count == 7);
    copy = {{&memory[0], 1}, {&memory[1], 2}};
    CHECK(copy.size() == 2 && copy.back().data == &memory[1]);
  }
}
