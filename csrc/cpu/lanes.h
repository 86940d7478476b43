// Sixteen lanes of 32 bits, whatever the machine has: the register of the
// matrix products.
//
// With AVX-512 a value of these types is one register; without, the compiler
// splits it, which is slower and just as right.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "cpu/vector_math.h"

namespace dualscale::cpu {

constexpr int64_t kWide = 16;
typedef float Floats __attribute__((vector_size(kWide * 4)));
typedef int32_t Ints __attribute__((vector_size(kWide * 4)));
typedef uint8_t Bytes __attribute__((vector_size(kWide * 4)));
typedef int8_t Codes16 __attribute__((vector_size(kWide)));

template <typename Vector>
DUALSCALE_INLINE Vector load(const void* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

// The first `bytes` bytes, at most all, and zeros.
template <typename Vector>
DUALSCALE_INLINE Vector load_part(const void* from, int64_t bytes) {
  Vector v{};
  std::memcpy(&v, from, static_cast<size_t>(bytes < int64_t{sizeof v} ? bytes : int64_t{sizeof v}));
  return v;
}

DUALSCALE_INLINE Floats multiply_add(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
  return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#else
  Floats out;
  for (int64_t i = 0; i < kWide; i += kLanes) {
    Vec parts[3];
    std::memcpy(&parts[0], reinterpret_cast<const float*>(&a) + i, sizeof(Vec));
    std::memcpy(&parts[1], reinterpret_cast<const float*>(&b) + i, sizeof(Vec));
    std::memcpy(&parts[2], reinterpret_cast<const float*>(&c) + i, sizeof(Vec));
    const Vec sum = fma_of(parts[0], parts[1], parts[2]);
    std::memcpy(reinterpret_cast<float*>(&out) + i, &sum, sizeof(Vec));
  }
  return out;
#endif
}

// acc[lane] += the four unsigned bytes of `values` in this lane . the four
// signed bytes of `weights`. The instruction itself, because with the intrinsic
// GCC 12 copies every accumulator in every turn of a loop.
DUALSCALE_INLINE void dot_bytes(Ints& acc, Bytes values, Bytes weights) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(values), "v"(weights));
#else
  for (int64_t lane = 0; lane < kWide; ++lane) {
    for (int64_t i = 4 * lane; i < 4 * lane + 4; ++i) {
      acc[lane] += static_cast<int32_t>(values[i]) * static_cast<int8_t>(weights[i]);
    }
  }
#endif
}

// table[index & 15] in every lane.
DUALSCALE_INLINE Floats look_up(Ints index, Floats table) {
#if defined(__AVX512F__)
  return (Floats)_mm512_permutexvar_ps((__m512i)index, (__m512)table);
#else
  Floats out;
  for (int64_t lane = 0; lane < kWide; ++lane) {
    out[lane] = table[index[lane] & 15];
  }
  return out;
#endif
}

// Rows of weights that are fetched ahead of their use. A row is too short for the machine to see that the
// next one follows: without this a single row of activations takes 1.3 to 2 times as long.
constexpr int64_t kAhead = 8;
DUALSCALE_INLINE void prefetch(const void* at) { __builtin_prefetch(at); }

// Sixteen codes as fp32.
DUALSCALE_INLINE Floats widen(Codes16 codes) {
#if defined(__AVX512F__)
  return (Floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)codes));
#else
  Floats out;
  for (int64_t lane = 0; lane < kWide; ++lane) {
    out[lane] = static_cast<float>(codes[lane]);
  }
  return out;
#endif
}

// Holds a value in a register: GCC 12 otherwise reads it again from memory at
// every use.
DUALSCALE_INLINE void pin(Floats& v) {
#if defined(__AVX512F__)
  asm("" : "+v"(v));
#endif
}

// sums[i] = the sum of all lanes of v[i], in one order on every machine.
DUALSCALE_INLINE void sum_four(const Floats* v, float* sums) {
#if defined(__AVX512DQ__)
  const __m512 a = (__m512)v[0], b = (__m512)v[1], c = (__m512)v[2], d = (__m512)v[3];
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 low = _mm512_shuffle_ps(ab, cd, 0x44), high = _mm512_shuffle_ps(ab, cd, 0xee);
  const __m512 all = _mm512_add_ps(low, high);
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
  _mm_storeu_ps(sums, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#else
  for (int64_t i = 0; i < 4; ++i) {
    float part[4][4];
    for (int64_t lane = 0; lane < kWide; ++lane) {
      part[lane / 4][lane % 4] = v[i][lane];
    }
    float column[4];
    for (int64_t q = 0; q < 4; ++q) {
      column[q] = (part[q][0] + part[q][2]) + (part[q][1] + part[q][3]);
    }
    sums[i] = (column[0] + column[2]) + (column[1] + column[3]);
  }
#endif
}

}  // namespace dualscale::cpu
