// Arithmetic, logic, conversions, moves.
#include "core.h"
#include "half.h"
#include "races.h"
#include <cfenv>
#include <cmath>
#include <limits>
#include <type_traits>
#include <xmmintrin.h>

namespace {
#define EACH(m, ...) \
  if ((m) == 0xffffffffu) { _Pragma("GCC ivdep") for (int l = 0; l < 32; ++l) { __VA_ARGS__; } } \
  else { for (u32 m_ = (m); m_; m_ &= m_ - 1) { const int l = __builtin_ctz(m_); __VA_ARGS__; } }

template <class D, class A, class F> int un(Warp& w, const Ins& i, u32 m) { D* d = w.r<D>(i.o[0]); const A* a = w.r<A>(i.o[1]); EACH(m, d[l] = F::f(a[l])) return OK; }
template <class D, class A, class F> int bin(Warp& w, const Ins& i, u32 m) { D* d = w.r<D>(i.o[0]); const A* a = w.r<A>(i.o[1]); const A* b = w.r<A>(i.o[2]); EACH(m, d[l] = F::f(a[l], b[l])) return OK; }
template <class D, class A, class C, class F> int tern(Warp& w, const Ins& i, u32 m) { D* d = w.r<D>(i.o[0]); const A* a = w.r<A>(i.o[1]); const A* b = w.r<A>(i.o[2]); const C* c = w.r<C>(i.o[3]); EACH(m, d[l] = F::f(a[l], b[l], c[l])) return OK; }
// shifts: the amount has 32 bits whatever the value has
template <class T, class F> int shift(Warp& w, const Ins& i, u32 m) { T* d = w.r<T>(i.o[0]); const T* a = w.r<T>(i.o[1]); const u32* b = w.r<u32>(i.o[2]); EACH(m, d[l] = F::f(a[l], b[l])) return OK; }

template <class T> using U = std::make_unsigned_t<T>;
template <class T> struct Wide;
template <> struct Wide<u8> { using type = u16; }; template <> struct Wide<u16> { using type = u32; }; template <> struct Wide<u32> { using type = u64; }; template <> struct Wide<u64> { using type = unsigned __int128; };
template <> struct Wide<s8> { using type = s16; }; template <> struct Wide<s16> { using type = s32; }; template <> struct Wide<s32> { using type = s64; }; template <> struct Wide<s64> { using type = __int128; };
template <class T> struct Add { static T f(T a, T b) { return U<T>(a) + U<T>(b); } };
template <class T> struct Sub { static T f(T a, T b) { return U<T>(a) - U<T>(b); } };
template <class T> struct MulLo { static T f(T a, T b) { return typename Wide<U<T>>::type(U<T>(a)) * U<T>(b); } };
template <class T> struct MulHi { static T f(T a, T b) { return (typename Wide<T>::type(a) * b) >> (8 * sizeof(T)); } };
template <class T> struct MulWide { using D = typename Wide<T>::type; static D f(T a, T b) { return D(a) * b; } };
template <class T> struct MadWide { using D = typename Wide<T>::type; static D f(T a, T b, D c) { return U<D>(D(a) * b) + U<D>(c); } };
template <class T> struct MadLo { static T f(T a, T b, T c) { return U<T>(MulLo<T>::f(a, b)) + U<T>(c); } };
template <class T> struct MadHi { static T f(T a, T b, T c) { return U<T>(MulHi<T>::f(a, b)) + U<T>(c); } };
template <class T> struct Div { static T f(T a, T b) { if (!b) return T(~T(0)); if (std::is_signed_v<T> && b == T(-1)) return U<T>(0) - U<T>(a); return a / b; } };
template <class T> struct Rem { static T f(T a, T b) { if (!b) return a; if (std::is_signed_v<T> && b == T(-1)) return 0; return a % b; } };
template <class T> struct Min { static T f(T a, T b) { return a < b ? a : b; } };
template <class T> struct Max { static T f(T a, T b) { return a > b ? a : b; } };
template <class T> struct And { static T f(T a, T b) { return a & b; } };
template <class T> struct Or { static T f(T a, T b) { return a | b; } };
template <class T> struct Xor { static T f(T a, T b) { return a ^ b; } };
template <class T> struct Not { static T f(T a) { return ~a; } };
template <class T> struct Cnot { static T f(T a) { return a == 0; } };
template <class T> struct Neg { static T f(T a) { return U<T>(0) - U<T>(a); } };
template <class T> struct Abs { static T f(T a) { return a < 0 ? T(U<T>(0) - U<T>(a)) : a; } };
template <class T> struct Move { static T f(T a) { return a; } };
template <class T> struct Shl { static T f(T a, u32 b) { return b >= 8 * sizeof(T) ? 0 : U<T>(a) << b; } };
template <class T> struct Shr { static T f(T a, u32 b) { return b >= 8 * sizeof(T) ? (std::is_signed_v<T> && a < 0 ? T(-1) : T(0)) : T(a >> b); } };
struct AddSat { static s32 f(s32 a, s32 b) { s64 r = s64(a) + b; return r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : r; } };
struct SubSat { static s32 f(s32 a, s32 b) { s64 r = s64(a) - b; return r > INT32_MAX ? INT32_MAX : r < INT32_MIN ? INT32_MIN : r; } };
struct Mul24 { static u32 f(u32 a, u32 b) { return u64(a & 0xffffff) * (b & 0xffffff); } };
struct Mul24s { static s32 f(s32 a, s32 b) { return s64(s32(u32(a) << 8) >> 8) * (s32(u32(b) << 8) >> 8); } };
struct Mad24 { static u32 f(u32 a, u32 b, u32 c) { return Mul24::f(a, b) + c; } };
struct Mad24s { static s32 f(s32 a, s32 b, s32 c) { return u32(Mul24s::f(a, b)) + u32(c); } };
struct Popc32 { static u32 f(u32 a) { return __builtin_popcount(a); } };
struct Popc64 { static u32 f(u64 a) { return __builtin_popcountll(a); } };
struct Clz32 { static u32 f(u32 a) { return a ? __builtin_clz(a) : 32; } };
struct Clz64 { static u32 f(u64 a) { return a ? __builtin_clzll(a) : 64; } };
struct Brev32 { static u32 f(u32 a) { u32 r = 0; for (int k = 0; k < 32; ++k) r |= (a >> k & 1) << (31 - k); return r; } };
struct Brev64 { static u64 f(u64 a) { return u64(Brev32::f(a)) << 32 | Brev32::f(a >> 32); } };
template <class T, bool kShift> struct Bfind { static u32 f(T a) { U<T> v = std::is_signed_v<T> && a < 0 ? ~a : a; if (!v) return ~0u; int at = 63 - __builtin_clzll(u64(v)); return kShift ? 8 * sizeof(T) - 1 - at : at; } };
template <class T> struct Sad { static T f(T a, T b, T c) { return c + (a < b ? b - a : a - b); } };

int bfe(Warp& w, const Ins& i, u32 m) {  // a: bits, flag: signed
  auto one = [&](u64 a, u32 pos, u32 len, int bits) -> u64 {
    pos &= 255; len &= 255; const int msb = bits - 1; u64 sign = 0;
    if (i.flag && len) { u32 at = std::min<u32>(pos + len - 1, msb); sign = a >> at & 1; }
    u64 r = 0; for (int k = 0; k <= msb; ++k) r |= ((u32(k) < len && pos + k <= u32(msb)) ? (a >> (pos + k) & 1) : sign) << k;
    return r; };
  const u32* p = w.r<u32>(i.o[2]); const u32* n = w.r<u32>(i.o[3]);
  if (i.a == 32) { u32* d = w.r<u32>(i.o[0]); const u32* a = w.r<u32>(i.o[1]); EACH(m, d[l] = one(a[l], p[l], n[l], 32)) }
  else { u64* d = w.r<u64>(i.o[0]); const u64* a = w.r<u64>(i.o[1]); EACH(m, d[l] = one(a[l], p[l], n[l], 64)) }
  return OK;
}
template <class T> int bfi(Warp& w, const Ins& i, u32 m) {
  T* d = w.r<T>(i.o[0]); const T* a = w.r<T>(i.o[1]); const T* b = w.r<T>(i.o[2]); const u32* p = w.r<u32>(i.o[3]); const u32* n = w.r<u32>(i.o[4]);
  EACH(m, { u32 pos = p[l] & 255, len = n[l] & 255; constexpr u32 kBits = 8 * sizeof(T); T r = b[l];
    if (pos < kBits && len) { T mask = len >= kBits ? ~T(0) : (T(1) << len) - 1; mask <<= pos; r = (b[l] & ~mask) | ((a[l] << pos) & mask); } d[l] = r; })
  return OK;
}
int bmsk(Warp& w, const Ins& i, u32 m) { u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]);
  EACH(m, { u32 p = a[l], n = b[l]; if (!i.flag) { p = std::min(p, 32u); n = std::min(n, 32u); } else { p &= 31; n &= 31; } u64 mask = ((1ull << n) - 1) << p; d[l] = u32(mask); }) return OK; }
