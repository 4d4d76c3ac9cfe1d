// SPDX-License-Identifier: MIT
#include "torch/call_arguments.h"

#include <pybind11/pybind11.h>

#include <climits>

namespace pycomm {
namespace {

// By identity first: names in calls are interned, as ours are.
size_t find(PyObject* name, PyObject* const* names, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    if (names[i] == name) return i;
  }
  for (size_t i = 0; i < count; ++i) {
    if (PyUnicode_Compare(names[i], name) == 0) return i;
  }
  return count;
}

}  // namespace

void bind_arguments(const char* function, const char* const* names, PyObject** interned,
                    size_t count, size_t required, PyObject* const* arguments, Py_ssize_t given,
                    PyObject* keywords, PyObject** values) {
  const auto positional = static_cast<size_t>(given);
  if (positional > count) {
    PyErr_Format(PyExc_TypeError, "%s() takes at most %zu arguments (%zu given)", function, count,
                 positional);
    throw pybind11::error_already_set();
  }
  for (size_t i = 0; i < positional; ++i) values[i] = arguments[i];
  const Py_ssize_t named = keywords ? PyTuple_GET_SIZE(keywords) : 0;
  for (Py_ssize_t k = 0; k < named; ++k) {
    PyObject* name = PyTuple_GET_ITEM(keywords, k);
    const size_t at = find(name, interned, count);
    if (at == count || values[at]) {
      PyErr_Format(PyExc_TypeError,
                   at == count ? "%s() got an unexpected argument '%U'"
                               : "%s() got several values for argument '%U'",
                   function, name);
      throw pybind11::error_already_set();
    }
    values[at] = arguments[positional + static_cast<size_t>(k)];
  }
  for (size_t i = 0; i < required; ++i) {
    if (values[i]) continue;
    PyErr_Format(PyExc_TypeError, "%s() is missing the argument '%s'", function, names[i]);
    throw pybind11::error_already_set();
  }
}

int integer_of(PyObject* value, int fallback) {
  if (!value) return fallback;
  const long number = PyLong_AsLong(value);
  if (number == -1 && PyErr_Occurred()) throw pybind11::error_already_set();
  if (number < INT_MIN || number > INT_MAX) {
    PyErr_Format(PyExc_OverflowError, "%ld does not fit in 32 bits", number);
    throw pybind11::error_already_set();
  }
  return static_cast<int>(number);
}

bool flag_of(PyObject* value) {
  if (!value || value == Py_False) return false;
  const int truth = PyObject_IsTrue(value);
  if (truth < 0) throw pybind11::error_already_set();
  return truth != 0;
}

}  // namespace pycomm
