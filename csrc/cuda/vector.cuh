// Device side: several neighbouring channels at once, as bytes in registers and as fp32.
//
// Conversions between codes and fp32 avoid the conversion instructions, which run at an eighth of the rate of
// additions: a byte is put into the mantissa of 2^23, an integer is read off the mantissa of 1.5 * 2^23.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "code.h"

namespace dualscale {

constexpr float kLog2e = 1.4426950408889634f;
constexpr float kLn2 = 0.6931471805599453f;
constexpr float kByteBias = 8388736.0f;      // 2^23 + 128
constexpr float kIntegerBias = 12582912.0f;  // 1.5 * 2^23

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float fma_saturated(float a, float b, float c) {
  float y;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(y) : "f"(a), "f"(b), "f"(c));
  return y;
}

__device__ __forceinline__ float silu(float x) {
  return x * reciprocal_approx(1.0f + exp2_approx(-kLog2e * x));
}

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(int8_t q) { return static_cast<float>(q); }

template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (sizeof(T) == 4) {
    return x;
  } else if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(x);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(x);
  } else {
    return static_cast<int8_t>(__float2int_rn(x));
  }
}

// V neighbouring elements as they lie in memory.
template <class T, int V>
struct Raw {
  static constexpr int kWords = V * sizeof(T) / 4;
  static constexpr int kAlignment = V * sizeof(T) < 16 ? V * sizeof(T) : 16;
  uint32_t word[kWords];

  __device__ __forceinline__ T get(int i) const {
    const uint32_t w = word[i * sizeof(T) / 4] >> (i * sizeof(T) % 4 * 8);
    T value;
    memcpy(&value, &w, sizeof(T));
    return value;
  }
};

// `valid` counts the elements that exist; without `aligned` they are fetched one by one.
template <class T, int V>
__device__ __forceinline__ Raw<T, V> load_raw(const T* p, bool aligned, int valid) {
  Raw<T, V> raw;
  if (aligned && valid >= V) {
    if constexpr (V * sizeof(T) >= 16) {
#pragma unroll
      for (int i = 0; i < Raw<T, V>::kWords / 4; ++i) {
        const uint4 four = reinterpret_cast<const uint4*>(p)[i];
        raw.word[4 * i] = four.x;
        raw.word[4 * i + 1] = four.y;
        raw.word[4 * i + 2] = four.z;
        raw.word[4 * i + 3] = four.w;
      }
    } else if constexpr (V * sizeof(T) == 8) {
      const uint2 two = *reinterpret_cast<const uint2*>(p);
      raw.word[0] = two.x;
      raw.word[1] = two.y;
    } else {
      raw.word[0] = *reinterpret_cast<const uint32_t*>(p);
    }
    return raw;
  }
#pragma unroll
  for (int i = 0; i < Raw<T, V>::kWords; ++i) {
    raw.word[i] = 0;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < valid) {
      uint32_t bits = 0;
      memcpy(&bits, p + i, sizeof(T));
      raw.word[i * sizeof(T) / 4] |= bits << (i * sizeof(T) % 4 * 8);
    }
  }
  return raw;
}

template <class T, int V>
__device__ __forceinline__ void store_raw(T* p, const Raw<T, V>& raw, bool aligned, int valid) {
  if (aligned && valid >= V) {
    if constexpr (V * sizeof(T) >= 16) {
#pragma unroll
      for (int i = 0; i < Raw<T, V>::kWords / 4; ++i) {
        reinterpret_cast<uint4*>(p)[i] =
            make_uint4(raw.word[4 * i], raw.word[4 * i + 1], raw.word[4 * i + 2], raw.word[4 * i + 3]);
      }
    } else if constexpr (V * sizeof(T) == 8) {
      *reinterpret_cast<uint2*>(p) = make_uint2(raw.word[0], raw.word[1]);
    } else {
      *reinterpret_cast<uint32_t*>(p) = raw.word[0];
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if (i < valid) {
      p[i] = raw.get(i);
    }
  }
}

// 2^23 + 128 + q for the i-th of four codes in a word whose sign bits were flipped (word ^ 0x80808080).
__device__ __forceinline__ float biased_byte(uint32_t flipped, int i) {
  return __uint_as_float(__byte_perm(flipped, 0x4b000000u, 0x7650 + i));
}

// 1.5 * 2^23 + q for the i-th of four codes in a word: a dot product that takes one of them and adds the
// rest.
__device__ __forceinline__ float biased_code(uint32_t word, int i) {
  return __int_as_float(__dp4a(static_cast<int>(word), 1 << (8 * i), __float_as_int(kIntegerBias)));
}

// Floating point values, or codes as floats.
template <class T, int V>
__device__ __forceinline__ void unpack(const Raw<T, V>& raw, float (&x)[V]) {
#pragma unroll
  for (int i = 0; i < V; ++i) {
    if constexpr (sizeof(T) == 1) {
      x[i] = biased_byte(raw.word[i / 4] ^ 0x80808080u, i % 4) - kByteBias;
    } else {
      x[i] = to_float(raw.get(i));
    }
  }
}

// Low bytes of four words.
__device__ __forceinline__ uint32_t pack_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
  return __byte_perm(__byte_perm(a, b, 0x0040), __byte_perm(c, d, 0x0040), 0x5410);
}