int shf(Warp& w, const Ins& i, u32 m) {  // flag: left, flag2: wrap
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]);
  EACH(m, { u32 n = i.flag2 ? c[l] & 31 : std::min(c[l], 32u); u64 v = u64(b[l]) << 32 | a[l]; d[l] = i.flag ? u32((v << n) >> 32) : u32(v >> n); }) return OK;
}
int lop3(Warp& w, const Ins& i, u32 m) {
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]); const u32 t = i.a;
  u32 k[8]; for (int j = 0; j < 8; ++j) k[j] = t >> j & 1 ? ~0u : 0;
  EACH(m, { const u32 x = a[l], y = b[l], z = c[l];
    d[l] = (k[0] & ~x & ~y & ~z) | (k[1] & ~x & ~y & z) | (k[2] & ~x & y & ~z) | (k[3] & ~x & y & z) | (k[4] & x & ~y & ~z) | (k[5] & x & ~y & z) | (k[6] & x & y & ~z) | (k[7] & x & y & z); })
  return OK;
}
int prmt(Warp& w, const Ins& i, u32 m) {
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]);
  EACH(m, { u64 v = u64(b[l]) << 32 | a[l]; u32 sel = c[l]; u32 r = 0; u32 q[4];
    switch (i.a) {
      case 0: for (int k = 0; k < 4; ++k) q[k] = sel >> (4 * k) & 15; break;
      case 1: for (int k = 0; k < 4; ++k) q[k] = ((sel & 3) + k) & 7; break;           // f4e
      case 2: for (int k = 0; k < 4; ++k) q[k] = ((sel & 3) + 8 - k) & 7; break;       // b4e
      case 3: for (int k = 0; k < 4; ++k) q[k] = sel & 3; break;                       // rc8
      case 4: for (int k = 0; k < 4; ++k) q[k] = std::max<u32>(sel & 3, k); break;     // ecl
      case 5: for (int k = 0; k < 4; ++k) q[k] = std::min<u32>(sel & 3, k); break;     // ecr
      default: for (int k = 0; k < 4; ++k) q[k] = ((sel & 1) * 2) + (k & 1); break;    // rc16
    }
    for (int k = 0; k < 4; ++k) { u32 byte = v >> (8 * (q[k] & 7)) & 255; if (q[k] & 8) byte = byte & 128 ? 255 : 0; r |= byte << (8 * k); }
    d[l] = r; })
  return OK;
}
template <bool kA, bool kB> int dp4a(Warp& w, const Ins& i, u32 m) {
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]);
  EACH(m, { u32 r = c[l]; for (int k = 0; k < 4; ++k) { s32 x = kA ? s8(a[l] >> (8 * k)) : s32(u8(a[l] >> (8 * k))); s32 y = kB ? s8(b[l] >> (8 * k)) : s32(u8(b[l] >> (8 * k))); r += u32(x * y); } d[l] = r; })
  return OK;
}
template <bool kA, bool kB> int dp2a(Warp& w, const Ins& i, u32 m) {  // flag: hi
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]);
  EACH(m, { u32 r = c[l]; for (int k = 0; k < 2; ++k) { s32 x = kA ? s16(a[l] >> (16 * k)) : s32(u16(a[l] >> (16 * k))); u32 bb = b[l] >> (i.flag ? 16 : 0) >> (8 * k); s32 y = kB ? s8(bb) : s32(u8(bb)); r += u32(x * y); } d[l] = r; })
  return OK;
}

