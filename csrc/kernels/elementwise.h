// Norms and activations over rows of float32. Sums run in fixed lanes: element i goes to lane i
// % 32.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

namespace glimmer {

// exp(x) to about 1 unit in the last place, for x clamped to [-87, 88] (Cephes' expf).
template <class V>
static inline typename V::F exp(typename V::F x) {
  x = V::min(V::max(x, V::set(-87.0f)), V::set(88.0f));
  const typename V::F n = V::round(V::mul(x, V::set(1.44269504088896341f)));
  typename V::F r = V::fma(n, V::set(-0.693359375f), x);
  r = V::fma(n, V::set(2.12194440e-4f), r);
  typename V::F p = V::set(1.9875691500e-4f);
  p = V::fma(p, r, V::set(1.3981999507e-3f));
  p = V::fma(p, r, V::set(8.3334519073e-3f));
  p = V::fma(p, r, V::set(4.1665795894e-2f));
  p = V::fma(p, r, V::set(1.6666665459e-1f));
  p = V::fma(p, r, V::set(5.0000001201e-1f));
  p = V::fma(p, V::mul(r, r), V::add(r, V::set(1.0f)));
  return V::mul(p, V::exp2_int(n));
}

// 2^x to about 1 unit in the last place, for x in [-126, 127]; what is less counts as -126, NaN
// stays NaN. The polynomial is the minimax one of degree 5 for 2^r, |r| <= 1/2.
template <class V>
static inline typename V::F exp2(typename V::F x) {
  x = V::max(V::set(-126.0f), x);
  // Adding it rounds to a whole number, which is then in the lowest bits.
  const typename V::F rounder = V::set(12582912.0f);
  const typename V::F rounded = V::add(x, rounder);
  const typename V::F r = V::sub(x, V::sub(rounded, rounder));
  typename V::F p = V::set(1.3276472454890609e-3f);
  p = V::fma(p, r, V::set(9.675541892647743e-3f));
  p = V::fma(p, r, V::set(5.550713092088699e-2f));
  p = V::fma(p, r, V::set(2.4022120237350464e-1f));
  p = V::fma(p, r, V::set(6.931469440460205e-1f));
  p = V::fma(p, r, V::set(1.0f));
  return V::add_to_exponent(p, rounded);
}

// out = weight * (x / sqrt(mean(x^2) + eps)); x, weight and out are [n]. out may be x.
template <class V>
static void rms_norm(const float* x, const float* weight, int n, float eps, float* out) {
  typename V::F acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int i = 0;
  for (; i + 32 <= n; i += 32) {
    GLIMMER_UNROLL
    for (int j = 0; j < 4; ++j) {
      const typename V::F v = V::load(x + i + 8 * j);
      acc[j] = V::fma(v, v, acc[j]);
    }
  }
  for (int j = 0; i < n; i += 8, ++j) {
    const typename V::F v = V::load_part(x + i, n - i);
    acc[j] = V::fma(v, v, acc[j]);
  }
  const float sum = V::sum(V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
  const typename V::F scale = V::set(1.0f / std::sqrt(sum / static_cast<float>(n) + eps));
  for (i = 0; i + 8 <= n; i += 8) {
    V::store(out + i, V::mul(V::load(weight + i), V::mul(V::load(x + i), scale)));
  }
  if (i < n) {
    V::store_part(
        out + i, n - i,
        V::mul(V::load_part(weight + i, n - i), V::mul(V::load_part(x + i, n - i), scale)));
  }
}

// out = weight * (x - mean) / sqrt(mean((x - mean)^2) + eps) + bias; all [n]. out may be x.
template <class V>
static void layer_norm(const float* x, const float* weight, const float* bias, int n, float eps,
                       float* out) {
  typename V::F acc[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  for (int i = 0; i < n; i += 8) {
    acc[i / 8 % 4] = V::add(acc[i / 8 % 4], V::load_part(x + i, n - i));
  }
  const float sum = V::sum(V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
  const typename V::F mean = V::set(sum / static_cast<float>(n));
  for (typename V::F& a : acc) a = V::zero();
  for (int i = 0; i < n; i += 8) {
    alignas(32) float part[8] = {};  // what lies beyond n adds nothing
    V::store_part(part, n - i, V::sub(V::load_part(x + i, n - i), mean));
    const typename V::F v = V::load(part);
    acc[i / 8 % 4] = V::fma(v, v, acc[i / 8 % 4]);
  }
  const float squares = V::sum(V::add(V::add(acc[0], acc[1]), V::add(acc[2], acc[3])));
  const typename V::F scale = V::set(1.0f / std::sqrt(squares / static_cast<float>(n) + eps));
  for (int i = 0; i < n; i += 8) {
    const typename V::F v = V::mul(V::sub(V::load_part(x + i, n - i), mean), scale);
    V::store_part(out + i, n - i,
                  V::fma(V::load_part(weight + i, n - i), v, V::load_part(bias + i, n - i)));
  }
}

template <class V>
static inline typename V::F silu_times(typename V::F gate, typename V::F up) {
  const typename V::F e = exp<V>(V::sub(V::zero(), gate));
  return V::mul(V::div(gate, V::add(V::set(1.0f), e)), up);
}

// out = gate / (1 + exp(-gate)) * up; all [n].
template <class V>
static void swiglu(const float* gate, const float* up, int n, float* out) {
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    V::store(out + i, silu_times<V>(V::load(gate + i), V::load(up + i)));
  }
  if (i < n) {
    V::store_part(out + i, n - i,
                  silu_times<V>(V::load_part(gate + i, n - i), V::load_part(up + i, n - i)));
  }
}

// x / 2 * (1 + tanh(u)) = x / (1 + exp(-2 u)), u = 0.7978845608 (x + 0.044715 x^3).
template <class V>
static inline typename V::F gelu_tanh_of(typename V::F x) {
  const typename V::F inner = V::fma(V::mul(x, x), V::set(0.044715f), V::set(1.0f));
  const typename V::F e = exp<V>(V::mul(V::mul(x, V::set(-2 * 0.7978845608f)), inner));
  return V::div(x, V::add(V::set(1.0f), e));
}

// out = gelu(x) in its tanh form; both [n].
template <class V>
static void gelu_tanh(const float* x, int n, float* out) {
  int i = 0;
  for (; i + 8 <= n; i += 8) V::store(out + i, gelu_tanh_of<V>(V::load(x + i)));
  if (i < n) V::store_part(out + i, n - i, gelu_tanh_of<V>(V::load_part(x + i, n - i)));
}

// x[i] = exp(x[i] - shift); returns the sum of the results.
template <class V>
static float exp_shifted(float* x, int n, float shift) {
  typename V::F acc = V::zero();
  int i = 0;
  for (; i + 8 <= n; i += 8) {
    const typename V::F e = exp<V>(V::sub(V::load(x + i), V::set(shift)));
    V::store(x + i, e);
    acc = V::add(acc, e);
  }
  if (i < n) {
    const typename V::F e = exp<V>(V::sub(V::load_part(x + i, n - i), V::set(shift)));
    V::store_part(x + i, n - i, e);
    acc = V::add(acc, V::load_part(x + i, n - i));
  }
  return V::sum(acc);
}

// float16 of x, [n] with n a multiple of 8. What exceeds float16 is held at its largest value: an
// infinity in a page would turn the zero weight of a masked key into NaN. NaN stays NaN, to be
// found in the logits: the order of operands below sees to it.
template <class V>
static void to_half(const float* x, int n, uint16_t* out) {
  const typename V::F limit = V::set(65504.0f);
  for (int i = 0; i < n; i += 8) {
    V::store_half(out + i, V::max(V::sub(V::zero(), limit), V::min(limit, V::load(x + i))));
  }
}

}  // namespace glimmer
