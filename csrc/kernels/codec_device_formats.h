// SPDX-License-Identifier: MIT
// The wire formats as 32 lanes of a GPU handle 256 elements, a unit: who holds which element, how a
// block gets its scale, and what an element becomes. The arithmetic is that of codec_formats.h.
//
// A lane holds two quads, four elements each that lie side by side. kLanes of them share a block.
// In an unnamed namespace for the reason given in small_floats.h. Pure functions, any thread.
#pragma once

#include "kernels/codec_layout.h"
#include "kernels/device_formats.h"

namespace pycomm {
namespace {

constexpr int kUnitElements = 256;
constexpr int kUnitLanes = 32;

// How a block is encoded: its header, what elements are multiplied by, and whether its integers
// need float64 or its largest elements a second look.
struct BlockScale {
  uint32_t header;
  float power;
  bool care;
};

struct Bf16Unit {
  static constexpr int kLanes = 1;
  static constexpr int kBlock = kUnitElements;
  static constexpr int kHeaderBytes = 0;
  static constexpr int kBlockBytes = 2 * kUnitElements;
  static constexpr int kCodeBytes = 2;
  PYCOMM_KERNEL_INLINE static int element(int lane, int quad) { return 8 * lane + 4 * quad; }
  PYCOMM_KERNEL_INLINE static BlockScale prepare(uint32_t) { return {0, 1, false}; }
  template <class Env>
  PYCOMM_KERNEL_INLINE static uint32_t encode(const Env& env, const BlockScale&, float v) {
    return Bfloat16Element::narrow(env, v);
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static float decode(const Env&, uint32_t, uint32_t code) {
    return widen_bfloat16<float>(code);
  }
};

struct Fp16sUnit : Fp16sLayout {
  static constexpr int kLanes = kUnitLanes;
  static constexpr int kCodeBytes = 2;
  PYCOMM_KERNEL_INLINE static int element(int lane, int quad) { return 4 * lane + 128 * quad; }
  PYCOMM_KERNEL_INLINE static BlockScale prepare(uint32_t largest) {
    const bool beyond = largest >= kRoundsBeyondBits, finite = largest < kInfinityBits;
    constexpr uint32_t kSmallest = 254u - 14u;
    const uint32_t field = !beyond ? fp16s_field(largest) : finite ? 254u - kSmallest : 127u;
    return {(254u - field) << 7, power_of_field(field), beyond && finite};
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static uint32_t encode(const Env& env, const BlockScale& scale, float v) {
    const uint32_t code = HalfElement::narrow(env, v * scale.power);
    return scale.care && (code & 0x7fffu) == 0x7800u ? code - 1 : code;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static float decode(const Env& env, uint32_t header, uint32_t code) {
    return HalfElement::widen(env, static_cast<uint16_t>(code)) * widen_bfloat16<float>(header);
  }
};

template <class Layout>
struct IntegerUnit : Layout {
  static constexpr int kLargest = Layout::kLargest;
  static constexpr double kStepsPerUnit = 0x1p149;

  PYCOMM_KERNEL_INLINE static BlockScale prepare(uint32_t largest) {
    if (!needs_care<kLargest>(largest)) {
      const IntegerScale found = integer_scale<kLargest>(largest);
      return {__builtin_bit_cast(uint32_t, found.scale), found.inverse, false};
    }
    uint32_t bits = kNanBits;
    if (largest < kInfinityBits) {
      const double steps = double{__builtin_bit_cast(float, largest)} * kStepsPerUnit;
      bits = (static_cast<uint32_t>(steps) + kLargest - 1) / kLargest;
    }
    return {bits, 0, true};
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static uint32_t encode(const Env&, const BlockScale& scale, float v) {
    if (!scale.care) {
      constexpr float kUnits = 0x1.8p23f;
      return __builtin_bit_cast(uint32_t, v* scale.power + kUnits) & Layout::kMask;
    }
    if (scale.header == kNanBits) return 0;
    constexpr double kUnits = 0x1.8p52;
    const double inverse = scale.header ? kStepsPerUnit / scale.header : 0.0;
    const double whole = double{v} * inverse + kUnits;
    return static_cast<uint32_t>(static_cast<int>(whole - kUnits)) & Layout::kMask;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE static float decode(const Env&, uint32_t header, uint32_t code) {
    constexpr uint32_t kSign = (Layout::kMask + 1) / 2;
    const int whole = static_cast<int>(code ^ kSign) - static_cast<int>(kSign);
    return static_cast<float>(whole) * __builtin_bit_cast(float, header);
  }
};

struct Int8Lanes : Int8Layout {
  static constexpr int kLanes = kUnitLanes;
  static constexpr int kCodeBytes = 1;
  static constexpr uint32_t kMask = 255;
  PYCOMM_KERNEL_INLINE static int element(int lane, int quad) { return 4 * lane + 128 * quad; }
};
// Four blocks in a unit; the second quad's codes are the high halves of the first quad's bytes.
struct Int4Lanes : Int4Layout {
  static constexpr int kLanes = 8;
  static constexpr int kCodeBytes = 1;
  static constexpr uint32_t kMask = 15;
  PYCOMM_KERNEL_INLINE static int element(int lane, int quad) {
    return 64 * (lane / 8) + 4 * (lane % 8) + 32 * quad;
  }
};
using Int8Unit = IntegerUnit<Int8Lanes>;
using Int4Unit = IntegerUnit<Int4Lanes>;

template <class Format>
inline constexpr bool kHalvesBytes = std::is_same_v<Format, Int4Unit>;
template <class Format>
inline constexpr size_t kUnitBytes =
    size_t{kUnitElements} / Format::kBlock * static_cast<size_t>(Format::kBlockBytes);

}  // namespace
}  // namespace pycomm
