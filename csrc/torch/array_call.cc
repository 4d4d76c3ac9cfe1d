// SPDX-License-Identifier: MIT
#include "torch/array_call.h"

#include <cstring>
#include <vector>

namespace pycomm {

// What is copied before and after the operation, and where to.
struct ArrayCall::Staging {
  struct Dense {
    StridedArray array;
    std::byte* dense;
  };
  std::vector<std::unique_ptr<std::byte[]>> memory;
  std::vector<Dense> packed, unpacked;
  std::vector<MovedApart> moved;
  struct {
    std::byte* to = nullptr;
    const std::byte* from = nullptr;
    size_t bytes = 0;
  } copied;

  std::byte* allocate(size_t bytes) {
    memory.push_back(std::make_unique_for_overwrite<std::byte[]>(bytes));
    return memory.back().get();
  }
  void before() const {
    for (const auto& one : packed) pack(one.array, one.dense);
    if (copied.bytes) std::memmove(copied.to, copied.from, copied.bytes);
    for (const auto& one : moved) std::memcpy(one.apart.get(), one.from, one.bytes);
  }
  void after() const {
    for (const auto& one : unpacked) unpack(one.dense, one.array);
  }
};

ArrayCall::Staging& ArrayCall::staging() {
  if (!staging_) staging_ = std::make_shared<Staging>();
  return *staging_;
}

void ArrayCall::open_input(PyObject* array) {
  input.open(operation->collective, array);
  operation->dtype = input.dtype;
}

void ArrayCall::open_output(PyObject* array) {
  const auto collective = operation->collective;
  output.open(collective, array);
  operation->dtype = output.dtype;
  PYCOMM_USAGE(!input.given() || input.dtype == output.dtype, name_of(collective), ": got ",
               input.describe(), " and, for the result, ", output.describe(),
               ", expected one dtype; convert one of them");
}

void ArrayCall::check_sizes(int input_times, int output_times) const {
  PYCOMM_USAGE(input.count * static_cast<size_t>(input_times) ==
                   output.count * static_cast<size_t>(output_times),
               name_of(operation->collective), ": got ", input.describe(), " and, for the result, ",
               output.describe(), ", expected ",
               input_times > output_times   ? str("a result of ", input_times, " times as many")
               : input_times < output_times ? str("a result of 1/", output_times, " as many")
                                            : std::string("as many"),
               " elements; give an array of that size");
}

std::byte* ArrayCall::memory_of(const Array& array, bool reads, bool writes) {
  if (writes) array.check_output(operation->collective);
  if (array.contiguous) return array.data;
  auto& staged = staging();
  auto* dense = staged.allocate(array.count * size_of(array.dtype));
  if (reads) staged.packed.push_back({array.strided(), dense});
  if (writes) staged.unpacked.push_back({array.strided(), dense});
  return dense;
}

void ArrayCall::add(const Array& array, bool reads, bool writes) {
  operation->work.push_back({memory_of(array, reads, writes), array.count});
}

void ArrayCall::add_split(const Array& array, int parts, bool reads, bool writes) {
  auto* data = memory_of(array, reads, writes);
  const size_t each = array.count / static_cast<size_t>(parts);
  operation->work.reserve(2 * static_cast<size_t>(parts));
  for (int i = 0; i < parts; ++i) {
    operation->work.push_back({data, each});
    data += each * size_of(array.dtype);
  }
}

void ArrayCall::add_empty(int count) { operation->work.add_empty(static_cast<size_t>(count)); }

void ArrayCall::add_whole(bool reads, bool writes) {
  if (!output.given()) return add(input, reads, writes);
  check_sizes(1, 1);
  add(output, false, writes);
  if (!reads) return;
  auto* data = operation->work.front().data;
  if (input.contiguous) {
    staging().copied = {data, input.data, input.count * size_of(input.dtype)};
  } else {
    staging().packed.push_back({input.strided(), data});
  }
}

void ArrayCall::finish(int rank) {
  if (auto moved = separate_overlaps(*operation, rank); !moved.empty()) {
    staging().moved = std::move(moved);
  }
  if (!staging_) return;
  operation->before = [staged = staging_] { staged->before(); };
  if (!staging_->unpacked.empty()) {
    operation->after = [staged = staging_] { staged->after(); };
  }
}

void ArrayCall::release() {
  input.release();
  output.release();
}

}  // namespace pycomm
