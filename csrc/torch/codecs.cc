// SPDX-License-Identifier: MIT
#include "torch/codecs.h"

#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include "bucket/encoded_bucket.h"
#include "torch/tensors.h"

namespace py = pybind11;

namespace pycomm {
namespace {

using Tensors = std::vector<at::Tensor>;
using OptionalTensor = std::optional<at::Tensor>;

// `count` < 0: any number of elements.
void check(const char* call, const char* what, const at::Tensor& tensor, at::ScalarType dtype,
           int64_t count) {
  const char* wanted = dtype == at::kFloat ? "float32" : "uint8";
  PYCOMM_USAGE(tensor.defined() && tensor.layout() == at::kStrided && tensor.device().is_cpu() &&
                   tensor.scalar_type() == dtype,
               call, ": ", what, " is ", describe(tensor), ", expected ", wanted,
               " on cpu; move and convert it with .to(\"cpu\", torch.", wanted, ")");
  PYCOMM_USAGE(tensor.is_contiguous() && !tensor.is_neg(), call, ": ", what, ", ", describe(tensor),
               ", is not contiguous; call .contiguous() on it");
  PYCOMM_USAGE(count < 0 || tensor.numel() == count, call, ": ", what, " is ", describe(tensor),
               ", expected ", count, " elements");
}

const float* floats(const char* call, const char* what, const at::Tensor& tensor,
                    int64_t count = -1) {
  check(call, what, tensor, at::kFloat, count);
  return tensor.const_data_ptr<float>();
}

float* floats_to_write(const char* call, const char* what, const at::Tensor& tensor,
                       int64_t count = -1) {
  check(call, what, tensor, at::kFloat, count);
  return tensor.data_ptr<float>();
}

const std::byte* bytes(const char* call, const char* what, const at::Tensor& tensor, size_t count) {
  check(call, what, tensor, at::kByte, static_cast<int64_t>(count));
  return static_cast<const std::byte*>(tensor.const_data_ptr());
}

std::byte* bytes_to_write(const char* call, const char* what, const at::Tensor& tensor,
                          size_t count) {
  check(call, what, tensor, at::kByte, static_cast<int64_t>(count));
  return static_cast<std::byte*>(tensor.data_ptr());
}

const Codec& codec_of(const std::string& wire) { return codec_for(wire_from(wire)); }

at::Tensor given_or_new(const OptionalTensor& out, int64_t count, at::ScalarType dtype) {
  return out ? *out : at::empty({count}, at::TensorOptions().dtype(dtype));
}

at::Tensor encode(const std::string& wire, const at::Tensor& values, const OptionalTensor& out) {
  const Codec& codec = codec_of(wire);
  const float* in = floats("encode", "values", values);
  const auto count = static_cast<size_t>(values.numel());
  const size_t size = codec.wire_bytes(count);
  const at::Tensor encoded = given_or_new(out, static_cast<int64_t>(size), at::kByte);
  std::byte* to = bytes_to_write("encode", "out", encoded, size);
  const py::gil_scoped_release encoding;
  codec.encode(in, to, count);
  return encoded;
}

at::Tensor decode(const std::string& wire, const at::Tensor& encoded, int64_t count,
                  const OptionalTensor& out) {
  PYCOMM_USAGE(count >= 0, "decode: count is ", count, ", expected 0 or more elements");
  const Codec& codec = codec_of(wire);
  const auto elements = static_cast<size_t>(count);
  const std::byte* in = bytes("decode", "encoded", encoded, codec.wire_bytes(elements));
  const at::Tensor values = given_or_new(out, count, at::kFloat);
  float* to = floats_to_write("decode", "out", values, count);
  const py::gil_scoped_release decoding;
  codec.decode(in, to, elements);
  return values;
}

void encode_residual(const std::string& wire, const at::Tensor& values, const at::Tensor& residual,
                     const at::Tensor& out) {
  constexpr auto kCall = "encode_with_residual";
  const Codec& codec = codec_of(wire);
  const float* in = floats(kCall, "values", values);
  float* kept = floats_to_write(kCall, "residual", residual, values.numel());
  const auto count = static_cast<size_t>(values.numel());
  std::byte* to = bytes_to_write(kCall, "out", out, codec.wire_bytes(count));
  const py::gil_scoped_release encoding;
  encode_with_residual(codec, in, {kept, kept}, to, count);
}

void reduce_encoded(const std::string& wire, const at::Tensor& target, const Tensors& sources,
                    int divisor) {
  constexpr auto kCall = "reduce_encoded";
  const Codec& codec = codec_of(wire);
  float* sum = floats_to_write(kCall, "target", target);
  PYCOMM_USAGE(!sources.empty(), kCall, ": no sources; give at least one tensor");
  PYCOMM_USAGE(divisor >= 1, kCall, ": divisor is ", divisor, ", expected 1 or more");
  const auto count = static_cast<size_t>(target.numel());
  std::vector<const std::byte*> encoded;
  std::vector<const float*> plain;
  for (const auto& source : sources) {
    const bool is_plain = source.defined() && source.scalar_type() == at::kFloat;
    plain.push_back(is_plain ? floats(kCall, "source", source, target.numel()) : nullptr);
    encoded.push_back(is_plain ? nullptr : bytes(kCall, "source", source, codec.wire_bytes(count)));
  }
  const py::gil_scoped_release adding;
  codec.reduce(sum, encoded.data(), plain.data(), static_cast<int>(sources.size()), count, divisor);
}

// ---- encoded buckets

using Part = std::tuple<size_t, size_t, size_t, size_t>;  // as in BucketPart

std::shared_ptr<EncodedBucket> make_bucket(const std::string& wire, int rank, int world_size,
                                           const std::vector<Part>& parts, size_t exact_below) {
  std::vector<BucketPart> taken;
  for (const auto& [index, in_bucket, in_residuals, count] : parts) {
    taken.push_back({index, in_bucket, in_residuals, count});
  }
  return std::make_shared<EncodedBucket>(wire_from(wire), rank, world_size, std::move(taken),
                                         exact_below);
}

ResidualMemories memories_of(const char* call, const EncodedBucket& bucket, const Tensors& memories,
                             std::vector<uint8_t> read, std::vector<uint8_t> write) {
  if (memories.empty()) return {};
  PYCOMM_USAGE(memories.size() == 2, call, ": ", memories.size(),
               " memories of residuals, expected none or 2");
  ResidualMemories taken;
  for (size_t i = 0; i < 2; ++i) {
    taken.memories[i] = floats_to_write(call, "residuals", memories[i]);
    PYCOMM_USAGE(memories[i].numel() >= static_cast<int64_t>(bucket.residual_elements()), call,
                 ": residuals are ", describe(memories[i]), ", expected at least ",
                 bucket.residual_elements(), " elements");
  }
  for (const auto* sides : {&read, &write}) {
    PYCOMM_USAGE(sides->size() == bucket.part_count(), call, ": ", sides->size(),
                 " memories named, expected one for each of ", bucket.part_count(), " parameters");
    for (const uint8_t side : *sides) {
      PYCOMM_USAGE(side < 2, call, ": memory ", static_cast<int>(side), " named, expected 0 or 1");
    }
  }
  taken.read = std::move(read);
  taken.write = std::move(write);
  return taken;
}

size_t bytes_for_others(const EncodedBucket& bucket) {
  size_t sum = 0;
  for (int owner = 0; owner < bucket.world_size(); ++owner) {
    if (owner != bucket.rank()) sum += bucket.bytes_for(owner);
  }
  return sum;
}

void bind_bucket(py::module_& m) {
  using Sides = std::vector<uint8_t>;
  py::class_<EncodedBucket, std::shared_ptr<EncodedBucket>>(m, "EncodedBucket")
      .def(py::init(&make_bucket), py::arg("wire"), py::arg("rank"), py::arg("world_size"),
           py::arg("parts"), py::arg("exact_below"))
      .def(
          "bytes_for",
          [](const EncodedBucket& b, int owner) {
            PYCOMM_USAGE(owner >= 0 && owner < b.world_size(), "bytes_for: rank ", owner, " of ",
                         b.world_size(), "; a rank is at least 0 and less than the world size");
            return b.bytes_for(owner);
          },
          py::arg("owner"))
      .def("owned", &EncodedBucket::owned)
      .def(
          "encode",
          [](const EncodedBucket& b, const at::Tensor& bucket, const at::Tensor& out,
             const Tensors& residuals, Sides read, Sides write) {
            constexpr auto kCall = "EncodedBucket.encode";
            const float* in = floats(kCall, "bucket", bucket, b.elements());
            std::byte* to = bytes_to_write(kCall, "out", out, bytes_for_others(b));
            const auto kept = memories_of(kCall, b, residuals, std::move(read), std::move(write));
            const py::gil_scoped_release encoding;
            b.encode(in, kept, to);
          },
          py::arg("bucket"), py::arg("out"), py::arg("residuals"), py::arg("read"),
          py::arg("write"))
      .def(
          "reduce",
          [](const EncodedBucket& b, const at::Tensor& bucket, const at::Tensor& received,
             const at::Tensor& out, const Tensors& residuals, Sides read, Sides write) {
            constexpr auto kCall = "EncodedBucket.reduce";
            const size_t mine = b.bytes_for(b.rank());
            float* sum = floats_to_write(kCall, "bucket", bucket, b.elements());
            const std::byte* in = bytes(kCall, "received", received, mine * (b.world_size() - 1));
            std::byte* to = bytes_to_write(kCall, "out", out, mine);
            const auto kept = memories_of(kCall, b, residuals, std::move(read), std::move(write));
            const py::gil_scoped_release adding;
            b.reduce(sum, in, kept, to);
          },
          py::arg("bucket"), py::arg("received"), py::arg("out"), py::arg("residuals"),
          py::arg("read"), py::arg("write"))
      .def(
          "decode",
          [](const EncodedBucket& b, const Tensors& encoded, const at::Tensor& bucket) {
            constexpr auto kCall = "EncodedBucket.decode";
            PYCOMM_USAGE(encoded.size() == static_cast<size_t>(b.world_size()), kCall, ": ",
                         encoded.size(), " encodings, expected one from each of ", b.world_size(),
                         " ranks");
            std::vector<const std::byte*> in;
            for (int owner = 0; owner < b.world_size(); ++owner) {
              in.push_back(bytes(kCall, "encoding", encoded[owner], b.bytes_for(owner)));
            }
            float* to = floats_to_write(kCall, "bucket", bucket, b.elements());
            const py::gil_scoped_release decoding;
            b.decode(in.data(), to);
          },
          py::arg("encoded"), py::arg("bucket"));
}

}  // namespace

void bind_codecs(py::module_& m) {
  m.def(
      "wire_bytes",
      [](const std::string& wire, size_t count) { return codec_of(wire).wire_bytes(count); },
      py::arg("wire"), py::arg("count"));
  m.def("encode", &encode, py::arg("wire"), py::arg("values"), py::arg("out") = py::none());
  m.def("decode", &decode, py::arg("wire"), py::arg("encoded"), py::arg("count"),
        py::arg("out") = py::none());
  m.def("encode_with_residual", &encode_residual, py::arg("wire"), py::arg("values"),
        py::arg("residual"), py::arg("out"));
  m.def("reduce_encoded", &reduce_encoded, py::arg("wire"), py::arg("target"), py::arg("sources"),
        py::arg("divisor") = 1);
  bind_bucket(m);
}

}  // namespace pycomm
