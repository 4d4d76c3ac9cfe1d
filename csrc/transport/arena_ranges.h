// SPDX-License-Identifier: MIT
// Which parts of an arena are given out, which are free, and which of the free ones are fresh.
//
// Pure bookkeeping over offsets; it touches no memory. A fresh range has no pages yet, and giving
// it pages is what costs, so a free range that has been used before is always preferred: the best
// fit among those, else a fresh range together with the used-before range in front of it.
// Neighbours of one kind are merged. Not synchronised: the arena's lock protects it.
#pragma once

#include <cstddef>
#include <map>
#include <optional>
#include <set>
#include <utility>

namespace pycomm {

class ArenaRanges {
 public:
  // Everything in [begin, end) is fresh.
  ArenaRanges(size_t begin, size_t end);

  struct Taken {
    size_t offset = 0;
    size_t bytes = 0;
    size_t fresh_bytes = 0;  // the last part of it has no pages yet
  };
  // Nothing when no range is large enough.
  std::optional<Taken> take(size_t bytes);
  // Undoes a take whose fresh part could not get pages.
  void untake(const Taken& taken);
  // Takes back the block that begins at `offset` and returns its size; 0 when there is none.
  size_t give(size_t offset);
  // The block around `offset` is not given out again, also after give(). False when there is none.
  bool quarantine(size_t offset);
  // A free range with pages, which becomes fresh: the caller takes its pages away. Blocks in
  // quarantine that were given back count once.
  std::optional<std::pair<size_t, size_t>> drop_free_range();

  enum class Kind { used, touched, fresh, retired };
  struct Range {
    size_t bytes = 0;
    Kind kind = Kind::fresh;
    bool quarantined = false;
  };
  // All ranges by offset, without gaps.
  const std::map<size_t, Range>& all() const { return ranges_; }
  size_t used_bytes() const { return used_; }
  // Bytes that have pages: given out, kept for later, or retired.
  size_t touched_bytes() const { return touched_; }
  size_t retired_bytes() const { return retired_; }

 private:
  using Place = std::map<size_t, Range>::iterator;
  std::set<std::pair<size_t, size_t>>& index(Kind kind);
  void set(size_t offset, Range range);
  void erase(Place place);
  // Makes [offset, offset + bytes) one free range, together with neighbours of its kind.
  void put_free(size_t offset, size_t bytes, Kind kind);
  std::optional<Taken> take_touched(size_t bytes);
  std::optional<Taken> take_fresh(size_t bytes);

  std::map<size_t, Range> ranges_;
  // Free ranges by size, then offset.
  std::set<std::pair<size_t, size_t>> touched_free_;
  std::set<std::pair<size_t, size_t>> fresh_free_;
  std::set<std::pair<size_t, size_t>> retired_free_;
  size_t used_ = 0;
  size_t touched_ = 0;
  size_t retired_ = 0;
};

}  // namespace pycomm
