// SPDX-License-Identifier: MIT
// One array of a call of the plain array face, whoever made it: anything with Python's buffer
// protocol (NumPy, array.array, bytearray, mmap), a torch tensor, or anything with __dlpack__ on
// the CPU.
//
// open() borrows the memory from the Python object, which stays alive and exported until release().
// All methods need the GIL; the fields may be read by any thread meanwhile.
#pragma once

#include <Python.h>

#include <cstddef>
#include <string>

#include "base/dtype.h"
#include "torch/strided_copy.h"

namespace pycomm {

class Array {
 public:
  Array() = default;
  ~Array() { release(); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  // Throws UsageError that names the collective, or pybind11's error_already_set.
  void open(Collective collective, PyObject* object);
  void release();

  bool given() const { return object != nullptr; }
  // "float32[2, 3]"
  std::string describe() const;
  // Where results are to be written: refused when read-only, or when elements share memory.
  void check_output(Collective collective) const;
  StridedArray strided() const;

  PyObject* object = nullptr;  // ours to hold
  std::byte* data = nullptr;
  size_t count = 0;  // elements
  DType dtype{};
  bool contiguous = true;  // in C order

 private:
  enum class Source { none, buffer, tensor, dlpack };

  void open_buffer(Collective collective);
  bool open_tensor(Collective collective);
  bool open_extended(Collective collective);
  bool open_dlpack(Collective collective);
  void measure();

  Source source_ = Source::none;
  bool read_only_ = false;
  int dimensions_ = 0;
  size_t item_bytes_ = 1;
  // The lender's, until release(). Strides in units of stride_unit_; null: contiguous.
  const int64_t* shape_ = nullptr;
  const int64_t* strides_ = nullptr;
  int64_t stride_unit_ = 1;
  Py_buffer buffer_;
  void* managed_ = nullptr;  // dlpack: the tensor, to be given back
  bool versioned_ = false;
};

// "sum", "avg", ... Throws UsageError.
ReduceOp op_named(Collective collective, PyObject* name);

}  // namespace pycomm
