// SPDX-License-Identifier: MIT
#include "transport/arena_ranges.h"

#include <iterator>

namespace pycomm {

ArenaRanges::ArenaRanges(size_t begin, size_t end) {
  if (begin < end) put_free(begin, end - begin, Kind::fresh);
}

std::set<std::pair<size_t, size_t>>& ArenaRanges::index(Kind kind) {
  if (kind == Kind::touched) return touched_free_;
  return kind == Kind::fresh ? fresh_free_ : retired_free_;
}

void ArenaRanges::set(size_t offset, Range range) {
  if (range.kind != Kind::used) index(range.kind).emplace(range.bytes, offset);
  ranges_[offset] = range;
}

void ArenaRanges::erase(Place place) {
  const auto& [offset, range] = *place;
  if (range.kind != Kind::used) index(range.kind).erase({range.bytes, offset});
  ranges_.erase(place);
}

void ArenaRanges::put_free(size_t offset, size_t bytes, Kind kind) {
  const size_t end = offset + bytes;
  const auto after = ranges_.lower_bound(offset);
  if (after != ranges_.begin()) {
    const auto before = std::prev(after);
    if (before->second.kind == kind && before->first + before->second.bytes == offset) {
      offset = before->first;
      bytes += before->second.bytes;
      erase(before);
    }
  }
  if (after != ranges_.end() && after->second.kind == kind && after->first == end) {
    bytes += after->second.bytes;
    erase(after);
  }
  set(offset, {bytes, kind});
}

std::optional<ArenaRanges::Taken> ArenaRanges::take(size_t bytes) {
  auto taken = take_touched(bytes);
  if (!taken) taken = take_fresh(bytes);
  if (taken) {
    used_ += taken->bytes;
    touched_ += taken->fresh_bytes;
  }
  return taken;
}

std::optional<ArenaRanges::Taken> ArenaRanges::take_touched(size_t bytes) {
  const auto best = touched_free_.lower_bound({bytes, 0});
  if (best == touched_free_.end()) return std::nullopt;
  const auto [there, offset] = *best;
  erase(ranges_.find(offset));
  set(offset, {bytes, Kind::used});
  if (there > bytes) set(offset + bytes, {there - bytes, Kind::touched});
  return Taken{offset, bytes, 0};
}

// The fresh range that needs the fewest new pages. There are few: trimming alone makes more than
// one.
std::optional<ArenaRanges::Taken> ArenaRanges::take_fresh(size_t bytes) {
  Place best = ranges_.end();
  size_t best_in_front = 0;
  for (const auto& [there, offset] : fresh_free_) {
    const auto place = ranges_.find(offset);
    size_t in_front = 0;
    if (place != ranges_.begin() && std::prev(place)->second.kind == Kind::touched) {
      in_front = std::prev(place)->second.bytes;
    }
    if (in_front + there < bytes || (best != ranges_.end() && in_front <= best_in_front)) continue;
    best = place;
    best_in_front = in_front;
  }
  if (best == ranges_.end()) return std::nullopt;
  const size_t end = best->first + best->second.bytes;
  const size_t offset = best->first - best_in_front;
  if (best_in_front > 0) erase(std::prev(best));
  erase(best);
  set(offset, {bytes, Kind::used});
  if (offset + bytes < end) set(offset + bytes, {end - offset - bytes, Kind::fresh});
  return Taken{offset, bytes, bytes - best_in_front};
}

void ArenaRanges::untake(const Taken& taken) {
  erase(ranges_.find(taken.offset));
  used_ -= taken.bytes;
  touched_ -= taken.fresh_bytes;
  const size_t old_bytes = taken.bytes - taken.fresh_bytes;
  put_free(taken.offset + old_bytes, taken.fresh_bytes, Kind::fresh);
  if (old_bytes > 0) put_free(taken.offset, old_bytes, Kind::touched);
}

size_t ArenaRanges::give(size_t offset) {
  const auto place = ranges_.find(offset);
  if (place == ranges_.end() || place->second.kind != Kind::used) return 0;
  const auto range = place->second;
  erase(place);
  used_ -= range.bytes;
  if (range.quarantined) {
    retired_ += range.bytes;
    set(offset, {range.bytes, Kind::retired});
  } else {
    put_free(offset, range.bytes, Kind::touched);
  }
  return range.bytes;
}

bool ArenaRanges::quarantine(size_t offset) {
  auto place = ranges_.upper_bound(offset);
  if (place == ranges_.begin()) return false;
  --place;
  auto& range = place->second;
  if (range.kind != Kind::used || offset >= place->first + range.bytes) return false;
  range.quarantined = true;
  return true;
}

std::optional<std::pair<size_t, size_t>> ArenaRanges::drop_free_range() {
  if (!retired_free_.empty()) {
    const auto [bytes, offset] = *retired_free_.begin();
    retired_free_.erase(retired_free_.begin());
    touched_ -= bytes;
    return std::pair(offset, bytes);
  }
  if (touched_free_.empty()) return std::nullopt;
  const auto [bytes, offset] = *touched_free_.begin();
  erase(ranges_.find(offset));
  touched_ -= bytes;
  put_free(offset, bytes, Kind::fresh);
  return std::pair(offset, bytes);
}

}  // namespace pycomm
