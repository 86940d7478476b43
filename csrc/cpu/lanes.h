// Sixteen lanes of 32 bits, whatever the machine has: the register of the matrix products.
//
// With AVX-512 a value of these types is one register; without, the compiler splits it, which is slower and
// just as right.
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

// acc[lane] += the four unsigned bytes of `values` in this lane . the four signed bytes of `weights`. The
// instruction itself, because with the intrinsic GCC 12 copies every accumulator in every turn of a loop.
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

// The sum of all lanes, in one order on every machine.
DUALSCALE_INLINE float sum_of(Floats v) {
  float half[kWide];
  std::memcpy(half, &v, sizeof v);
#pragma GCC unroll 4
  for (int64_t width = kWide / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) {
      half[i] += half[i + width];
    }
  }
  return half[0];
}

}  // namespace dualscale::cpu
