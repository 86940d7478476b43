// Weights of four and eight bits as operands of the tensor cores: as codes, or as values without a rounding.
#pragma once

#include "mma.cuh"

namespace dualscale {

// 16 x 8 sums += 16 x 32 weights times 32 x 8 codes.
__device__ __forceinline__ void multiply_add(int (&sum)[4], const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+r"(sum[0]), "+r"(sum[1]), "+r"(sum[2]), "+r"(sum[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two of eight four-bit codes in a word as values, exactly: codes i and i + 2 for i = 0, 1, 4, 5, which begin
// at bit kFirst of a half.
template <class T, int kFirst>
__device__ __forceinline__ uint32_t pair_of_nibbles(uint32_t word) {
  // Below a large power of two the code's bits are the last of the mantissa; turning its sign bit adds 8. A
  // half's mantissa takes them four bits higher up as well, below a smaller power, which saves a shift.
  constexpr bool kIsHalf = std::is_same_v<T, __half>, kHigher = kIsHalf && kFirst % 8 == 4;
  constexpr uint32_t kMask = kHigher ? 0x00f000f0u : 0x000f000fu, kOffset = kHigher   ? 0x54805480u
                                                                            : kIsHalf ? 0x64086408u
                                                                                      : 0x43084308u;
  uint32_t biased;
  // (word & mask) ^ offset in one instruction, of which the compiler makes two.
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;"
      : "=r"(biased)
      : "r"(word >> (kHigher ? kFirst - 4 : kFirst)), "r"(kMask), "r"(kOffset));
  using Pair = std::conditional_t<kIsHalf, __half2, __nv_bfloat162>;
  const uint32_t offset = kOffset;
  Pair value, zero;
  memcpy(&value, &biased, 4);
  memcpy(&zero, &offset, 4);
  value = __hsub2(value, zero);
  uint32_t bits;
  memcpy(&bits, &value, 4);
  return bits;
}

// Codes 0 and 1, or 2 and 3, of four in a word as values.
template <class T>
__device__ __forceinline__ uint32_t pair_of_bytes(uint32_t word, bool second) {
  if constexpr (std::is_same_v<T, __half>) {
    const uint32_t biased = __byte_perm(word ^ 0x80808080u, 0x64646464u, second ? 0x4342 : 0x4140);
    const uint32_t offset = 0x64806480u;
    __half2 value, zero;
    memcpy(&value, &biased, 4);
    memcpy(&zero, &offset, 4);
    value = __hsub2(value, zero);
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
  } else {
    const uint32_t flipped = word ^ 0x80808080u;
    const int at = second ? 2 : 0;
    return pack_pair<T>(biased_byte(flipped, at) - kByteBias, biased_byte(flipped, at + 1) - kByteBias);
  }
}

// Halves of two words: the low ones, or the high ones.
__device__ __forceinline__ uint32_t low_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x5410); }
__device__ __forceinline__ uint32_t high_halves(uint32_t a, uint32_t b) { return __byte_perm(a, b, 0x7632); }

}  // namespace dualscale
