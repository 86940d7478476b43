// Elementary functions that vectorise: straight-line fp32 code without calls, for use in simd loops.
//
// Largest errors against fp64 in units in the last place: exp 1.0, silu 2.3, softplus 1.9, wherever the
// result is normal. NaN stays NaN, infinities have their limits.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "code.h"

namespace dualscale::cpu {

#define DUALSCALE_INLINE inline __attribute__((always_inline))

DUALSCALE_INLINE uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

DUALSCALE_INLINE float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

DUALSCALE_INLINE float fma_of(float a, float b, float c) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// As many fp32 lanes as one register has.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef int32_t IntVec __attribute__((vector_size(kLanes * 4)));

DUALSCALE_INLINE Vec fma_of(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

DUALSCALE_INLINE Vec load_vec(const float* from) {
  Vec v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// x - 0 is x for every x, so that this is one instruction; 0 + x would not be for -0.
DUALSCALE_INLINE Vec broadcast(float x) { return x - Vec{}; }

DUALSCALE_INLINE void store_vec(float* to, Vec v) { std::memcpy(to, &v, sizeof v); }

// Keeps what was loaded in its register: GCC would load it again for each of its uses.
DUALSCALE_INLINE void hold([[maybe_unused]] Vec& v) {
#if defined(__AVX2__)
  asm("" : "+v"(v));
#endif
}

// to[i] += scale[i] times the sum over all lanes of rows[i]. The rows are folded into one register, a quarter
// of whose lanes belongs to each.
DUALSCALE_INLINE void add_sums(const Vec (&rows)[4], const float* scale, float* to) {
#if defined(__AVX512F__)
  const __m512 ab = _mm512_unpacklo_ps(rows[0], rows[1]) + _mm512_unpackhi_ps(rows[0], rows[1]);
  const __m512 cd = _mm512_unpacklo_ps(rows[2], rows[3]) + _mm512_unpackhi_ps(rows[2], rows[3]);
  const __m512 all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 half =
      _mm512_castps512_ps256(all) + _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1));
#elif defined(__AVX2__)
  const __m256 ab = _mm256_unpacklo_ps(rows[0], rows[1]) + _mm256_unpackhi_ps(rows[0], rows[1]);
  const __m256 cd = _mm256_unpacklo_ps(rows[2], rows[3]) + _mm256_unpackhi_ps(rows[2], rows[3]);
  const __m256 half = _mm256_shuffle_ps(ab, cd, 0x44) + _mm256_shuffle_ps(ab, cd, 0xee);
#endif
#if defined(__AVX2__)
  const __m128 sums = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
  _mm_storeu_ps(to, _mm_loadu_ps(to) + _mm_loadu_ps(scale) * sums);
#else
  for (int i = 0; i < 4; ++i) {
    to[i] += scale[i] * ((rows[i][0] + rows[i][2]) + (rows[i][1] + rows[i][3]));
  }
#endif
}

constexpr float kLog2E = 1.44269504f;
// Adding and subtracting 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
constexpr float kRounder = 12582912.0f;

// 2^r for |r| <= 1/2: minimax fit, relative error 2e-9 before rounding.
DUALSCALE_INLINE Vec exp2_fraction(Vec r) {
  Vec p = broadcast(1.5353362e-4f);
  p = fma_of(p, r, broadcast(1.3398875e-3f));
  p = fma_of(p, r, broadcast(9.6184369e-3f));
  p = fma_of(p, r, broadcast(5.5503324e-2f));
  p = fma_of(p, r, broadcast(2.4022648e-1f));
  p = fma_of(p, r, broadcast(6.9314718e-1f));
  return fma_of(p, r, broadcast(1.0f));
}

// 2^y for y <= 127, where anything below 2^-126 may become 2^-126: for decays, that is nothing. NaN stays.
DUALSCALE_INLINE Vec exp2_decay(Vec y) {
#if defined(__AVX512F__)
  y = _mm512_max_ps(_mm512_set1_ps(-160.0f), y);  // in this order a NaN stays
  const Vec whole = _mm512_roundscale_ps(y, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm512_scalef_ps(exp2_fraction(y - whole), whole);
#else
  y = y < -126.0f ? broadcast(-126.0f) : y;  // in this order a NaN stays
  const Vec rounded = y + kRounder;
  const Vec p = exp2_fraction(y - (rounded - kRounder));
  return (Vec)((IntVec)p + ((IntVec)rounded << 23));
#endif
}

// e^x, with subnormal results and infinity.
DUALSCALE_INLINE float exp_of(float x) {
  x = x < -104.0f ? -104.0f : x;
  x = x > 89.0f ? 89.0f : x;
  const float rounded = fma_of(x, kLog2E, kRounder);
  const float n = rounded - kRounder;
  float r = fma_of(n, -0.693145752f, x);  // ln 2 in two parts, the first short enough for an exact product
  r = fma_of(n, -1.42860677e-6f, r);
  float p = 1.3814602e-3f;  // e^r = 1 + r + r^2 p for |r| <= ln 2 / 2: minimax fit, relative error 3e-9
  p = fma_of(p, r, 8.3687156e-3f);
  p = fma_of(p, r, 4.1668389e-2f);
  p = fma_of(p, r, 1.6666521e-1f);
  p = fma_of(p, r, 4.9999994e-1f);
  p = fma_of(p, r * r, r) + 1.0f;
  // 2^n in two factors: n reaches from -150 to 128, the exponent field only from -126 to 127.
  const int32_t whole = static_cast<int32_t>(bits_of(rounded) - bits_of(kRounder));
  const int32_t half = whole >> 1;
  const float low = float_of(static_cast<uint32_t>(half + 127) << 23);
  const float high = float_of(static_cast<uint32_t>(whole - half + 127) << 23);
  return p * low * high;
}

// x * sigmoid(x).
DUALSCALE_INLINE float silu_of(float x) { return x / (1.0f + exp_of(-x)); }

// Natural logarithm of a normal number >= 1.
DUALSCALE_INLINE float log_of(float x) {
  // x = 2^n * m with m in [sqrt(1/2), sqrt(2)).
  const uint32_t shifted = bits_of(x) - 0x3f3504f3u;
  const float n = static_cast<float>(static_cast<int32_t>(shifted) >> 23);
  const float f = float_of((shifted & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
  float p = 7.0376836292e-2f;
  p = fma_of(p, f, -1.1514610310e-1f);
  p = fma_of(p, f, 1.1676998740e-1f);
  p = fma_of(p, f, -1.2420140846e-1f);
  p = fma_of(p, f, 1.4249322787e-1f);
  p = fma_of(p, f, -1.6668057665e-1f);
  p = fma_of(p, f, 2.0000714765e-1f);
  p = fma_of(p, f, -2.4999993993e-1f);
  p = fma_of(p, f, 3.3333331174e-1f);
  const float square = f * f;
  float tail = fma_of(p * f, square, n * -2.12194440e-4f);
  tail = fma_of(square, -0.5f, tail);
  return fma_of(n, 0.693359375f, f + tail);
}

// log(1 + e^x), and x itself above 20, as in PyTorch.
DUALSCALE_INLINE float softplus_of(float x) {
  const float e = exp_of(x > 20.0f ? 20.0f : x);
  const float u = 1.0f + e;
  // What rounding took from u comes back to first order.
  const float y = log_of(u) + (e - (u - 1.0f)) / u;
  return x > 20.0f ? x : y;
}

}  // namespace dualscale::cpu