template <int K> int pair16(Warp& w, const Ins& i, u32 m) {  // 0 add 1 min 2 max; flag: signed
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]);
  EACH(m, { u32 r = 0; for (int h = 0; h < 32; h += 16) { u32 x = a[l] >> h & 0xffff, y = b[l] >> h & 0xffff; bool less = i.flag ? s16(x) < s16(y) : x < y; u32 v = K == 0 ? x + y : K == 1 ? (less ? x : y) : (less ? y : x); r |= (v & 0xffff) << h; } d[l] = r; }) return OK;
}
int vabsdiff4(Warp& w, const Ins& i, u32 m) {
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]);
  EACH(m, { u32 r = i.flag2 ? c[l] : 0; for (int k = 0; k < 32; k += 8) { int x = i.flag ? s8(a[l] >> k) : u8(a[l] >> k), y = i.flag ? s8(b[l] >> k) : u8(b[l] >> k); u32 v = x < y ? y - x : x - y; if (i.flag2) r += v; else r |= (v & 255) << k; } d[l] = r; }) return OK;
}
int slct(Warp& w, const Ins& i, u32 m) { u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]); const s32* c = w.r<s32>(i.o[3]); const float* f = w.r<float>(i.o[3]); EACH(m, d[l] = (i.flag ? f[l] >= 0 : c[l] >= 0) ? a[l] : b[l]) return OK; }
int testp(Warp& w, const Ins& i, u32 m) { const float* a = w.r<float>(i.o[1]); u32 bits = 0; for (int l = 0; l < 32; ++l) { int c = std::fpclassify(a[l]); bool r = i.a == 0 ? c != FP_NAN && c != FP_INFINITE : i.a == 1 ? c == FP_INFINITE : i.a == 2 ? c != FP_NAN : i.a == 3 ? c == FP_NAN : i.a == 4 ? c == FP_NORMAL : c == FP_SUBNORMAL; bits |= u32(r) << l; } u32* d = w.r<u32>(i.o[0]); *d = (*d & ~m) | (bits & m); return OK; }
// ---- floating point. Rounding: 0 nearest even, 1 zero, 2 minus, 3 plus.
struct Rounding { u32 old; explicit Rounding(int mode) : old(_mm_getcsr()) { static const u32 bits[4] = {0, 0x6000, 0x2000, 0x4000}; if (mode) _mm_setcsr((old & ~0x6000u) | bits[mode]); } ~Rounding() { _mm_setcsr(old); } };
float flush(float x) { return std::fpclassify(x) == FP_SUBNORMAL ? std::copysign(0.0f, x) : x; }
template <class T> T nan_of();
template <> inline float nan_of<float>() { u32 b = 0x7fffffff; float f; memcpy(&f, &b, 4); return f; }
template <> inline double nan_of<double>() { return std::numeric_limits<double>::quiet_NaN(); }
template <class T> inline T canonical(T x) { return x != x ? nan_of<T>() : x; }
template <class T> struct FAdd { static T f(T a, T b) { return canonical<T>(a + b); } };
template <class T> struct FSub { static T f(T a, T b) { return canonical<T>(a - b); } };
template <class T> struct FMul { static T f(T a, T b) { return canonical<T>(a * b); } };
template <class T> struct FDiv { static T f(T a, T b) { return canonical<T>(a / b); } };
template <class T> struct FFma { static T f(T a, T b, T c) { return canonical<T>(sizeof(T) == 4 ? T(__builtin_fmaf(a, b, c)) : T(__builtin_fma(a, b, c))); } };
template <class T> struct FMin { static T f(T a, T b) { if (a != a) return canonical(b); if (b != b) return a; if (a == b) return std::signbit(a) ? a : b; return a < b ? a : b; } };
template <class T> struct FMax { static T f(T a, T b) { if (a != a) return canonical(b); if (b != b) return a; if (a == b) return std::signbit(a) ? b : a; return a > b ? a : b; } };
template <class T> struct FMinNan { static T f(T a, T b) { return a != a || b != b ? nan_of<T>() : FMin<T>::f(a, b); } };
template <class T> struct FMaxNan { static T f(T a, T b) { return a != a || b != b ? nan_of<T>() : FMax<T>::f(a, b); } };
struct FNeg { static u32 f(u32 a) { return a ^ 0x80000000u; } };
struct FAbs { static u32 f(u32 a) { return a & 0x7fffffffu; } };
struct DNeg { static u64 f(u64 a) { return a ^ (1ull << 63); } };
struct DAbs { static u64 f(u64 a) { return a & ~(1ull << 63); } };
struct Copysign { static u32 f(u32 a, u32 b) { return (b & 0x7fffffffu) | (a & 0x80000000u); } };
struct Copysign64 { static u64 f(u64 a, u64 b) { return (b & ~(1ull << 63)) | (a & (1ull << 63)); } };
struct Sat { static float f(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; } };  // NaN becomes 0
// add, sub, mul, div, fma with any rounding, ftz and saturation
template <class T> int slow_float(Warp& w, const Ins& i, u32 m) {  // a: operation, b: rounding, flag: ftz, flag2: sat
  T* d = w.r<T>(i.o[0]); const T *pa = w.r<T>(i.o[1]), *pb = w.r<T>(i.o[2]), *pc = w.r<T>(i.o[3]);
  for (u32 k = m; k; k &= k - 1) {
    const int l = __builtin_ctz(k); volatile T a = pa[l], b = i.n > 1 ? pb[l] : T(0), c = i.n > 2 ? pc[l] : T(0), r = 0;
    if (i.flag) { a = flush(a); b = flush(b); c = flush(c); }
    { Rounding mode(i.b);
      switch (i.a) {
        case 0: r = a + b; break; case 1: r = a - b; break; case 2: r = a * b; break; case 3: r = a / b; break;
        case 4: { T x = a, y = b, z = c, s; if constexpr (sizeof(T) == 4) asm volatile("vfmadd213ss %3, %2, %0" : "=x"(s) : "0"(x), "x"(y), "x"(z)); else asm volatile("vfmadd213sd %3, %2, %0" : "=x"(s) : "0"(x), "x"(y), "x"(z)); r = s; break; }
        case 5: r = T(1) / a; break;
        case 6: { T x = a, s; if constexpr (sizeof(T) == 4) asm volatile("vsqrtss %1, %1, %0" : "=x"(s) : "x"(x)); else asm volatile("vsqrtsd %1, %1, %0" : "=x"(s) : "x"(x)); r = s; break; }
      } }
    T v = r; if (i.flag) v = flush(v); if (i.flag2) v = Sat::f(v); d[l] = canonical<T>(v);
  }
  return OK;
}
int approx(Warp& w, const Ins& i, u32 m) {  // a: function, flag: ftz
  float* d = w.r<float>(i.o[0]); const float* pa = w.r<float>(i.o[1]);
  EACH(m, { float a = i.flag ? flush(pa[l]) : pa[l]; double x = a, r = 0;
    switch (i.a) { case 0: r = std::exp2(x); break; case 1: r = std::log2(x); break; case 2: r = 1.0 / x; break; case 3: r = 1.0 / std::sqrt(x); break; case 4: r = std::sqrt(x); break;
      case 5: r = std::sin(x); break; case 6: r = std::cos(x); break; case 7: r = std::tanh(x); break; }
    if (i.a == 3 && x == 0) r = std::copysign(INFINITY, x);
    float f = static_cast<float>(r); if (i.flag) f = flush(f); d[l] = canonical(f); })
  return OK;
}
struct Ex2f { static float f(float a) { return exp2f(a); } };

// ---- half types, through float or double and one rounding
template <bool kB> float up(u16 h) { return kB ? bf2f(h) : h2f(h); }
template <bool kB> u16 down(double x) { return kB ? d2bf(x) : d2h(x); }
template <bool kB> u16 half_op(const Ins& i, u16 a, u16 b, u16 c) {
  float x = up<kB>(a), y = up<kB>(b), z = up<kB>(c); double r = 0;
  const u16 quiet = 0x7fff;
  switch (i.a) {
    case 0: r = double(x) + y; break; case 1: r = double(x) - y; break; case 2: r = double(x) * y; break; case 3: r = double(x) / y; break;
    case 4: r = fma_to_odd(x, y, z); break;
    case 5: if (x != x) return y != y ? quiet : b; if (y != y) return a; return x == y ? (a & 0x8000 ? a : b) : x < y ? a : b;
    case 6: if (x != x) return y != y ? quiet : b; if (y != y) return a; return x == y ? (a & 0x8000 ? b : a) : x > y ? a : b;
    case 7: if (x != x || y != y) return quiet; return x == y ? (a & 0x8000 ? a : b) : x < y ? a : b;
    case 8: if (x != x || y != y) return quiet; return x == y ? (a & 0x8000 ? b : a) : x > y ? a : b;
    case 9: return a ^ 0x8000; case 10: return a & 0x7fff;
    case 11: r = std::exp2(double(x)); break; case 12: r = std::tanh(double(x)); break;
  }
  if (i.flag2) r = r > 0 ? (r < 1 ? r : 1.0) : 0.0;        // sat
  if (i.flag && r != r) return quiet;
  if (i.flag && !(r > 0)) r = 0;                           // relu
  if (r != r) return quiet;
  return down<kB>(r);
}
template <bool kB> int half1(Warp& w, const Ins& i, u32 m) { u16* d = w.r<u16>(i.o[0]); const u16 *a = w.r<u16>(i.o[1]), *b = w.r<u16>(i.o[2]), *c = w.r<u16>(i.o[3]); const int n = i.n;
  EACH(m, d[l] = half_op<kB>(i, a[l], n > 1 ? b[l] : 0, n > 2 ? c[l] : 0)) return OK; }
template <bool kB> int half2(Warp& w, const Ins& i, u32 m) { u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]), *c = w.r<u32>(i.o[3]); const int n = i.n;
  EACH(m, { u32 x = a[l], y = n > 1 ? b[l] : 0, z = n > 2 ? c[l] : 0; d[l] = half_op<kB>(i, x, y, z) | u32(half_op<kB>(i, x >> 16, y >> 16, z >> 16)) << 16; }) return OK; }

