// Makes the table of kernels of one instruction set from its vector type. Only the files of isa/
// include this, each after it has said for which processor the bodies are compiled.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "kernels/attention.h"
#include "kernels/dot_float.h"
#include "kernels/dot_int4.h"
#include "kernels/dot_wide.h"
#include "kernels/elementwise.h"
#include "kernels/kernels.h"
#include "kernels/pack_activations.h"

namespace glimmer {

// Calls dot(first, S) for all strips, S of them at a time, and what is left one by one.
template <int S, class Dot>
static void for_strips(int strips, const Dot& dot) {
  int s = 0;
  if constexpr (S > 1) {
    for (; s + S <= strips; s += S) dot(s, std::integral_constant<int, S>());
  }
  for (; s < strips; ++s) dot(s, std::integral_constant<int, 1>());
}

template <class V, class Block, int T>
static void dot_int4_strips(const uint8_t* w, size_t strip_bytes, int strips, const void* tile,
                            int k, float* c, size_t ldc) {
  const auto* const a = static_cast<const Int8Tile<T>*>(tile);
  for_strips<V::strips_at_once(T)>(strips, [&]<int S>(int s, std::integral_constant<int, S>) {
    dot_int4<V, Block, T, S>(w + s * strip_bytes, strip_bytes, a, k / kGroup, c + s * kStripRows,
                             ldc);
  });
}

template <class V, class Block, int T>
static void dot_wide_strips(const uint8_t* w, size_t strip_bytes, int strips, const void* tile,
                            int k, float* c, size_t ldc) {
  const auto* const a = static_cast<const Int16Tile<T>*>(tile);
  for_strips<V::strips_at_once(T)>(strips, [&]<int S>(int s, std::integral_constant<int, S>) {
    dot_wide<V, Block, T, S>(w + s * strip_bytes, strip_bytes, a, k / kGroup, c + s * kStripRows,
                             ldc);
  });
}

template <class V, class Load, int T>
static void dot_float_strips(const uint8_t* w, size_t strip_bytes, int strips, const void* tile,
                             int k, float* c, size_t ldc) {
  const float* const a = static_cast<const float*>(tile);
  constexpr int kAtOnce = T == 1 ? 4 : T == 2 ? 2 : 1;
  for_strips<kAtOnce>(strips, [&]<int S>(int s, std::integral_constant<int, S>) {
    dot_float<V, Load, T, S>(w + s * strip_bytes, strip_bytes, a, k, c + s * kStripRows, ldc);
  });
}

template <class V, int T>
static void pack_int8_lane(const float* x, int k, int lane, void* tile) {
  pack_int8<V, T>(x, k / kGroup, lane, static_cast<Int8Tile<T>*>(tile));
}

template <class V, int T>
static void pack_int16_lane(const float* x, int k, int lane, void* tile) {
  pack_int16<V, T>(x, k / kGroup, lane, static_cast<Int16Tile<T>*>(tile));
}

template <int T>
static void pack_float_lane(const float* x, int k, int lane, void* tile) {
  float* out = static_cast<float*>(tile) + lane;
  for (int i = 0; i < k; ++i) out[static_cast<size_t>(i) * T] = x[i];
}

template <class V, class Wide, int... I>
static constexpr Kernels make_kernels(std::integer_sequence<int, I...>) {
  Kernels kernels{
      .dot = {},
      .pack = {{pack_float_lane<I + 1>...},
               {pack_int8_lane<V, I + 1>...},
               {pack_int16_lane<V, I + 1>...}},
      .rms_norm = rms_norm<V>,
      .layer_norm = layer_norm<V>,
      .swiglu = swiglu<V>,
      .gelu_tanh = gelu_tanh<V>,
      .exp_shifted = exp_shifted<V>,
      .to_half = to_half<V>,
      .quantize_row = quantize_row<V>,
      .attend_split = {attend_split<Wide, float>, attend_split<Wide, uint16_t>,
                       attend_split<Wide, int8_t>},
      .merge_split = merge_split<V>,
  };
  const auto set = [&](DType dtype, Form form, std::initializer_list<Kernels::Dot> dots) {
    std::copy(dots.begin(), dots.end(), kernels.dot[index(dtype)][index(form)]);
  };
  set(DType::kF32, Form::kFloat, {dot_float_strips<Wide, LoadFloat, I + 1>...});
  set(DType::kF16, Form::kFloat, {dot_float_strips<Wide, LoadHalf, I + 1>...});
  set(DType::kBF16, Form::kFloat, {dot_float_strips<Wide, LoadBfloat, I + 1>...});
  set(DType::kQ8_0, Form::kInt16, {dot_wide_strips<Wide, Int8Block, I + 1>...});
  set(DType::kQ4_0, Form::kInt8, {dot_int4_strips<Wide, Int4Block, I + 1>...});
  set(DType::kQ4_0, Form::kInt16, {dot_wide_strips<Wide, Int4Block, I + 1>...});
  set(DType::kQ4_1, Form::kInt8, {dot_int4_strips<Wide, Int4MinBlock, I + 1>...});
  set(DType::kQ4_1, Form::kInt16, {dot_wide_strips<Wide, Int4MinBlock, I + 1>...});
  set(DType::kQ5_0, Form::kInt16, {dot_wide_strips<Wide, Int8Block, I + 1>...});
  set(DType::kQ5_1, Form::kInt16, {dot_wide_strips<Wide, Int8ScaledBlock, I + 1>...});
  set(DType::kQ4K, Form::kInt8, {dot_int4_strips<Wide, Int4ScaledBlock, I + 1>...});
  set(DType::kQ4K, Form::kInt16, {dot_wide_strips<Wide, Int4ScaledBlock, I + 1>...});
  set(DType::kQ5K, Form::kInt16, {dot_wide_strips<Wide, Int8ScaledBlock, I + 1>...});
  set(DType::kQ6K, Form::kInt16, {dot_wide_strips<Wide, Int8ScaledBlock, I + 1>...});
  return kernels;
}

// V is the vector of eight for elementwise work, Wide the one of products and attention.
template <class V, class Wide = V>
static constexpr Kernels make_kernels() {
  return make_kernels<V, Wide>(std::make_integer_sequence<int, kMaxTile>());
}

}  // namespace glimmer
