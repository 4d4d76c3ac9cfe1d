// SPDX-License-Identifier: MIT
// The arguments of a Python call, bound to parameters by position and by name without a tuple or a
// dict: pybind11's way costs more than a small collective. With the GIL.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>

namespace pycomm {

// values[i] is what was given for names[i], or null. Throws error_already_set with a TypeError.
void bind_arguments(const char* function, const char* const* names, PyObject** interned,
                    size_t count, size_t required, PyObject* const* arguments, Py_ssize_t given,
                    PyObject* keywords, PyObject** values);

// The parameters of one function; a static of the function.
template <size_t kCount>
class Parameters {
 public:
  using Values = std::array<PyObject*, kCount>;

  Parameters(const char* function, size_t required, std::array<const char*, kCount> names)
      : function_(function), required_(required), names_(names) {
    for (size_t i = 0; i < kCount; ++i) interned_[i] = PyUnicode_InternFromString(names_[i]);
  }

  Values bind(PyObject* const* arguments, Py_ssize_t given, PyObject* keywords) {
    Values values{};
    bind_arguments(function_, names_.data(), interned_.data(), kCount, required_, arguments, given,
                   keywords, values.data());
    return values;
  }

 private:
  const char* function_;
  size_t required_;
  std::array<const char*, kCount> names_;
  std::array<PyObject*, kCount> interned_{};
};

// None is as good as not given.
inline PyObject* unless_none(PyObject* value) { return value == Py_None ? nullptr : value; }
// `fallback` when not given.
int integer_of(PyObject* value, int fallback);
bool flag_of(PyObject* value);

}  // namespace pycomm