// ---- comparison into predicates (bits of a word)
enum Cmp { EQ, NE, LT, LE, GT, GE, EQU, NEU, LTU, LEU, GTU, GEU, NUM, NAN_ };
template <class T, int C> inline bool cmp1(T a, T b) {
  if constexpr (C == EQ) return a == b; if constexpr (C == NE) return a < b || a > b; if constexpr (C == LT) return a < b; if constexpr (C == LE) return a <= b; if constexpr (C == GT) return a > b; if constexpr (C == GE) return a >= b;
  if constexpr (C == EQU) return !(a < b || a > b); if constexpr (C == NEU) return !(a == b); if constexpr (C == LTU) return !(a >= b); if constexpr (C == LEU) return !(a > b); if constexpr (C == GTU) return !(a <= b); if constexpr (C == GEU) return !(a < b);
  if constexpr (C == NUM) return a == a && b == b; if constexpr (C == NAN_) return a != a || b != b; return false;
}
void finish_setp(Warp& w, const Ins& i, u32 m, u32 bits) {
  u32 other = ~0u;
  if (i.a) { other = *w.r<u32>(i.o[4]); if (i.flag) other = ~other; }
  auto join = [&](u32 x) { return i.a == 1 ? x & other : i.a == 2 ? x | other : i.a == 3 ? x ^ other : x; };
  u32* d = w.r<u32>(i.o[0]); u32 first = join(bits), second = join(~bits);
  *d = (*d & ~m) | (first & m);
  if (i.flag2) { u32* q = w.r<u32>(i.o[3]); *q = (*q & ~m) | (second & m); }
}
template <class T, int C> int setp(Warp& w, const Ins& i, u32 m) {
  const T *a = w.r<T>(i.o[1]), *b = w.r<T>(i.o[2]); u32 bits = 0;
  for (int l = 0; l < 32; ++l) bits |= u32(cmp1<T, C>(a[l], b[l])) << l;
  finish_setp(w, i, m, bits); return OK;
}
template <bool kB, int C> int setp_half(Warp& w, const Ins& i, u32 m) {
  const u16 *a = w.r<u16>(i.o[1]), *b = w.r<u16>(i.o[2]); u32 bits = 0;
  for (int l = 0; l < 32; ++l) bits |= u32(cmp1<float, C>(up<kB>(a[l]), up<kB>(b[l]))) << l;
  finish_setp(w, i, m, bits); return OK;
}
template <bool kB, int C> int setp_half2(Warp& w, const Ins& i, u32 m) {  // p|q: low and high
  const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]); u32 lo = 0, hi = 0;
  for (int l = 0; l < 32; ++l) { lo |= u32(cmp1<float, C>(up<kB>(a[l]), up<kB>(b[l]))) << l; hi |= u32(cmp1<float, C>(up<kB>(a[l] >> 16), up<kB>(b[l] >> 16))) << l; }
  u32* d = w.r<u32>(i.o[0]); *d = (*d & ~m) | (lo & m); if (i.flag2) { u32* q = w.r<u32>(i.o[3]); *q = (*q & ~m) | (hi & m); } return OK;
}
template <class T, int C> int set_(Warp& w, const Ins& i, u32 m) {  // a: 0 u32/s32 all ones, 1 f32 1.0
  const T *a = w.r<T>(i.o[1]), *b = w.r<T>(i.o[2]); u32* d = w.r<u32>(i.o[0]); EACH(m, d[l] = cmp1<T, C>(a[l], b[l]) ? (i.a ? 0x3f800000u : ~0u) : 0u) return OK;
}
template <bool kB, int C> int set_half(Warp& w, const Ins& i, u32 m) {  // two halves to masks or ones
  const u32 *a = w.r<u32>(i.o[1]), *b = w.r<u32>(i.o[2]); u32* d = w.r<u32>(i.o[0]); const u32 one = i.a == 2 ? (kB ? 0x3f80 : 0x3c00) : 0xffff;
  EACH(m, d[l] = (cmp1<float, C>(up<kB>(a[l]), up<kB>(b[l])) ? one : 0u) | (cmp1<float, C>(up<kB>(a[l] >> 16), up<kB>(b[l] >> 16)) ? one << 16 : 0u)) return OK;
}
template <class T> int selp(Warp& w, const Ins& i, u32 m) { T* d = w.r<T>(i.o[0]); const T *a = w.r<T>(i.o[1]), *b = w.r<T>(i.o[2]); u32 p = *w.r<u32>(i.o[3]); if (i.flag) p = ~p; EACH(m, d[l] = p >> l & 1 ? a[l] : b[l]) return OK; }
template <int K> int pred_op(Warp& w, const Ins& i, u32 m) {
  u32 *d = w.r<u32>(i.o[0]), a = *w.r<u32>(i.o[1]), b = *w.r<u32>(i.o[2]);
  if (i.flag) a = ~a; if (i.flag2) b = ~b;
  u32 r = K == 0 ? a & b : K == 1 ? a | b : K == 2 ? a ^ b : K == 3 ? ~a : a; *d = (*d & ~m) | (r & m); return OK;
}

// ---- mov between vectors and scalars
int mov_unpack(Warp& w, const Ins& i, u32 m) {  // n parts of width bytes from a register of n*width
  const u8* a = reinterpret_cast<const u8*>(w.R + i.o[1]); const int size = i.n * i.width;
  for (int k = 0; k < i.n; ++k) { if (!i.ext[k]) continue; u8* d = reinterpret_cast<u8*>(w.R + i.ext[k]); EACH(m, memcpy(d + l * i.width, a + l * size + k * i.width, i.width)) }
  return OK;
}
int mov_pack(Warp& w, const Ins& i, u32 m) {
  u8* d = reinterpret_cast<u8*>(w.R + i.o[0]); const int size = i.n * i.width; u8 room[512];
  for (int k = 0; k < i.n; ++k) { const u8* a = reinterpret_cast<const u8*>(w.R + i.ext[k]); for (int l = 0; l < 32; ++l) memcpy(room + l * size + k * i.width, a + l * i.width, i.width); }
  EACH(m, memcpy(d + l * size, room + l * size, size)) return OK;
}
int mov_address(Warp& w, const Ins& i, u32 m) { u64* d = w.r<u64>(i.o[0]); const u64* b = w.r<u64>(i.base); EACH(m, d[l] = b[l] + i.imm) return OK; }
int cvta_shared(Warp& w, const Ins& i, u32 m) { u64* d = w.r<u64>(i.o[0]); LaneAddresses a(w, i); EACH(m, d[l] = kSharedTag | u32(a[l])) return OK; }
int cvta_to_shared(Warp& w, const Ins& i, u32 m) { u64* d = w.r<u64>(i.o[0]); LaneAddresses a(w, i); EACH(m, d[l] = u32(a[l])) return OK; }
int isspacep(Warp& w, const Ins& i, u32 m) { u32* d = w.r<u32>(i.o[0]); const u64* a = w.r<u64>(i.o[1]); u32 bits = 0; for (int l = 0; l < 32; ++l) bits |= u32((a[l] & kSharedTag) != 0) << l; if (i.a) bits = ~bits; *d = (*d & ~m) | (bits & m); return OK; }
int clock_(Warp& w, const Ins& i, u32 m) { if (i.width == 8) { u64* d = w.r<u64>(i.o[0]); EACH(m, d[l] = w.executed * 4) } else { u32* d = w.r<u32>(i.o[0]); EACH(m, d[l] = w.executed * 4) } return YIELD; }

