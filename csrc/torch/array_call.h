// SPDX-License-Identifier: MIT
// One call of the plain array face: arrays in, one operation out.
//
// Made, filled and destroyed with the GIL. It must stay until its operation has finished: the
// operation works on the arrays' memory, or on packed copies of those that are not contiguous,
// made by the thread that runs it.
#pragma once

#include <memory>

#include "engine/operation.h"
#include "torch/array.h"
#include "torch/call_checks.h"

namespace pycomm {

class ArrayCall {
 public:
  explicit ArrayCall(Collective collective) : operation(std::make_shared<Operation>()) {
    operation->collective = collective;
  }
  ~ArrayCall() { Py_XDECREF(result); }
  ArrayCall(const ArrayCall&) = delete;
  ArrayCall& operator=(const ArrayCall&) = delete;

  // Null is None.
  void open_input(PyObject* array);
  void open_output(PyObject* array);

  // Appends an array, or its equal parts, as regions of the operation.
  void add(const Array& array, bool reads, bool writes);
  void add_split(const Array& array, int parts, bool reads, bool writes);
  void add_empty(int count);
  // The one region of all_reduce, broadcast, reduce, send and recv: the output, filled from the
  // input when both are given, else the input in place.
  void add_whole(bool reads, bool writes);
  // Input and output agree: `times` tells how often the smaller goes into the larger.
  void check_sizes(int input_times, int output_times) const;
  // Last: nothing is added afterwards.
  void finish(int rank);

  void set_result(PyObject* object) { result = Py_XNewRef(object); }
  // The arrays' memory is not needed any more.
  void release();

  Array input, output;
  std::shared_ptr<Operation> operation;
  PyObject* result = nullptr;  // what the caller is given; null: None, or a message's source

 private:
  struct Staging;
  std::byte* memory_of(const Array& array, bool reads, bool writes);
  Staging& staging();

  std::shared_ptr<Staging> staging_;  // only if something has to be copied
};

}  // namespace pycomm
