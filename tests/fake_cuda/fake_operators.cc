// SPDX-License-Identifier: MIT
// Operators of the fake GPU. Copies, fills and the arithmetic that optimizers and hooks do in place
// run on the current stream, later; everything else waits for the current stream, runs on the CPU
// and comes back.
#include <ATen/CPUFunctions.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/NativeFunctions.h>
#include <ATen/native/CPUFallback.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "fake_gpu.h"

namespace fake_gpu {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

// The memory of a tensor of the fake GPU as a tensor of the CPU: for work that runs on a stream,
// which must not hold the tensor itself. `bits` are the lazy conjugation and negation.
struct Memory {
  explicit Memory(const at::Tensor& t)
      : data(t.data_ptr()),
        sizes(t.sizes().vec()),
        strides(t.strides().vec()),
        dtype(t.scalar_type()),
        conj(t.is_conj()),
        neg(t.is_neg()) {}
  at::Tensor on_cpu() const {
    auto plain = at::from_blob(data, sizes, strides, at::TensorOptions().dtype(dtype));
    if (conj) plain._set_conj(true);
    if (neg) plain._set_neg(true);
    return plain;
  }
  void* data;
  std::vector<int64_t> sizes, strides;
  c10::ScalarType dtype;
  bool conj, neg;
};

bool is_fake(const at::Tensor& t) { return t.device().is_privateuseone(); }

at::Tensor empty(c10::IntArrayRef size, std::optional<c10::ScalarType> dtype,
                 std::optional<c10::Layout>, std::optional<c10::Device> at, std::optional<bool>,
                 std::optional<c10::MemoryFormat> format) {
  const c10::DeviceGuard guard(c10::device_or_default(at));
  return at::detail::empty_generic(size, c10::GetAllocator(c10::DeviceType::PrivateUse1), kKeys,
                                   c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<c10::ScalarType> dtype, std::optional<c10::Layout>,
                         std::optional<c10::Device> at, std::optional<bool>) {
  const c10::DeviceGuard guard(c10::device_or_default(at));
  return at::detail::empty_strided_generic(size, stride,
                                           c10::GetAllocator(c10::DeviceType::PrivateUse1), kKeys,
                                           c10::dtype_or_default(dtype));
}

// What the CPU gives is taken at once, as CUDA takes pageable memory; what it gets is there when
// this returns.
at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (to.numel() == 0) return to;
  if (is_fake(from) && is_fake(to)) {
    if (from.device() != to.device()) finish(from.device().index());
    launch(to.device().index(), [a = Memory(from.expand(to.sizes())), b = Memory(to)] {
      const c10::InferenceMode guard;
      b.on_cpu().copy_(a.on_cpu());
    });
  } else if (is_fake(to)) {
    launch(to.device().index(), [a = from.expand(to.sizes()).clone(), b = Memory(to)] {
      const c10::InferenceMode guard;
      b.on_cpu().copy_(a);
    });
  } else {
    finish(from.device().index());
    const_cast<at::Tensor&>(to).copy_(Memory(from).on_cpu());
  }
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (to.sizes() != from.sizes()) at::native::resize_(to, from.sizes());
  return copy_from(from, to, false);
}

at::Scalar local_scalar_dense(const at::Tensor& self) {
  finish(self.device().index());
  return Memory(self).on_cpu().item();
}

at::Tensor& fill(at::Tensor& self, const at::Scalar& value) {
  if (self.numel()) {
    launch(self.device().index(), [m = Memory(self), value] {
      const c10::InferenceMode guard;
      m.on_cpu().fill_(value);
    });
  }
  return self;
}
at::Tensor& zero(at::Tensor& self) { return fill(self, 0); }

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  at::native::cpu_fallback(op, stack);
}

// With another device's or a wrapped scalar's tensor the general way will do.
bool here(const at::Tensor& self, const at::Tensor& other) {
  return is_fake(other) && other.device() == self.device() &&
         (other.sizes() == self.sizes() || other.dim() == 0);
}

at::Tensor& add(at::Tensor& self, const at::Tensor& other, const at::Scalar& alpha) {
  const auto there = here(self, other) ? other : other.to(self.device());
  launch(self.device().index(), [a = Memory(self), b = Memory(there.expand(self.sizes())), alpha] {
    const c10::InferenceMode guard;
    a.on_cpu().add_(b.on_cpu(), alpha);
  });
  return self;
}

at::Tensor& mul(at::Tensor& self, const at::Tensor& other) {
  const auto there = here(self, other) ? other : other.to(self.device());
  launch(self.device().index(), [a = Memory(self), b = Memory(there.expand(self.sizes()))] {
    const c10::InferenceMode guard;
    a.on_cpu().mul_(b.on_cpu());
  });
  return self;
}

at::Tensor& div(at::Tensor& self, const at::Tensor& other) {
  const auto there = here(self, other) ? other : other.to(self.device());
  launch(self.device().index(), [a = Memory(self), b = Memory(there.expand(self.sizes()))] {
    const c10::InferenceMode guard;
    a.on_cpu().div_(b.on_cpu());
  });
  return self;
}

at::Tensor as_strided(const at::Tensor& self, c10::SymIntArrayRef size, c10::SymIntArrayRef stride,
                      std::optional<c10::SymInt> offset) {
  return at::cpu::as_strided_symint(self, size, stride, std::move(offset));
}
const at::Tensor& resize(const at::Tensor& self, c10::SymIntArrayRef size,
                         std::optional<at::MemoryFormat> format) {
  return at::native::resize_(self, C10_AS_INTARRAYREF_SLOW(size), format);
}
at::Tensor reshape_alias(const at::Tensor& self, c10::SymIntArrayRef size,
                         c10::SymIntArrayRef stride) {
  return at::native::_reshape_alias(self, C10_AS_INTARRAYREF_SLOW(size),
                                    C10_AS_INTARRAYREF_SLOW(stride));
}
at::Tensor view(const at::Tensor& self, c10::SymIntArrayRef size) {
  return at::native::view(self, C10_AS_INTARRAYREF_SLOW(size));
}
at::Tensor view_as_real(const at::Tensor& self) { return at::native::view_as_real(self); }
at::Tensor view_as_complex(const at::Tensor& self) { return at::native::view_as_complex(self); }
at::Tensor& set_tensor(at::Tensor& self, const at::Tensor& source) {
  return at::native::set_tensor_(self, source);
}
at::Tensor& set_storage(at::Tensor& self, at::Storage source) {
  return at::native::set_(self, std::move(source));
}
at::Tensor& set_storage_at(at::Tensor& self, at::Storage source, int64_t offset,
                           c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::cpu::set_(self, std::move(source), offset, size, stride);
}
void record_stream(at::Tensor& self, c10::Stream stream) {
  c10::impl::VirtualGuardImpl(self.device().type())
      .recordDataPtrOnStream(self.storage().data_ptr(), stream);
}

}  // namespace

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", as_strided);
  m.impl("resize_", resize);
  m.impl("_reshape_alias", reshape_alias);
  m.impl("view", view);
  m.impl("view_as_real", view_as_real);
  m.impl("view_as_complex", view_as_complex);
  m.impl("set_.source_Tensor", set_tensor);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_storage_at);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("_local_scalar_dense", local_scalar_dense);
  m.impl("fill_.Scalar", fill);
  m.impl("zero_", zero);
  m.impl("add_.Tensor", add);
  m.impl("mul_.Tensor", mul);
  m.impl("div_.Tensor", div);
  m.impl("record_stream", record_stream);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

}  // namespace fake_gpu