// ---- cvt
template <class D, class S> int cvt_int(Warp& w, const Ins& i, u32 m) { D* d = w.r<D>(i.o[0]); const S* a = w.r<S>(i.o[1]); EACH(m, d[l] = static_cast<D>(a[l])) return OK; }
// General: a: source kind index, b: destination; width of registers in width (destination) and n (source).
struct CvtInfo { Type to, from; int to_reg, from_reg; int rounding; bool sat, ftz, relu; };
std::vector<CvtInfo> cvts;
double round_to(double x, int mode) { switch (mode) { case 0: return std::nearbyint(x); case 1: return std::trunc(x); case 2: return std::floor(x); default: return std::ceil(x); } }
float round_float(double x, int mode) {  // of an exact double
  float f = static_cast<float>(x); if (mode == 0 || f != f || double(f) == x) return f;
  if (mode == 1) return std::abs(double(f)) > std::abs(x) ? std::nextafterf(f, 0.0f) : f;
  if (mode == 2) return double(f) > x ? std::nextafterf(f, -INFINITY) : f;
  return double(f) < x ? std::nextafterf(f, INFINITY) : f;
}
int cvt_general(Warp& w, const Ins& i, u32 m) {
  const CvtInfo c = cvts[i.a];
  for (u32 k = m; k; k &= k - 1) {
    const int l = __builtin_ctz(k);
    u64 raw = 0; memcpy(&raw, w.R + i.o[1] + l * c.from_reg, c.from_reg);
    bool from_float = strchr("fgt", c.from.kind) != nullptr; double x = 0; __int128 v = 0;
    if (c.from.bits < 64) raw &= (1ull << c.from.bits) - 1;
    if (c.from.kind == 'f') { if (c.from.bits == 16) x = h2f(raw); else if (c.from.bits == 32) { float f; u32 b = raw; memcpy(&f, &b, 4); if (c.ftz) f = flush(f); x = f; } else memcpy(&x, &raw, 8); }
    else if (c.from.kind == 'g') x = bf2f(raw);
    else if (c.from.kind == 's') v = c.from.bits == 64 ? s64(raw) : s64(raw << (64 - c.from.bits)) >> (64 - c.from.bits);
    else v = raw;
    u64 out = 0;
    if (c.to.kind == 'f' || c.to.kind == 'g' || c.to.kind == 't') {
      if (c.rounding >= 10 && from_float) x = round_to(x, c.rounding - 10);   // cvt.rni.f32.f32
      if (!from_float) {
        if (c.to.bits == 32) { float f; if (c.rounding == 0) f = v < 0 ? float(s64(v)) : float(u64(v)); else f = round_float(double(s64(v)), c.rounding); u32 b; memcpy(&b, &f, 4); out = b; goto store; }
        x = v < 0 ? double(s64(v)) : double(u64(v));
      }
      if (c.sat) x = x > 0 ? (x < 1 ? x : 1.0) : 0.0;
      if (c.relu && !(x > 0) && x == x) x = 0;
      if (c.to.kind == 't') { float f = static_cast<float>(x); u32 b; memcpy(&b, &f, 4); if (c.rounding == 4) b += 0x1000; else if (c.rounding == 0) b += 0xfff + (b >> 13 & 1); out = b & ~0x1fffu; if (x != x) out = 0x7fffffff; }
      else if (c.to.kind == 'g') out = x != x ? 0x7fff : d2bf(x, c.rounding % 10);
      else if (c.to.bits == 16) out = x != x ? 0x7fff : d2h(x, c.rounding % 10);
      else if (c.to.bits == 32) { float f = round_float(x, c.rounding % 10); if (c.ftz) f = flush(f); f = canonical(f); u32 b; memcpy(&b, &f, 4); out = b; }
      else { if (x != x) x = nan_of<double>(); memcpy(&out, &x, 8); }
    } else {
      const int bits = c.to.bits; const bool sgn = c.to.kind == 's';
      const __int128 low = sgn ? -((__int128)1 << (bits - 1)) : 0, high = sgn ? ((__int128)1 << (bits - 1)) - 1 : ((__int128)1 << bits) - 1;
      if (from_float) {
        if (x != x) v = (bits == 64) ? ((__int128)1 << 63) : 0;
        else { x = round_to(x, c.rounding % 10); v = x >= 1.8e19 ? high : x <= -9.3e18 ? low : (__int128)x; v = v < low ? low : v > high ? high : v; }
      } else if (c.sat) v = v < low ? low : v > high ? high : v;
      out = u64(v);
      // a narrow result fills its register by its sign
      if (bits < 64) { if (sgn) out = u64(s64(out << (64 - bits)) >> (64 - bits)); else out &= (1ull << bits) - 1; }
    }
  store:
    memcpy(w.R + i.o[0] + l * c.to_reg, &out, c.to_reg);
  }
  return OK;
}
int cvt_two(Warp& w, const Ins& i, u32 m) {  // cvt.rn.f16x2.f32 d, hi, lo
  const CvtInfo c = cvts[i.a]; u32* d = w.r<u32>(i.o[0]); const float *a = w.r<float>(i.o[1]), *b = w.r<float>(i.o[2]);
  auto one = [&](float f) -> u32 { double x = f; if (x != x) return 0x7fff; if (c.relu && !(x > 0)) x = 0; if (c.to.kind == 'F') { if (c.sat && std::abs(x) > 65504) x = std::copysign(65504.0, x); return d2h(x, c.rounding); } return d2bf(x, c.rounding); };
  EACH(m, d[l] = one(a[l]) << 16 | one(b[l])) return OK;
}
int cvt_pack(Warp& w, const Ins& i, u32 m) {  // cvt.pack.sat.<8|16 bits>.s32 d, a, b{, c}
  u32* d = w.r<u32>(i.o[0]); const s32 *a = w.r<s32>(i.o[1]), *b = w.r<s32>(i.o[2]); const u32* c = w.r<u32>(i.o[3]);
  const int bits = i.a; const bool sgn = i.flag; const s64 low = sgn ? -(1ll << (bits - 1)) : 0, high = sgn ? (1ll << (bits - 1)) - 1 : (1ll << bits) - 1; const u32 mask = (1u << bits) - 1;
  EACH(m, { u32 x = std::min<s64>(std::max<s64>(a[l], low), high) & mask, y = std::min<s64>(std::max<s64>(b[l], low), high) & mask; u32 r = x << bits | y; if (i.flag2) r |= c[l] << (2 * bits); d[l] = r; })
  return OK;
}
template <class F> Handler by_int(Type t, F f) {
  switch (t.bits * 2 + (t.kind == 's')) { case 32: return f(u16{}); case 33: return f(s16{}); case 64: return f(u32{}); case 65: return f(s32{}); case 128: return f(u64{}); case 129: return f(s64{}); }
  return nullptr;
}
#define INT_BIN(Op) by_int(t, [](auto x) -> Handler { using T = decltype(x); return &bin<T, T, Op<T>>; })
#define INT_UN(Op) by_int(t, [](auto x) -> Handler { using T = decltype(x); return &un<T, T, Op<T>>; })
int rounding_of(const Text& x) { for (auto& m : x.mods) { if (m == "rn") return 0; if (m == "rz") return 1; if (m == "rm") return 2; if (m == "rp") return 3; if (m == "rna") return 4; if (m == "rni") return 10; if (m == "rzi") return 11; if (m == "rmi") return 12; if (m == "rpi") return 13; } return -1; }

template <class T> Handler setp_int(int c) { switch (c) { case EQ: return &setp<T, EQ>; case NE: return &setp<T, NE>; case LT: return &setp<T, LT>; case LE: return &setp<T, LE>; case GT: return &setp<T, GT>; case GE: return &setp<T, GE>; } return nullptr; }
template <template <class, int> class F, class T> struct AllCmp;
#define ALL_CMP(F, T, c) [](int cc) -> Handler { switch (cc) { case EQ: return &F<T, EQ>; case NE: return &F<T, NE>; case LT: return &F<T, LT>; case LE: return &F<T, LE>; case GT: return &F<T, GT>; case GE: return &F<T, GE>; \
  case EQU: return &F<T, EQU>; case NEU: return &F<T, NEU>; case LTU: return &F<T, LTU>; case LEU: return &F<T, LEU>; case GTU: return &F<T, GTU>; case GEU: return &F<T, GEU>; case NUM: return &F<T, NUM>; case NAN_: return &F<T, NAN_>; } return nullptr; }(c)

int half_code(const std::string& op) { static const std::map<std::string, int> k = {{"add", 0}, {"sub", 1}, {"mul", 2}, {"div", 3}, {"fma", 4}, {"min", 5}, {"max", 6}, {"neg", 9}, {"abs", 10}, {"ex2", 11}, {"tanh", 12}}; auto it = k.find(op); return it == k.end() ? -1 : it->second; }
}  // namespace

