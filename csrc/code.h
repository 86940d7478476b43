// How eight bits stand for a real number: the one definition of encode and decode for host and device.
//
// A code crosses the operator boundary as fp32 (rows, width); see dualscale_mamba/formats/base.py, which this
// file mirrors. The two families are told apart by the width of a row:
//   knee  (8):   decode(q) = scale * ((q - zero) + gain * max(q - knee, 0))
//   table (512): decode(q) = levels[q + 128]; encode by the number of thresholds not above x
// A third width, of codes with a selector beside each (dualscale_mamba/formats/pair.py):
//   pair  (5):   decode(q, outlier) = (outlier ? outer : inner) * q; |x| >= limit is an outlier
//
// Bitwise agreement of CUDA, C++ and PyTorch rests on two rules. In `encode` each product and sum is rounded
// separately (no contraction to FMA). In `decode` contraction is harmless, because `gain` carries at most 12
// significant bits, so gain * max(q - knee, 0) is exact in fp32.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define DUALSCALE_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DUALSCALE_HOST_DEVICE inline __attribute__((always_inline))
#endif

namespace dualscale {

constexpr int kKneeWidth = 8;
constexpr int kTableWidth = 512;
constexpr int kPairWidth = 5;
constexpr float kPairMax = 127.0f;
constexpr int kLevels = 256;
constexpr float kCodeSpaceLimit =
    1048576.0f;  // 2^20: beyond any reachable code, so that inf * 0 cannot arise

// Product and sum rounded on their own, whatever the compiler's contraction setting.
DUALSCALE_HOST_DEVICE float mul_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;  // the host is compiled with -ffp-contract=off
#endif
}

DUALSCALE_HOST_DEVICE float add_rn(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}

// Minimum and maximum of numbers (NaN never gets here). On the host fminf would be a call, which nothing
// vectorises.
DUALSCALE_HOST_DEVICE float min_of(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fminf(a, b);
#else
  return a < b ? a : b;
#endif
}

DUALSCALE_HOST_DEVICE float max_of(float a, float b) {
#if defined(__CUDA_ARCH__)
  return fmaxf(a, b);
#else
  return a > b ? a : b;
#endif
}

// Round half away from zero, exactly (0.49999997 goes to 0), for |t| <= 2^20 + 256.
DUALSCALE_HOST_DEVICE float round_half_away(float t) {
#if defined(__CUDA_ARCH__)
  // |t| + (2^22 + 0.5) rounded toward zero is a multiple of 0.5 (the spacing there), so the sum's integer
  // part is floor(|t| + 0.5) without a conversion instruction, which would run at a quarter of the rate.
  const uint32_t bits = __float_as_uint(__fadd_rz(fabsf(t), 4194304.5f)) & 0xfffffffeu;
  return copysignf(__uint_as_float(bits) - 4194304.0f, t);
#else
  const float whole = std::trunc(t);
  return std::fabs(t - whole) >= 0.5f ? whole + std::copysign(1.0f, t) : whole;
#endif
}

struct Knee {
  float scale, inv_scale, zero, knee, gain, inv_gain, qmin, qmax;

  static DUALSCALE_HOST_DEVICE Knee load(const float* row) {
    return {row[0], row[1], row[2], row[3], row[4], row[5], row[6], row[7]};
  }

  // q is the code as a float.
  DUALSCALE_HOST_DEVICE float decode(float q) const {
    return mul_rn(scale, (q - zero) + gain * max_of(q - knee, 0.0f));
  }

  // The code as a float, an integer in [qmin, qmax].
  DUALSCALE_HOST_DEVICE float encode(float x) const {
    x = x == x ? x : 0.0f;
    float t = mul_rn(x, inv_scale);
    t = min_of(max_of(t, -kCodeSpaceLimit), kCodeSpaceLimit);
    t = add_rn(t, zero);
    t = add_rn(t, mul_rn(inv_gain, max_of(add_rn(t, -knee), 0.0f)));
    return min_of(max_of(round_half_away(t), qmin), qmax);
  }

  // Whether nothing bends: then this is the same for every x that is a number, in fewer steps. The limits are
  // integers, so that it does not matter whether they are applied before or after rounding.
  DUALSCALE_HOST_DEVICE bool is_straight() const { return inv_gain == 0.0f; }
  DUALSCALE_HOST_DEVICE float encode_straight(float x) const {
    return round_half_away(min_of(max_of(add_rn(mul_rn(x, inv_scale), zero), qmin), qmax));
  }
};

struct Table {
  const float* row;  // 256 levels, 255 thresholds, one +inf

  static DUALSCALE_HOST_DEVICE Table load(const float* row) { return {row}; }

  DUALSCALE_HOST_DEVICE float decode(float q) const { return row[static_cast<int>(q) + 128]; }

  // One step of the binary search: `count` thresholds are known not to be above x; are `step` more?
  DUALSCALE_HOST_DEVICE int advance(float x, int count, int step) const {
    return count + (x >= row[kLevels - 1 + count + step] ? step : 0);
  }

  DUALSCALE_HOST_DEVICE float encode(float x) const {
    x = x == x ? x : 0.0f;
    int count = 0;
    count = advance(x, count, 128);
    count = advance(x, count, 64);
    count = advance(x, count, 32);
    count = advance(x, count, 16);
    count = advance(x, count, 8);
    count = advance(x, count, 4);
    count = advance(x, count, 2);
    count = advance(x, count, 1);
    return static_cast<float>(count - 128);
  }
};

struct Pair {
  float inner, inv_inner, outer, inv_outer, limit;

  static DUALSCALE_HOST_DEVICE Pair load(const float* row) {
    return {row[0], row[1], row[2], row[3], row[4]};
  }

  DUALSCALE_HOST_DEVICE float decode(float q, bool is_outlier) const {
    return mul_rn(is_outlier ? outer : inner, q);
  }

  // NaN is none.
  DUALSCALE_HOST_DEVICE bool is_outlier(float x) const { return max_of(x, -x) >= limit; }

  // The code as a float, an integer in [-127, 127].
  DUALSCALE_HOST_DEVICE float encode(float x, bool is_outlier) const {
    x = x == x ? x : 0.0f;
    const float t = mul_rn(x, is_outlier ? inv_outer : inv_inner);
    return max_of(-kPairMax,
                  min_of(round_half_away(min_of(max_of(t, -kCodeSpaceLimit), kCodeSpaceLimit)), kPairMax));
  }
};

}  // namespace dualscale
