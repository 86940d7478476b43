// Eight neighbouring channels of a type that is known at run time, moved as whole vectors or, where rows are
// ragged or not aligned, one by one.
#pragma once

#include "four.cuh"

namespace dualscale {

constexpr int kEight = 8;

// As they lie in memory: 8, 16 or 32 bytes.
struct Eight {
  uint32_t word[kEight];
};

// kWhole: all eight exist and rows are aligned.
template <bool kWhole>
__device__ __forceinline__ Eight load_eight(const Input& input, int64_t offset, int valid) {
  Eight eight;
  const auto take = [&](const auto& raw) {
#pragma unroll
    for (int i = 0; i < raw.kWords; ++i) {
      eight.word[i] = raw.word[i];
    }
  };
  const bool aligned = kWhole || input.aligned;
  const int present = kWhole ? kEight : valid;
  if (input.kind == Kind::kCodes) {
    take(load_raw<int8_t, kEight>(static_cast<const int8_t*>(input.data) + offset, aligned, present));
  } else if (input.kind == Kind::kFloat) {
    take(load_raw<float, kEight>(static_cast<const float*>(input.data) + offset, aligned, present));
  } else {  // half and bfloat16 are read alike
    take(load_raw<__half, kEight>(static_cast<const __half*>(input.data) + offset, aligned, present));
  }
  return eight;
}

// Floating point values; codes stay biased (2^23 + 128 + q).
__device__ __forceinline__ void biased_or_value(const Eight& eight, Kind kind, float (&x)[kEight]) {
  if (kind == Kind::kHalf) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      x[i] = __half2float(__ushort_as_half(static_cast<uint16_t>(eight.word[i / 2] >> (i % 2 * 16))));
    }
  } else if (kind == Kind::kBFloat16) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      x[i] = __uint_as_float(i % 2 == 0 ? eight.word[i / 2] << 16 : eight.word[i / 2] & 0xffff0000u);
    }
  } else if (kind == Kind::kFloat) {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      x[i] = __uint_as_float(eight.word[i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kEight; ++i) {
      x[i] = biased_byte(eight.word[i / 4] ^ 0x80808080u, i % 4);
    }
  }
}

template <bool kWhole>
__device__ __forceinline__ void store_eight(void* to, Kind kind, int64_t offset, const float (&x)[kEight],
                                            bool aligned, int valid) {
  aligned = kWhole || aligned;
  valid = kWhole ? kEight : valid;
  switch (kind) {
    case Kind::kCodes:
      return store_raw(static_cast<int8_t*>(to) + offset, pack<int8_t, kEight>(x), aligned, valid);
    case Kind::kHalf:
      return store_raw(static_cast<__half*>(to) + offset, pack<__half, kEight>(x), aligned, valid);
    case Kind::kBFloat16:
      return store_raw(static_cast<__nv_bfloat16*>(to) + offset, pack<__nv_bfloat16, kEight>(x), aligned,
                       valid);
    default:
      return store_raw(static_cast<float*>(to) + offset, pack<float, kEight>(x), aligned, valid);
  }
}

// Rounds to a type and back.
__device__ __forceinline__ void round_to(Kind kind, float (&x)[kEight]) {
  if (kind == Kind::kHalf) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      x[j] = __half2float(__float2half_rn(x[j]));
    }
  } else if (kind == Kind::kBFloat16) {
#pragma unroll
    for (int j = 0; j < kEight; ++j) {
      x[j] = __bfloat162float(__float2bfloat16_rn(x[j]));
    }
  }
}

// Neighbouring floats of a parameter; kWhole: they may be read as two vectors.
template <bool kWhole>
__device__ __forceinline__ void load_floats(const float* from, int valid, float (&x)[kEight]) {
  unpack(load_raw<float, kEight>(from, kWhole, kWhole ? kEight : valid), x);
}

}  // namespace dualscale
