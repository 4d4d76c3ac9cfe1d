// SPDX-License-Identifier: MIT
#include "torch/array.h"

#include <ATen/dlpack.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <array>
#include <cstring>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "torch/tensors.h"

namespace py = pybind11;

namespace pycomm {
namespace {

static_assert(sizeof(Py_ssize_t) == sizeof(int64_t));

std::optional<DType> integer(bool is_signed, Py_ssize_t bytes) {
  switch (bytes) {
    case 1:
      return is_signed ? DType::int8 : DType::uint8;
    case 2:
      return is_signed ? DType::int16 : DType::uint16;
    case 4:
      return is_signed ? DType::int32 : DType::uint32;
    case 8:
      return is_signed ? DType::int64 : DType::uint64;
    default:
      return std::nullopt;
  }
}

std::optional<DType> floating(Py_ssize_t bytes) {
  switch (bytes) {
    case 2:
      return DType::float16;
    case 4:
      return DType::float32;
    case 8:
      return DType::float64;
    default:
      return std::nullopt;
  }
}

std::optional<DType> complex(Py_ssize_t bytes) {
  switch (bytes) {
    case 4:
      return DType::complex32;
    case 8:
      return DType::complex64;
    case 16:
      return DType::complex128;
    default:
      return std::nullopt;
  }
}

// The letters of Python's struct module, one element, in this machine's byte order.
std::optional<DType> dtype_of_format(const char* format, Py_ssize_t bytes) {
  if (!format) return DType::uint8;
  constexpr bool little = std::endian::native == std::endian::little;
  const char order = *format;
  if (order == '@' || order == '=' || order == '^' || order == (little ? '<' : '>')) {
    ++format;
  } else if (bytes == 1 && (order == '<' || order == '>' || order == '!')) {
    ++format;
  }
  const bool z = *format == 'Z';
  if (z) ++format;
  if (!*format || format[1]) return std::nullopt;
  if (z) return std::strchr("efd", *format) ? complex(bytes) : std::nullopt;
  if (*format == '?') return DType::boolean;
  if (std::strchr("bhilqn", *format)) return integer(true, bytes);
  if (std::strchr("BHILQNc", *format)) return integer(false, bytes);
  if (std::strchr("efd", *format)) return floating(bytes);
  return std::nullopt;
}

std::optional<DType> dtype_of_dlpack(const DLDataType& type) {
  if (type.lanes != 1 || type.bits % 8) return std::nullopt;
  const auto bytes = static_cast<Py_ssize_t>(type.bits / 8);
  switch (type.code) {
    case kDLInt:
      return integer(true, bytes);
    case kDLUInt:
      return integer(false, bytes);
    case kDLFloat:
      return floating(bytes);
    case kDLBfloat:
      return bytes == 2 ? std::optional(DType::bfloat16) : std::nullopt;
    case kDLComplex:
      return complex(bytes);
    case kDLBool:
      return bytes == 1 ? std::optional(DType::boolean) : std::nullopt;
    case kDLFloat8_e4m3fn:
      return DType::float8_e4m3fn;
    case kDLFloat8_e5m2:
      return DType::float8_e5m2;
    case kDLFloat8_e4m3fnuz:
      return DType::float8_e4m3fnuz;
    case kDLFloat8_e5m2fnuz:
      return DType::float8_e5m2fnuz;
    case kDLFloat8_e8m0fnu:
      return DType::float8_e8m0fnu;
    default:
      return std::nullopt;
  }
}

// NumPy's name of a dtype that the buffer protocol cannot say: those of the package ml_dtypes.
std::optional<DType> dtype_named(std::string_view name) {
  constexpr std::array kNames{DType::bfloat16,        DType::float8_e4m3fn,
                              DType::float8_e5m2,     DType::float8_e4m3fnuz,
                              DType::float8_e5m2fnuz, DType::float8_e8m0fnu};
  for (const auto dtype : kNames) {
    if (name == name_of(dtype)) return dtype;
  }
  return std::nullopt;
}

[[noreturn]] void refuse_dtype(Collective collective, const std::string& what) {
  throw UsageError(str(name_of(collective), ": got an array of ", what,
                       ", expected booleans, integers, floats up to 64 bits or complex numbers in "
                       "this machine's byte order; convert it with astype()"));
}

}  // namespace

void Array::open(Collective collective, PyObject* from) {
  object = Py_NewRef(from);
  if (PyObject_CheckBuffer(from)) {
    // Strides, so that the exporter need not pack; the format comes with them.
    if (PyObject_GetBuffer(from, &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) == 0) {
      return open_buffer(collective);
    }
    const py::error_already_set why;
    if (open_extended(collective)) return;
    refuse_dtype(collective, str("type ", Py_TYPE(from)->tp_name, " (", why.what(), ")"));
  }
  if (open_tensor(collective) || open_dlpack(collective)) return;
  throw UsageError(str(name_of(collective), ": got a ", Py_TYPE(from)->tp_name,
                       ", expected an array: NumPy's, a torch tensor, or anything else with the "
                       "buffer protocol or __dlpack__; numpy.asarray() makes one"));
}

void Array::open_buffer(Collective collective) {
  source_ = Source::buffer;
  const auto known = dtype_of_format(buffer_.format, buffer_.itemsize);
  if (!known) refuse_dtype(collective, str("format '", buffer_.format, "'"));
  dtype = *known;
  item_bytes_ = static_cast<size_t>(buffer_.itemsize);
  data = static_cast<std::byte*>(buffer_.buf);
  read_only_ = buffer_.readonly;
  dimensions_ = buffer_.ndim;
  shape_ = buffer_.shape;
  strides_ = buffer_.strides;
  measure();
}

bool Array::open_extended(Collective collective) {
  const auto array = py::reinterpret_borrow<py::object>(object);
  const auto type = py::getattr(array, "dtype", py::none());
  if (!py::hasattr(type, "name") || !py::hasattr(array, "view")) return false;
  const auto known = dtype_named(py::cast<std::string>(type.attr("name")));
  if (!known) return false;
  const py::object bits = array.attr("view")(size_of(*known) == 1 ? "uint8" : "uint16");
  if (PyObject_GetBuffer(bits.ptr(), &buffer_, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
    throw py::error_already_set();
  }
  open_buffer(collective);
  dtype = *known;
  return true;
}

bool Array::open_tensor(Collective collective) {
  if (!THPVariable_Check(object)) return false;
  const at::Tensor& tensor = THPVariable_Unpack(object);
  check_tensor(collective, tensor);
  PYCOMM_USAGE(!tensor.is_conj() && !tensor.is_neg(), name_of(collective), ": got ",
               pycomm::describe(tensor),
               " that is a conjugate or negative view, expected memory that holds the values; call "
               "resolve_conj().resolve_neg() first");
  source_ = Source::tensor;
  dtype = dtype_of(collective, tensor);
  item_bytes_ = size_of(dtype);
  data = static_cast<std::byte*>(tensor.data_ptr());
  count = static_cast<size_t>(tensor.numel());
  contiguous = tensor.is_contiguous();
  dimensions_ = static_cast<int>(tensor.dim());
  shape_ = tensor.sizes().data();
  strides_ = tensor.strides().data();
  stride_unit_ = static_cast<int64_t>(item_bytes_);
  return true;
}

bool Array::open_dlpack(Collective collective) {
  const auto array = py::reinterpret_borrow<py::object>(object);
  if (!py::hasattr(array, "__dlpack__")) return false;
  const auto device = py::cast<std::pair<int, int>>(array.attr("__dlpack_device__")());
  PYCOMM_USAGE(device.first == kDLCPU, name_of(collective), ": got a ", Py_TYPE(object)->tp_name,
               " on a device (DLPack type ", device.first,
               "), expected an array in CPU memory; copy it to the CPU first");
  py::object capsule;
  try {
    capsule = array.attr("__dlpack__")(py::arg("max_version") = py::make_tuple(1, 0));
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    capsule = array.attr("__dlpack__")();  // from before there were versions
  }
  versioned_ = PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned");
  managed_ = PyCapsule_GetPointer(capsule.ptr(), versioned_ ? "dltensor_versioned" : "dltensor");
  if (!managed_) throw py::error_already_set();
  PyCapsule_SetName(capsule.ptr(), versioned_ ? "used_dltensor_versioned" : "used_dltensor");
  source_ = Source::dlpack;
  const auto* versioned = static_cast<DLManagedTensorVersioned*>(managed_);
  const DLTensor& tensor =
      versioned_ ? versioned->dl_tensor : static_cast<DLManagedTensor*>(managed_)->dl_tensor;
  read_only_ = versioned_ && (versioned->flags & DLPACK_FLAG_BITMASK_READ_ONLY);
  const auto known = dtype_of_dlpack(tensor.dtype);
  if (!known) {
    refuse_dtype(collective, str("DLPack type code ", static_cast<int>(tensor.dtype.code), " with ",
                                 static_cast<int>(tensor.dtype.bits), " bits"));
  }
  dtype = *known;
  item_bytes_ = size_of(dtype);
  data = static_cast<std::byte*>(tensor.data) + tensor.byte_offset;
  dimensions_ = tensor.ndim;
  shape_ = tensor.shape;
  strides_ = tensor.strides;
  stride_unit_ = static_cast<int64_t>(item_bytes_);
  measure();
  return true;
}

// Counts the elements and finds out whether they lie side by side.
void Array::measure() {
  int64_t elements = 1;
  bool dense = true;
  for (int d = dimensions_ - 1; d >= 0; --d) {
    if (strides_ && shape_[d] != 1 &&
        strides_[d] * stride_unit_ != elements * static_cast<int64_t>(item_bytes_)) {
      dense = false;
    }
    elements *= shape_[d];
  }
  count = static_cast<size_t>(elements);
  contiguous = dense || elements == 0;
}

void Array::release() {
  if (source_ == Source::buffer) PyBuffer_Release(&buffer_);
  if (source_ == Source::dlpack && versioned_) {
    auto* managed = static_cast<DLManagedTensorVersioned*>(managed_);
    if (managed->deleter) managed->deleter(managed);
  } else if (source_ == Source::dlpack) {
    auto* managed = static_cast<DLManagedTensor*>(managed_);
    if (managed->deleter) managed->deleter(managed);
  }
  source_ = Source::none;
  Py_CLEAR(object);
}

std::string Array::describe() const {
  std::string text(name_of(dtype));
  text += '[';
  for (int d = 0; d < dimensions_; ++d) text += str(d ? ", " : "", shape_[d]);
  return text + ']';
}

void Array::check_output(Collective collective) const {
  PYCOMM_USAGE(!read_only_, name_of(collective), ": got the read-only array ", describe(),
               " to write results to, expected one that may be written; pass a copy of it, or "
               "another array as out");
  if (contiguous) return;
  for (int d = 0; d < dimensions_; ++d) {
    PYCOMM_USAGE(strides_[d] != 0 || shape_[d] < 2, name_of(collective), ": got the array ",
                 describe(),
                 " to write results to, several of whose elements share memory, expected one place "
                 "for each; pass a copy of a broadcast array");
  }
}

StridedArray Array::strided() const {
  StridedArray result{data, item_bytes_, {}, {}};
  for (int d = 0; d < dimensions_; ++d) {
    result.shape.push_back(shape_[d]);
    result.strides.push_back(strides_[d] * stride_unit_);
  }
  return result;
}

ReduceOp op_named(Collective collective, PyObject* name) {
  if (!name) return ReduceOp::sum;
  PYCOMM_USAGE(PyUnicode_Check(name), name_of(collective), ": got an op of type ",
               Py_TYPE(name)->tp_name,
               ", expected a string: sum, avg, product, min, max, band, bor or bxor");
  for (int i = 0; i < static_cast<int>(ReduceOp::premul_sum); ++i) {
    const auto op = static_cast<ReduceOp>(i);
    const auto text = name_of(op);
    if (PyUnicode_CompareWithASCIIString(name, text.data()) == 0) return op;
  }
  const char* given = PyUnicode_AsUTF8(name);
  if (!given) throw py::error_already_set();
  throw UsageError(str(name_of(collective), ": got op '", given,
                       "', expected sum, avg, product, min, max, band, bor or bxor"));
}

}  // namespace pycomm
