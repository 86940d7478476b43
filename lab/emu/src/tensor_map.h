// What cuTensorMapEncodeTiled writes here, and the copy of a box.
#pragma once
#include "core.h"
struct TensorMap {
  u32 magic; u8 rank, type, swizzle, interleave; u64 base; u64 sizes[5]; u64 strides[4]; u16 box[5]; u8 steps[5], nan_fill; 
  static constexpr u32 kMagic = 0x7e450a11;
  int width() const { static const int w[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4}; return w[type]; }
  Type element() const { static const Type k[] = {{'u', 8}, {'u', 16}, {'u', 32}, {'s', 32}, {'u', 64}, {'s', 64}, {'f', 16}, {'f', 32}, {'f', 64}, {'g', 16}, {'f', 32}, {'f', 32}, {'f', 32}}; return k[type]; }
  u32 box_bytes() const { u32 n = width(); for (int k = 0; k < rank; ++k) n *= box[k]; return n; }
  u64 extent() const { u64 n = sizes[0] * width(); for (int k = 1; k < rank; ++k) n += (sizes[k] - 1) * strides[k - 1]; for (int k = 0; k < rank; ++k) if (!sizes[k]) return 0; return n; }
  template <class F> void copy(char* shared, u32 at, const s32* c, bool load, F f) const {
    const int wd = width(); const u32 count = box_bytes() / wd; (void)load;
    for (u32 k = 0; k < count; ++k) {
      u32 rest = k; u64 address = base; bool inside = true;
      for (int dim = 0; dim < rank; ++dim) { s64 x = s64(c[dim]) + rest % box[dim]; rest /= box[dim]; if (x < 0 || u64(x) >= sizes[dim]) inside = false; else address += dim ? x * strides[dim - 1] : x * wd; }
      u32 to = at + k * wd;
      if (swizzle == 1) to ^= (to >> 7 & 1) << 4; if (swizzle == 2) to ^= (to >> 7 & 3) << 4; if (swizzle == 3) to ^= (to >> 7 & 7) << 4;
      f(shared + to, inside ? reinterpret_cast<const char*>(address) : nullptr, wd);
    }
  }
};
static_assert(sizeof(TensorMap) <= 128);
inline TensorMap read_map(u64 address) { if (address % 64) FAIL("tensor map at %#llx is misaligned", (unsigned long long)address); TensorMap t; memcpy(&t, reinterpret_cast<const void*>(address), sizeof t); if (t.magic != TensorMap::kMagic) FAIL("no tensor map at %#llx", (unsigned long long)address); return t; }
struct Issued;
void barrier_tx(Block* b, u32 at, s64 bytes, Issued* issued);
