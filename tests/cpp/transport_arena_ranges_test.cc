// SPDX-License-Identifier: MIT
// The arena's bookkeeping, against a model that knows the state of every page.
#include <chrono>
#include <random>
#include <vector>

#include "check.h"
#include "transport/arena_ranges.h"

using namespace pycomm;
using Kind = ArenaRanges::Kind;

namespace {

// One entry a unit: what the ranges must say about it.
struct Model {
  explicit Model(size_t units) : kind(units, Kind::fresh), block(units, 0) {}
  std::vector<Kind> kind;
  std::vector<size_t> block;  // 1 + where the block begins, 0 outside blocks

  size_t count(Kind wanted) const {
    return static_cast<size_t>(std::count(kind.begin(), kind.end(), wanted));
  }
  // Largest run of free units of which those with pages come first and are used before.
  bool could_take(size_t bytes) const {
    for (size_t at = 0; at < kind.size(); ++at) {
      size_t end = at;
      while (end < kind.size() && kind[end] == Kind::touched) ++end;
      if (end - at >= bytes) return true;
      while (end < kind.size() && kind[end] == Kind::fresh) ++end;
      if (end - at >= bytes) return true;
    }
    return false;
  }
};

void compare(const ArenaRanges& ranges, const Model& model, const std::string& context) {
  size_t at = 0;
  Kind last = Kind::used;
  for (const auto& [offset, range] : ranges.all()) {
    CHECK(offset == at, context, ": gap before ", offset);
    CHECK(range.bytes > 0, context);
    CHECK(range.kind == Kind::used || range.kind == Kind::retired || range.kind != last || at == 0,
          context, ": neighbours of one kind at ", offset);
    for (size_t i = 0; i < range.bytes; ++i) {
      CHECK(model.kind[at + i] == range.kind, context, ": unit ", at + i, " is ",
            static_cast<int>(range.kind), ", expected ", static_cast<int>(model.kind[at + i]));
    }
    last = range.kind;
    at += range.bytes;
  }
  CHECK(at == model.kind.size(), context);
  CHECK(ranges.used_bytes() == model.count(Kind::used), context);
  CHECK(ranges.retired_bytes() == model.count(Kind::retired), context);
}

}  // namespace

TEST("random takes, gives, quarantines and trims agree with a model of every unit") {
  const auto seed = static_cast<unsigned>(
      std::chrono::steady_clock::now().time_since_epoch().count() & 0xffffffff);
  std::printf("seed %u\n", seed);
  std::mt19937 random(seed);
  const auto below = [&](size_t n) { return static_cast<size_t>(random() % n); };
  for (int round = 0; round < 30; ++round) {
    constexpr size_t kUnits = 300;
    ArenaRanges ranges(0, kUnits);
    Model model(kUnits);
    std::vector<ArenaRanges::Taken> blocks;
    std::vector<bool> quarantined(kUnits, false);
    for (int step = 0; step < 400; ++step) {
      const auto context = check::join("seed ", seed, " round ", round, " step ", step);
      const auto what = below(20);
      if (what < 10) {
        const size_t bytes = 1 + below(what < 2 ? 120 : 20);
        const bool could = model.could_take(bytes);
        const auto taken = ranges.take(bytes);
        CHECK(taken.has_value() == could, context);
        if (!taken) continue;
        CHECK(taken->bytes == bytes && taken->offset + bytes <= kUnits, context);
        for (size_t i = 0; i < bytes; ++i) {
          auto& kind = model.kind[taken->offset + i];
          const bool fresh = i >= bytes - taken->fresh_bytes;
          CHECK(kind == (fresh ? Kind::fresh : Kind::touched), context, ": unit ", i);
        }
        if (taken->fresh_bytes > 0 && below(5) == 0) {
          ranges.untake(*taken);
        } else {
          for (size_t i = 0; i < bytes; ++i) model.kind[taken->offset + i] = Kind::used;
          blocks.push_back(*taken);
        }
      } else if (what < 18 && !blocks.empty()) {
        std::swap(blocks[below(blocks.size())], blocks.back());
        const auto block = blocks.back();
        blocks.pop_back();
        CHECK(ranges.give(block.offset) == block.bytes, context);
        CHECK(ranges.give(block.offset) == 0, context, ": given twice");
        const bool retired = quarantined[block.offset];
        for (size_t i = 0; i < block.bytes; ++i) {
          model.kind[block.offset + i] = retired ? Kind::retired : Kind::touched;
        }
      } else if (what == 18) {
        const size_t at = below(kUnits);
        const bool used = model.kind[at] == Kind::used;
        CHECK(ranges.quarantine(at) == used, context);
        for (const auto& block : blocks) {
          if (at - block.offset < block.bytes) quarantined[block.offset] = true;
        }
      } else if (below(4) == 0) {
        while (ranges.drop_free_range()) {
        }
        for (auto& kind : model.kind) kind = kind == Kind::touched ? Kind::fresh : kind;
      }
      compare(ranges, model, context);
    }
  }
}

TEST("memory with pages is preferred, the best fit first") {
  ArenaRanges ranges(0, 100);
  const auto a = ranges.take(10), b = ranges.take(1), c = ranges.take(5), d = ranges.take(1);
  CHECK(a->fresh_bytes == 10 && d->offset == 16);
  ranges.give(a->offset);
  ranges.give(c->offset);
  CHECK(ranges.take(4)->offset == c->offset);
  CHECK(ranges.take(6)->offset == a->offset);
  CHECK(b->offset == 10);
}

TEST("a free range at the end of what has pages is extended, not passed over") {
  ArenaRanges ranges(0, 100);
  const auto a = ranges.take(10);
  ranges.give(a->offset);
  const auto b = ranges.take(12);
  CHECK(b->offset == 0 && b->fresh_bytes == 2, "at ", b->offset, " fresh ", b->fresh_bytes);
  CHECK(ranges.touched_bytes() == 12);
}
