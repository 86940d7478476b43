// Half types: exact conversions with one rounding.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <immintrin.h>
inline float h2f(uint16_t h) { return _cvtsh_ss(h); }
inline float bf2f(uint16_t h) { uint32_t b = uint32_t(h) << 16; float f; memcpy(&f, &b, 4); return f; }
// A double to a format of `mant` stored bits whose smallest exponent is `emin`; rounding 0 nearest even, 1 zero, 2 down, 3 up.
inline double round_format(double x, int mant, int emin, int mode) {
  if (x == 0 || x != x || std::isinf(x)) return x;
  int e; std::frexp(x, &e); e -= 1; if (e < emin) e = emin;
  double scaled = std::ldexp(x, mant - e), r;
  switch (mode) { case 0: r = std::nearbyint(scaled); break; case 1: r = std::trunc(scaled); break; case 2: r = std::floor(scaled); break; default: r = std::ceil(scaled); }
  return std::copysign(std::ldexp(r, e - mant), x);
}
inline uint16_t d2h(double x, int mode = 0) {
  if (x != x) return 0x7fff;
  double r = round_format(x, 10, -14, mode);
  if (std::abs(r) > 65504) { bool inf = std::isinf(x) || mode == 0 || (mode == 2 && x < 0) || (mode == 3 && x > 0); return (std::signbit(x) ? 0x8000 : 0) | (inf ? 0x7c00 : 0x7bff); }
  return _cvtss_sh(static_cast<float>(r), 0);
}
inline uint16_t d2bf(double x, int mode = 0) {
  if (x != x) return 0x7fff;
  double r = round_format(x, 7, -126, mode);
  if (std::abs(r) > 3.3895313892515355e38) { bool inf = std::isinf(x) || mode == 0 || (mode == 2 && x < 0) || (mode == 3 && x > 0); return (std::signbit(x) ? 0x8000 : 0) | (inf ? 0x7f80 : 0x7f7f); }
  float f = static_cast<float>(r); uint32_t b; memcpy(&b, &f, 4); return b >> 16;
}
// a*b+c in double, the last bit odd where it is not exact, so that one more rounding is the right one.
inline double fma_to_odd(float a, float b, float c) {
  double p = double(a) * b, z = c, s = p + z; if (s != s || std::isinf(s)) return s;
  double bb = s - p, err = (p - (s - bb)) + (z - bb);
  if (err != 0) { int64_t k; memcpy(&k, &s, 8); if (!(k & 1)) { s = std::nextafter(s, err > 0 ? INFINITY : -INFINITY); } }
  return s;
}