// Four numbers as bytes, the first lowest: rounded to the nearest integer (ties to even) or, unless kNearest,
// toward zero, and saturated. NaN is 0. From Hopper on a pair of conversions and the packing of both is one
// instruction, which issues like a minimum; elsewhere numbers to be truncated must be integers.
template <bool kNearest>
__device__ __forceinline__ uint32_t pack_numbers(float a, float b, float c, float d) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  const auto integer = [](float x) {
    int i;
    if constexpr (kNearest) {
      asm("cvt.rni.s32.f32 %0, %1;" : "=r"(i) : "f"(x));
    } else {
      asm("cvt.rzi.s32.f32 %0, %1;" : "=r"(i) : "f"(x));
    }
    return i;
  };
  uint32_t high, packed;
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, 0;" : "=r"(high) : "r"(integer(d)), "r"(integer(c)));
  asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(packed) : "r"(integer(b)), "r"(integer(a)), "r"(high));
  return packed;
#else
  const auto bits = [](float x) {
    return __float_as_uint(fminf(fmaxf(x == x ? x : 0.0f, -128.0f), 127.0f) + kIntegerBias);
  };
  return pack_bytes(bits(a), bits(b), bits(c), bits(d));
#endif
}

// What packing makes round_half_away(t) of by leaving out the fraction, |t| < 2^22: a sum rounded toward zero
// does not reach the next integer.
__device__ __forceinline__ float before_packing(float t) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return __fadd_rz(t, copysignf(0.5f, t));
#else
  return round_half_away(t);
#endif
}

// The larger of two numbers; NaN stays.
__device__ __forceinline__ float max_or_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// Floating point values to T; codes are given as integers in fp32, or before_packing.
template <class T, int V>
__device__ __forceinline__ Raw<T, V> pack(const float (&x)[V]) {
  Raw<T, V> raw;
#pragma unroll
  for (int i = 0; i < Raw<T, V>::kWords; ++i) {
    if constexpr (sizeof(T) == 1) {
      raw.word[i] = pack_numbers<false>(x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]);
    } else if constexpr (sizeof(T) == 2) {
      const T pair[2] = {from_float<T>(x[2 * i]), from_float<T>(x[2 * i + 1])};
      memcpy(&raw.word[i], pair, 4);
    } else {
      raw.word[i] = __float_as_uint(x[i]);
    }
  }
  return raw;
}

// Codes to the nearest integer.
__device__ __forceinline__ Raw<int8_t, 8> pack_nearest(const float (&x)[8]) {
  Raw<int8_t, 8> raw;
  raw.word[0] = pack_numbers<true>(x[0], x[1], x[2], x[3]);
  raw.word[1] = pack_numbers<true>(x[4], x[5], x[6], x[7]);
  return raw;
}

// Decoding where an fp32 rounding more or less is allowed: the two straight pieces of a knee code, the larger
// of which applies. `value` gives the code in units of its scale.
struct Pieces {
  float origin, slope, offset;

  static __device__ __forceinline__ Pieces of(const Knee& knee) {
    return {kByteBias + knee.zero, 1.0f + knee.gain, -knee.gain * (knee.knee - knee.zero)};
  }

  __device__ __forceinline__ float value(float biased) const {
    const float t = biased - origin;
    return fmaxf(t, fmaf(t, slope, offset));
  }
};

}  // namespace dualscale
