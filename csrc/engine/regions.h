// SPDX-License-Identifier: MIT
// The memory that an operation works on: a list of regions that allocates nothing while it has one.
//
// Most operations have one tensor, and where a whole call takes 0.2 us an allocation shows. A
// value; the memory that regions point to belongs to others.
#pragma once

#include <cstddef>
#include <initializer_list>
#include <vector>

namespace pycomm {

// One chunk's memory, or the whole tensor's.
struct Region {
  std::byte* data = nullptr;
  size_t count = 0;  // elements
};

class Regions {
 public:
  Regions() = default;
  Regions(std::initializer_list<Region> all) {
    reserve(all.size());
    for (const Region& one : all) push_back(one);
  }

  size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  Region* begin() { return size_ > 1 ? several_.data() : &only_; }
  Region* end() { return begin() + size_; }
  const Region* begin() const { return size_ > 1 ? several_.data() : &only_; }
  const Region* end() const { return begin() + size_; }
  Region& operator[](size_t index) { return begin()[index]; }
  const Region& operator[](size_t index) const { return begin()[index]; }
  Region& front() { return *begin(); }
  const Region& front() const { return *begin(); }
  Region& back() { return end()[-1]; }
  const Region& back() const { return end()[-1]; }

  void reserve(size_t count) {
    if (count > 1) several_.reserve(count);
  }
  void push_back(const Region& region) {
    if (size_ == 0) {
      only_ = region;
    } else {
      if (size_ == 1) several_.assign(1, only_);
      several_.push_back(region);
    }
    ++size_;
  }
  // At the end.
  void add_empty(size_t count) {
    reserve(size_ + count);
    for (; count > 0; --count) push_back({});
  }

 private:
  size_t size_ = 0;
  Region only_;                  // where there is one
  std::vector<Region> several_;  // where there are more
};

}  // namespace pycomm