bool decode_alu(Decoder& d, const Text& x, Ins& i) {
  const std::string& op = x.op; const auto& A = x.args; Type t = last_type(x);
  const bool is_half = strchr("FgG", t.kind) || (t.kind == 'f' && t.bits == 16);
  auto all = [&](int bytes) { i.n = A.size() - 1; i.o[0] = d.dst(A[0], bytes); for (size_t k = 1; k < A.size(); ++k) i.o[k] = d.src(A[k], bytes); };
  auto want = [&](size_t n) { if (A.size() != n) FAIL("%zu operands", A.size()); };
  const int bytes = std::max(t.bits / 8, 1);
  if (op == "membar" || op == "fence") {
    i.flag = has(x, "proxy") && has(x, "async"); if (has(x, "mbarrier_init") || (has(x, "proxy") && !i.flag)) { i.fn = [](Warp&, const Ins&, u32) -> int { return OK; }; return true; }
    i.fn = [](Warp& w, const Ins& i, u32) -> int { if (options.check_races) race_fence(w, i.flag); return OK; }; return true;
  }
  if (op == "nop" || op == "membar" || op == "fence" || op == "prefetch" || op == "prefetchu" || op == "discard" || op == "applypriority" || op == "createpolicy") {
    i.fn = [](Warp&, const Ins&, u32) -> int { return OK; }; return true;
  }
  // half arithmetic
  if (is_half && half_code(op) >= 0) {
    i.a = half_code(op); if (has(x, "NaN")) i.a += 2;
    if (op == "fma" || op == "add" || op == "sub" || op == "mul" || op == "ex2") { i.flag = has(x, "relu"); i.flag2 = has(x, "sat"); }
    int r = rounding_of(x); if (r > 0) FAIL("rounding of a half type");
    const bool two = t.kind == 'F' || t.kind == 'G', b = t.kind == 'g' || t.kind == 'G';
    all(two ? 4 : 2); i.fn = two ? (b ? &half2<true> : &half2<false>) : (b ? &half1<true> : &half1<false>); return true;
  }
  if (t.kind == 'S' || t.kind == 'W') { if (op != "add" && op != "min" && op != "max") return false; if (has(x, "relu")) FAIL("relu"); all(4); i.flag = t.kind == 'S'; i.fn = op == "add" ? &pair16<0> : op == "min" ? &pair16<1> : &pair16<2>; return true; }
  if (op == "add" || op == "sub" || op == "mul" || op == "div" || op == "fma" || op == "mad" || op == "rcp" || op == "sqrt") {
    if (t.kind == 'f') {
      static const std::map<std::string, int> code = {{"add", 0}, {"sub", 1}, {"mul", 2}, {"div", 3}, {"fma", 4}, {"mad", 4}, {"rcp", 5}, {"sqrt", 6}};
      i.a = code.at(op); int r = rounding_of(x); i.b = r < 0 ? 0 : r; i.flag = has(x, "ftz"); i.flag2 = has(x, "sat"); all(bytes);
      if ((op == "rcp" || op == "sqrt") && has(x, "approx")) { if (t.bits != 32) FAIL("approximation in double"); i.a = op == "rcp" ? 2 : 4; i.fn = &approx; return true; }
      const bool plain = !i.b && !i.flag && !i.flag2 && i.a < 5;
      if (plain && t.bits == 32) { static const Handler h[] = {&bin<float, float, FAdd<float>>, &bin<float, float, FSub<float>>, &bin<float, float, FMul<float>>, &bin<float, float, FDiv<float>>, &tern<float, float, float, FFma<float>>}; i.fn = h[i.a]; }
      else if (plain) { static const Handler h[] = {&bin<double, double, FAdd<double>>, &bin<double, double, FSub<double>>, &bin<double, double, FMul<double>>, &bin<double, double, FDiv<double>>, &tern<double, double, double, FFma<double>>}; i.fn = h[i.a]; }
      else i.fn = t.bits == 32 ? &slow_float<float> : &slow_float<double>;
      return true;
    }
    if (has(x, "cc")) FAIL("carry");
    if (has(x, "sat")) { all(4); i.fn = op == "add" ? &bin<s32, s32, AddSat> : op == "sub" ? &bin<s32, s32, SubSat> : nullptr; return i.fn != nullptr; }
    if (t.kind == 'b') t.kind = 'u';
    if (op == "mul" && has(x, "wide")) { want(3); i.o[0] = d.dst(A[0], 2 * bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], bytes);
      switch (t.bits * 2 + (t.kind == 's')) { case 32: i.fn = &bin<u32, u16, MulWide<u16>>; break; case 33: i.fn = &bin<s32, s16, MulWide<s16>>; break; case 64: i.fn = &bin<u64, u32, MulWide<u32>>; break; case 65: i.fn = &bin<s64, s32, MulWide<s32>>; break; } return true; }
    if (op == "mad" && has(x, "wide")) { want(4); i.o[0] = d.dst(A[0], 2 * bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], bytes); i.o[3] = d.src(A[3], 2 * bytes);
      switch (t.bits * 2 + (t.kind == 's')) { case 32: i.fn = &tern<u32, u16, u32, MadWide<u16>>; break; case 33: i.fn = &tern<s32, s16, s32, MadWide<s16>>; break; case 64: i.fn = &tern<u64, u32, u64, MadWide<u32>>; break; case 65: i.fn = &tern<s64, s32, s64, MadWide<s32>>; break; } return true; }
    all(bytes);
    if (op == "add") i.fn = INT_BIN(Add); else if (op == "sub") i.fn = INT_BIN(Sub); else if (op == "div") i.fn = INT_BIN(Div);
    else if (op == "mul") { if (has(x, "hi")) i.fn = INT_BIN(MulHi); else i.fn = INT_BIN(MulLo); }
    else if (op == "mad") { if (has(x, "hi")) i.fn = by_int(t, [](auto v) -> Handler { using T = decltype(v); return &tern<T, T, T, MadHi<T>>; }); else i.fn = by_int(t, [](auto v) -> Handler { using T = decltype(v); return &tern<T, T, T, MadLo<T>>; }); }
    return true;
  }
  if (op == "rem") { all(bytes); i.fn = INT_BIN(Rem); return true; }
  if (op == "min" || op == "max") {
    if (has(x, "relu") || has(x, "xorsign") || has(x, "abs")) FAIL("modifier");
    const bool mn = op == "min", nan = has(x, "NaN"); if (A.size() != 3) FAIL("three inputs"); all(bytes);
    if (t.kind == 'f') { if (t.bits == 32) i.fn = nan ? (mn ? &bin<float, float, FMinNan<float>> : &bin<float, float, FMaxNan<float>>) : (mn ? &bin<float, float, FMin<float>> : &bin<float, float, FMax<float>>);
      else i.fn = mn ? &bin<double, double, FMin<double>> : &bin<double, double, FMax<double>>; return true; }
    if (t.bits == 32 && t.kind != 's' && t.kind != 'u') return false;
    i.fn = mn ? INT_BIN(Min) : INT_BIN(Max); return true;
  }
  if (op == "neg" || op == "abs") { all(bytes); if (t.kind == 'f') i.fn = t.bits == 32 ? (op == "neg" ? &un<u32, u32, FNeg> : &un<u32, u32, FAbs>) : (op == "neg" ? &un<u64, u64, DNeg> : &un<u64, u64, DAbs>);
    else i.fn = op == "neg" ? INT_UN(Neg) : by_int({'s', t.bits}, [](auto v) -> Handler { using T = decltype(v); return &un<T, T, Abs<T>>; }); return true; }
  if (op == "copysign") { all(bytes); i.fn = t.bits == 32 ? &bin<u32, u32, Copysign> : &bin<u64, u64, Copysign64>; return true; }
  if (op == "testp") { static const char* k[] = {"finite", "infinite", "number", "notanumber", "normal", "subnormal"}; for (int n = 0; n < 6; ++n) if (has(x, k[n])) i.a = n; if (t.bits != 32) FAIL("double"); i.o[0] = d.pred(A[0]); i.o[1] = d.src(A[1], 4); i.fn = &testp; return true; }
  if ((op == "ex2" || op == "lg2" || op == "rsqrt" || op == "sin" || op == "cos" || op == "tanh") && t.kind == 'f' && t.bits == 32) {
    static const std::map<std::string, int> code = {{"ex2", 0}, {"lg2", 1}, {"rsqrt", 3}, {"sin", 5}, {"cos", 6}, {"tanh", 7}};
    want(2); all(4); i.a = code.at(op); i.flag = has(x, "ftz"); i.fn = &approx; return true;
  }
  if (op == "mul24" || op == "mad24") { all(4); if (has(x, "hi")) FAIL("hi"); i.fn = op == "mul24" ? (t.kind == 's' ? &bin<s32, s32, Mul24s> : &bin<u32, u32, Mul24>) : (t.kind == 's' ? &tern<s32, s32, s32, Mad24s> : &tern<u32, u32, u32, Mad24>); return true; }
  if (op == "sad") { all(bytes); i.fn = by_int(t, [](auto v) -> Handler { using T = decltype(v); return &tern<T, T, T, Sad<T>>; }); return true; }
  if (op == "and" || op == "or" || op == "xor" || op == "not") {
    if (t.kind == 'p') { i.o[0] = d.pred(A[0]); i.o[1] = d.pred(A[1]); i.flag = A[1].neg; i.o[2] = i.o[1]; if (A.size() > 2) { i.o[2] = d.pred(A[2]); i.flag2 = A[2].neg; } i.fn = op == "and" ? &pred_op<0> : op == "or" ? &pred_op<1> : op == "xor" ? &pred_op<2> : &pred_op<3>; return true; }
    all(bytes); t.kind = 'u'; i.fn = op == "and" ? INT_BIN(And) : op == "or" ? INT_BIN(Or) : op == "xor" ? INT_BIN(Xor) : INT_UN(Not); return true;
  }
  if (op == "cnot") { all(bytes); t.kind = 'u'; i.fn = INT_UN(Cnot); return true; }
  if (op == "shl" || op == "shr") {
    want(3); i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], 4); if (t.kind == 'b') t.kind = 'u';
    i.fn = op == "shl" ? by_int({'u', t.bits}, [](auto v) -> Handler { using T = decltype(v); return &shift<T, Shl<T>>; }) : by_int(t, [](auto v) -> Handler { using T = decltype(v); return &shift<T, Shr<T>>; }); return true;
  }
  if (op == "shf") { all(4); i.flag = has(x, "l"); i.flag2 = has(x, "wrap"); i.fn = &shf; return true; }
  if (op == "lop3") { if (A.size() != 5) FAIL("predicate of lop3"); i.o[0] = d.dst(A[0], 4); for (int k = 1; k < 4; ++k) i.o[k] = d.src(A[k], 4); i.a = A[4].imm; i.fn = &lop3; return true; }
  if (op == "prmt") { all(4); i.a = 0; static const char* modes[] = {"", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16"}; for (int k = 1; k < 7; ++k) if (has(x, modes[k])) i.a = k; i.fn = &prmt; return true; }
  if (op == "bfe") { want(4); i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], 4); i.o[3] = d.src(A[3], 4); i.a = t.bits; i.flag = t.kind == 's'; i.fn = &bfe; return true; }
  if (op == "bfi") { want(5); i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], bytes); i.o[3] = d.src(A[3], 4); i.o[4] = d.src(A[4], 4); i.fn = bytes == 4 ? &bfi<u32> : &bfi<u64>; return true; }
  if (op == "bmsk") { all(4); i.flag = has(x, "wrap"); i.fn = &bmsk; return true; }
  if (op == "popc" || op == "clz") { i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], bytes); i.fn = op == "popc" ? (bytes == 4 ? &un<u32, u32, Popc32> : &un<u32, u64, Popc64>) : (bytes == 4 ? &un<u32, u32, Clz32> : &un<u32, u64, Clz64>); return true; }
  if (op == "brev") { all(bytes); i.fn = bytes == 4 ? &un<u32, u32, Brev32> : &un<u64, u64, Brev64>; return true; }
  if (op == "bfind") { i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], bytes); const bool s = has(x, "shiftamt");
    switch (t.bits * 2 + (t.kind == 's')) { case 64: i.fn = s ? &un<u32, u32, Bfind<u32, true>> : &un<u32, u32, Bfind<u32, false>>; break; case 65: i.fn = s ? &un<u32, s32, Bfind<s32, true>> : &un<u32, s32, Bfind<s32, false>>; break;
      case 128: i.fn = s ? &un<u32, u64, Bfind<u64, true>> : &un<u32, u64, Bfind<u64, false>>; break; case 129: i.fn = s ? &un<u32, s64, Bfind<s64, true>> : &un<u32, s64, Bfind<s64, false>>; break; } return true; }
  if (op == "dp4a" || op == "dp2a") {
    all(4); std::vector<bool> sg; for (auto& mm : x.mods) { if (mm == "s32") sg.push_back(true); if (mm == "u32") sg.push_back(false); } if (sg.size() != 2) FAIL("types"); i.flag = has(x, "hi");
    if (op == "dp4a") i.fn = sg[0] ? (sg[1] ? &dp4a<true, true> : &dp4a<true, false>) : (sg[1] ? &dp4a<false, true> : &dp4a<false, false>);
    else i.fn = sg[0] ? (sg[1] ? &dp2a<true, true> : &dp2a<true, false>) : (sg[1] ? &dp2a<false, true> : &dp2a<false, false>);
    return true;
  }
  if (op == "setp" || op == "set") {
    static const std::map<std::string, int> code = {{"eq", EQ}, {"ne", NE}, {"lt", LT}, {"le", LE}, {"gt", GT}, {"ge", GE}, {"lo", LT}, {"ls", LE}, {"hi", GT}, {"hs", GE}, {"equ", EQU}, {"neu", NEU}, {"ltu", LTU}, {"leu", LEU}, {"gtu", GTU}, {"geu", GEU}, {"num", NUM}, {"nan", NAN_}};
    auto cit = code.find(x.mods[0]); if (cit == code.end()) return false; const int c = cit->second;
    if (op == "set") {
      want(3); Type dt; std::vector<Type> ty; for (auto& mm : x.mods) if (parse_type(mm, &dt)) ty.push_back(dt); if (ty.size() != 2) FAIL("types");
      if (ty[1].kind == 'F' || ty[1].kind == 'G') { i.a = ty[0].kind == 'u' || ty[0].kind == 's' ? 0 : 2; i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 4); i.o[2] = d.src(A[2], 4); i.fn = ty[1].kind == 'G' ? ALL_CMP(set_half, true, c) : ALL_CMP(set_half, false, c); return true; }
      if (ty[0].bits != 32) FAIL("set with a result of %d bits", ty[0].bits);
      i.a = ty[0].kind == 'f'; const int sb = ty[1].bits / 8; i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], sb); i.o[2] = d.src(A[2], sb);
      if (ty[1].kind == 'f') i.fn = sb == 4 ? ALL_CMP(set_, float, c) : nullptr;
      else if (ty[1].kind == 's') i.fn = sb == 4 ? ALL_CMP(set_, s32, c) : nullptr; else i.fn = sb == 4 ? ALL_CMP(set_, u32, c) : nullptr;
      return i.fn != nullptr;
    }
    i.o[0] = d.pred(A[0]); if (!A[0].second.empty()) { Operand q = A[0]; q.name = q.second; i.o[3] = d.pred(q); i.flag2 = true; }
    i.a = has(x, "and") ? 1 : has(x, "or") ? 2 : has(x, "xor") ? 3 : 0;
    if (i.a) { want(4); i.o[4] = d.pred(A[3]); i.flag = A[3].neg; } else want(3);
    const int by = t.kind == 'F' || t.kind == 'G' ? 4 : bytes; i.o[1] = d.src(A[1], by); i.o[2] = d.src(A[2], by);
    if (t.kind == 'f') i.fn = t.bits == 32 ? ALL_CMP(setp, float, c) : t.bits == 64 ? ALL_CMP(setp, double, c) : ALL_CMP(setp_half, false, c);
    else if (t.kind == 'g') i.fn = ALL_CMP(setp_half, true, c); else if (t.kind == 'F') i.fn = ALL_CMP(setp_half2, false, c); else if (t.kind == 'G') i.fn = ALL_CMP(setp_half2, true, c);
    else if (t.kind == 's') i.fn = t.bits == 16 ? setp_int<s16>(c) : t.bits == 32 ? setp_int<s32>(c) : setp_int<s64>(c);
    else i.fn = t.bits == 16 ? setp_int<u16>(c) : t.bits == 32 ? setp_int<u32>(c) : setp_int<u64>(c);
    if ((t.kind == 'F' || t.kind == 'G') && i.a) FAIL("combined comparison of two halves");
    return true;
  }
  if (op == "selp") { want(4); i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], bytes); i.o[3] = d.pred(A[3]); i.flag = A[3].neg; i.fn = bytes == 2 ? &selp<u16> : bytes == 4 ? &selp<u32> : &selp<u64>; return true; }
  if (op == "vabsdiff4") { std::vector<Type> ty; Type q; for (auto& mm : x.mods) if (parse_type(mm, &q)) ty.push_back(q); if (ty.size() != 3 || ty[1].kind != ty[2].kind || has(x, "sat")) FAIL("form"); all(4); i.flag = ty[1].kind == 's'; i.flag2 = has(x, "add"); i.fn = &vabsdiff4; return true; }
  if (op == "slct") { std::vector<Type> ty; Type q; for (auto& mm : x.mods) if (parse_type(mm, &q)) ty.push_back(q); if (ty.size() != 2 || ty[0].bits != 32) FAIL("types"); all(4); i.flag = ty[1].kind == 'f'; i.fn = &slct; return true; }
  if (op == "mov") {
    want(2);
    if (t.kind == 'p') { i.o[0] = d.pred(A[0]); i.o[1] = i.o[2] = d.pred(A[1]); i.flag = A[1].neg; i.fn = &pred_op<4>; return true; }
    if (A[0].kind == Operand::VEC) { i.n = A[0].elems.size(); i.width = bytes / i.n; i.o[1] = d.src(A[1], bytes); for (auto& e : A[0].elems) i.ext.push_back(e.kind == Operand::SINK ? 0 : d.dst(e, std::max<int>(i.width, 2))); if (i.width == 1) FAIL("bytes"); i.fn = &mov_unpack; return true; }
    if (A[1].kind == Operand::VEC) { i.n = A[1].elems.size(); i.width = bytes / i.n; i.o[0] = d.dst(A[0], bytes); for (auto& e : A[1].elems) i.ext.push_back(d.src(e, i.width)); if (i.width == 1) FAIL("bytes"); i.fn = &mov_pack; return true; }
    if (A[1].name.rfind("%clock", 0) == 0 || A[1].name.rfind("%globaltimer", 0) == 0) { i.width = bytes; i.o[0] = d.dst(A[0], bytes); i.fn = &clock_; return true; }
    if (A[1].kind == Operand::NAME) {
      auto it = d.symbols.find(A[1].name);
      if (it != d.symbols.end() && (it->second.space == LOCAL || it->second.space == PARAM)) { i.o[0] = d.dst(A[0], 8); i.base = d.kernel->specials + (it->second.space == LOCAL ? LOCAL_BASE : PARAM_BASE) * 256; i.imm = it->second.value + A[1].offset; i.fn = &mov_address; return true; }
    }
    if (A[1].kind == Operand::REG && A[1].name.rfind("%", 0) == 0) { int sb = 4; if (d.special(A[1].name, &sb) && sb != bytes) { i.o[0] = d.dst(A[0], bytes); i.o[1] = d.special(A[1].name); if (bytes == 8) i.fn = &cvt_int<u64, u32>; else if (bytes == 2) i.fn = &cvt_int<u16, u32>; return true; } }
    i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); t.kind = 'u'; i.fn = INT_UN(Move); return true;
  }
  if (op == "cvta") {
    want(2); const bool to = has(x, "to");
    const bool shared = has(x, "shared") || has(x, "shared::cta") || has(x, "shared::cluster");
    if (A[1].kind == Operand::NAME) { auto it = d.symbols.find(A[1].name); if (it == d.symbols.end()) FAIL("unknown symbol"); i.imm = it->second.value + A[1].offset; i.base = it->second.space == LOCAL ? static_cast<s32>(d.kernel->specials + LOCAL_BASE * 256) : it->second.space == PARAM ? static_cast<s32>(d.kernel->specials + PARAM_BASE * 256) : -1; }
    else { i.base = d.src(A[1], bytes); i.base64 = bytes == 8; }
    i.o[0] = d.dst(A[0], 8);
    if (shared) i.fn = to ? &cvta_to_shared : &cvta_shared;
    else i.fn = [](Warp& w, const Ins& i, u32 m) -> int { u64* dd = w.r<u64>(i.o[0]); LaneAddresses a(w, i); EACH(m, dd[l] = a[l]) return OK; };
    return true;
  }
  if (op == "isspacep") { i.o[0] = d.pred(A[0]); i.o[1] = d.src(A[1], 8); i.a = has(x, "global"); if (!i.a && !has(x, "shared") && !has(x, "shared::cta") && !has(x, "shared::cluster")) FAIL("space"); i.fn = &isspacep; return true; }
  if (op == "cvt") {
    if (has(x, "pack")) { std::vector<Type> ty; Type q; for (auto& mm : x.mods) if (parse_type(mm, &q)) ty.push_back(q); i.a = ty[0].bits; i.flag = ty[0].kind == 's'; if (!has(x, "sat") || i.a < 8) FAIL("form"); i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 4); i.o[2] = d.src(A[2], 4); i.flag2 = A.size() > 3; if (i.flag2) i.o[3] = d.src(A[3], 4); i.fn = &cvt_pack; return true; }
    std::vector<Type> ty; Type q; for (auto& mm : x.mods) if (parse_type(mm, &q)) ty.push_back(q);
    if (ty.size() != 2) FAIL("types of a conversion");
    int r = rounding_of(x); CvtInfo c{ty[0], ty[1], 0, 0, r < 0 ? 0 : r, has(x, "sat") || has(x, "satfinite"), has(x, "ftz"), has(x, "relu")};
    if (ty[0].kind == 'F' || ty[0].kind == 'G') { want(3); i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 4); i.o[2] = d.src(A[2], 4); cvts.push_back(c); i.a = cvts.size() - 1; i.fn = &cvt_two; return true; }
    want(2); c.to_reg = d.reg(A[0]).bytes; c.from_reg = A[1].kind == Operand::REG ? d.reg(A[1]).bytes : std::max(2, ty[1].bits / 8);
    i.o[0] = d.reg(A[0]).offset; i.o[1] = A[1].kind == Operand::REG ? d.reg(A[1]).offset : d.src(A[1], c.from_reg);
    const bool ints = strchr("sub", ty[0].kind) && strchr("sub", ty[1].kind) && !c.sat;
    if (ints && c.to_reg * 8 == ty[0].bits && c.from_reg * 8 == ty[1].bits) {
      const bool s = ty[1].kind == 's'; const int k = ty[0].bits * 1000 + ty[1].bits;
      switch (k) {
        case 16016: i.fn = &cvt_int<u16, u16>; break; case 16032: i.fn = &cvt_int<u16, u32>; break; case 16064: i.fn = &cvt_int<u16, u64>; break;
        case 32016: i.fn = s ? &cvt_int<s32, s16> : &cvt_int<u32, u16>; break; case 32032: i.fn = &cvt_int<u32, u32>; break; case 32064: i.fn = &cvt_int<u32, u64>; break;
        case 64016: i.fn = s ? &cvt_int<s64, s16> : &cvt_int<u64, u16>; break; case 64032: i.fn = s ? &cvt_int<s64, s32> : &cvt_int<u64, u32>; break; case 64064: i.fn = &cvt_int<u64, u64>; break;
      }
    }
    if (ty[0].kind == 'f' && ty[0].bits == 32 && c.rounding == 0 && !c.sat && ty[1].bits == 32 && c.from_reg == 4 && c.to_reg == 4) { if (ty[1].kind == 's') i.fn = &cvt_int<float, s32>; if (ty[1].kind == 'u') i.fn = &cvt_int<float, u32>; }
    if (!i.fn) { if (ty[0].bits < 8 || ty[1].bits < 8) FAIL("type"); cvts.push_back(c); i.a = cvts.size() - 1; i.fn = &cvt_general; }
    return true;
  }
  return false;
}
