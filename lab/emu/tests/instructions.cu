// Single instructions against what the host computes.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <vector>
#include <cassert>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
constexpr int N = 1 << 14;
static std::vector<uint32_t> inputs(uint64_t seed) {
  std::mt19937_64 g(seed); std::vector<uint32_t> v(N);
  const uint32_t special[] = {0, 1, 0x80000000u, 0x7fffffffu, 0xffffffffu, 0x3f800000u, 0xbf800000u, 0x7f800000u, 0xff800000u, 0x7fc00000u, 0x00400000u, 0x477fe000u, 0x38000000u, 0x33000000u, 0x3f000000u, 0x3fc00000u, 0x4b000000u, 0xcf000000u, 0x4f000000u, 0x42fe0000u, 0x42ff0000u};
  for (int i = 0; i < N; ++i) { int k = g() % 4; if (k == 0) v[i] = special[g() % 21]; else if (k == 1) v[i] = g(); else { float f = std::ldexp(float(int(g() % 20001) - 10000) / 777.0f, int(g() % 12) - 6); if (k == 3) f = std::round(f * 2) / 2; memcpy(&v[i], &f, 4); } }
  return v;
}
template <class F> __global__ void run(F f, const uint32_t* a, const uint32_t* b, const uint32_t* c, uint32_t* d) { int i = blockIdx.x * blockDim.x + threadIdx.x; d[i] = f(a[i], b[i], c[i]); }
static uint32_t *A, *B, *C, *D; static int bad = 0, count = 0;
static bool same_float(uint32_t x, uint32_t y, int ulp) { float f, g; memcpy(&f, &x, 4); memcpy(&g, &y, 4); if (f != f && g != g) return true; return std::llabs((long long)(int32_t)x - (int32_t)y) <= ulp; }
// kind 0: bits, 1: float (NaNs equal), n: n-1 ulp, -1: halves (NaNs equal), -2: bfloat16s
template <class F, class H> void test(const char* name, F f, H h, int kind = 0) {
  run<<<N / 128, 128>>>(f, A, B, C, D); if (cudaError_t e = cudaGetLastError()) { printf("%s: %s\n", name, cudaGetErrorString(e)); ++bad; return; }
  ++count; int wrong = 0;
  for (int i = 0; i < N; ++i) {
    uint32_t w = h(A[i], B[i], C[i]); bool ok = D[i] == w;
    if (kind > 0) ok = ok || same_float(D[i], w, kind - 1);
    if (kind < 0) for (ok = true; auto s : {0, 16}) { uint16_t x = D[i] >> s, y = w >> s; auto nan = [&](uint16_t v) { return kind == -1 ? (v & 0x7fff) > 0x7c00 : (v & 0x7fff) > 0x7f80; }; ok = ok && (x == y || (nan(x) && nan(y))); }
    if (kind != 99 && !ok && wrong++ < 2) printf("WRONG %s(%#x, %#x, %#x) = %#x, should be %#x\n", name, A[i], B[i], C[i], D[i], w);
  }
  if (wrong) { printf("  %d of %d wrong: %s\n", wrong, N, name); ++bad; }
}
#define DEV [=] __device__(uint32_t a, uint32_t b, uint32_t c) -> uint32_t
#define HOST [=](uint32_t a, uint32_t b, uint32_t c) -> uint32_t
static inline float F(uint32_t u) { float f; memcpy(&f, &u, 4); return f; }
static inline uint32_t I(float f) { uint32_t u; memcpy(&u, &f, 4); return u; }
static uint16_t half_of(double x, int mant, int emin, int bias, double top) {  // round to nearest even, independent of the emulator's
  if (x != x) return 0x7fff; uint16_t sign = std::signbit(x) ? 0x8000 : 0; long double v = std::fabs((long double)x); if (v == 0) return sign;
  int e; frexpl(v, &e); --e; if (e < emin) e = emin; long double q = ldexpl(v, mant - e), f = floorl(q), r = q - f; if (r > 0.5L || (r == 0.5L && fmodl(f, 2) == 1)) f += 1; long double z = ldexpl(f, e - mant); if (z > top) return sign | (((2 * bias + 1) << mant));
  if (f < ldexpl(1, mant)) return sign | uint16_t(f); frexpl(z, &e); --e; return sign | uint16_t((e + bias) << mant) | (uint16_t(ldexpl(z, mant - e)) & ((1 << mant) - 1));
}
static uint16_t toh(double x) { return half_of(x, 10, -14, 15, 65504); }
static uint16_t tob(double x) { return half_of(x, 7, -126, 127, 3.3895313892515355e38); }
static double fromh(uint16_t h) { int e = h >> 10 & 31, m = h & 1023; double v = e == 31 ? (m ? NAN : INFINITY) : e ? std::ldexp(1024 + m, e - 25) : std::ldexp(m, -24); return h & 0x8000 ? -v : v; }
static double fromb(uint16_t h) { return F(uint32_t(h) << 16); }
static long double fma_exact(double a, double b, double c) { return (long double)a * b + c; }
template <class T> static T sat(double x, double lo, double hi) { if (x != x) return 0; return x < lo ? T(lo) : x > hi ? T(hi) : T(x); }
int main() {
  for (auto p : {&A, &B, &C, &D}) cudaMalloc((void**)p, N * 4);
  auto a = inputs(1), b = inputs(2), c = inputs(3); memcpy(A, a.data(), N * 4); memcpy(B, b.data(), N * 4); memcpy(C, c.data(), N * 4);
  test("add", DEV { return a + b; }, HOST { return a + b; });
  test("mulhi", DEV { return __umulhi(a, b); }, HOST { return uint64_t(a) * b >> 32; });
  test("mulhi s", DEV { return __mulhi(int(a), int(b)); }, HOST { return int64_t(int(a)) * int(b) >> 32; });
  test("mul24", DEV { return __mul24(int(a), int(b)); }, HOST { return uint32_t(int64_t(int(a << 8) >> 8) * (int(b << 8) >> 8)); });
  test("div", DEV { return a / (b | 1); }, HOST { return a / (b | 1); });
  test("rem s", DEV { return int(a) % int(b | 5); }, HOST { return int64_t(int(a)) % int(b | 5); });
  test("div64", DEV { return (uint64_t(a) << 20 | b) / (c | 1); }, HOST { return (uint64_t(a) << 20 | b) / (c | 1); });
  test("prmt", DEV { return __byte_perm(a, b, c); }, HOST { uint64_t v = uint64_t(b) << 32 | a; uint32_t r = 0; for (int k = 0; k < 4; ++k) r |= uint32_t(v >> (c >> 4 * k & 7) * 8 & 255) << 8 * k; return r; });
  test("prmt sign", DEV { uint32_t d; asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }, HOST { uint64_t v = uint64_t(b) << 32 | a; uint32_t r = 0; for (int k = 0; k < 4; ++k) { uint8_t x = v >> (c >> 4 * k & 7) * 8; if (c >> 4 * k & 8) x = x & 128 ? 255 : 0; r |= uint32_t(x) << 8 * k; } return r; });
  test("shf.l.wrap", DEV { return __funnelshift_l(a, b, c); }, HOST { int n = c & 31; return n ? b << n | a >> (32 - n) : b; });
  test("shf.r.clamp", DEV { return __funnelshift_rc(a, b, c); }, HOST { uint32_t n = c < 32 ? c : 32; return n == 0 ? a : n == 32 ? b : b << (32 - n) | a >> n; });
  test("bfe.s", DEV { int d; asm("bfe.s32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b & 31), "r"(c & 31)); return d; }, HOST { uint32_t p = b & 31, n = c & 31; if (!n) return 0; int64_t v = int64_t(int(a)) >> p; if (p + n > 32) n = 32 - p; return uint32_t(int64_t(uint64_t(v) << (64 - n)) >> (64 - n)); });
  test("bfi", DEV { uint32_t d; asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c & 31), "r"(c >> 8 & 31)); return d; }, HOST { uint32_t p = c & 31, n = c >> 8 & 31; uint64_t m = ((1ull << n) - 1) << p; return (b & ~m) | ((uint64_t(a) << p) & m); });
  test("dp4a", DEV { return __dp4a(int(a), int(b), int(c)); }, HOST { uint32_t r = c; for (int k = 0; k < 32; k += 8) r += int8_t(a >> k) * int8_t(b >> k); return r; });
  test("dp4a u", DEV { return __dp4a(a, b, c); }, HOST { uint32_t r = c; for (int k = 0; k < 32; k += 8) r += uint8_t(a >> k) * uint8_t(b >> k); return r; });
  test("popc clz ffs brev", DEV { return __popc(a) + __clz(b) * 64 + __ffs(c) * 4096 + (__brev(a) & 0xff00000); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; ++k) r |= (a >> k & 1) << (31 - k); return __builtin_popcount(a) + (b ? __builtin_clz(b) : 32) * 64 + __builtin_ffs(c) * 4096 + (r & 0xff00000); });
  test("lop3", DEV { uint32_t d; asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(d) : "r"(a), "r"(b), "r"(c)); return d; }, HOST { return (a & b) | (~a & c); });
  test("vmaxs2", DEV { return __vmaxs2(a, b); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) r |= uint32_t(uint16_t(std::max(int16_t(a >> k), int16_t(b >> k)))) << k; return r; });
  test("vadd4", DEV { return __vadd4(a, b); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 8) r |= uint32_t(uint8_t((a >> k) + (b >> k))) << k; return r; });
  test("vabsdiffs4", DEV { return __vabsdiffs4(a, b); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 8) r |= uint32_t(uint8_t(std::abs(int8_t(a >> k) - int8_t(b >> k)))) << k; return r; });
  test("vabsdiffu4", DEV { return __vabsdiffu4(a, b); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 8) r |= uint32_t(uint8_t(std::abs(uint8_t(a >> k) - uint8_t(b >> k)))) << k; return r; });
  test("cvt.pack", DEV { uint32_t d; asm("cvt.pack.sat.s8.s32.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(int(a) >> 20), "r"(int(b) >> 22), "r"(c)); return d; }, HOST { auto s = [](int v) { return uint32_t(uint8_t(int8_t(std::min(std::max(v, -128), 127)))); }; return c << 16 | s(int(a) >> 20) << 8 | s(int(b) >> 22); });
  test("cvt s8", DEV { int d; asm("cvt.sat.s8.s32 %0, %1;" : "=r"(d) : "r"(int(a) >> 18)); return d & 255; }, HOST { return uint8_t(std::min(std::max(int(a) >> 18, -128), 127)); });
  test("fadd", DEV { return __float_as_uint(__fadd_rn(__uint_as_float(a), __uint_as_float(b))); }, HOST { return I(F(a) + F(b)); }, 1);
  test("fma", DEV { return __float_as_uint(__fmaf_rn(__uint_as_float(a), __uint_as_float(b), __uint_as_float(c))); }, HOST { return I(std::fma(F(a), F(b), F(c))); }, 1);
  test("add.rz", DEV { return __float_as_uint(__fadd_rz(__uint_as_float(a), __uint_as_float(b))); }, HOST { float x = F(a), y = F(b), f = x + y; double e = double(f) - x - y; if (std::isinf(x) || std::isinf(y) || f != f) return I(f); float z = f - x; double err = double(x - (f - z)) + double(y - z); (void)e; if (std::isinf(f)) return I(std::nextafter(f, 0.0f)); if ((f > 0 && err < 0) || (f < 0 && err > 0)) f = std::nextafter(f, 0.0f); return I(f); }, 1);
  test("mul.ru", DEV { return __float_as_uint(__fmul_ru(__uint_as_float(a), __uint_as_float(b))); }, HOST { double s = double(F(a)) * F(b); float f = (float)s; if (double(f) < s) f = std::nextafter(f, INFINITY); return I(f); }, 1);
  test("div.rn", DEV { return __float_as_uint(__fdiv_rn(__uint_as_float(a), __uint_as_float(b))); }, HOST { return I(F(a) / F(b)); }, 1);
  test("sqrt.rn", DEV { return __float_as_uint(__fsqrt_rn(__uint_as_float(a))); }, HOST { return I(std::sqrt(F(a))); }, 1);
  test("rcp.rn", DEV { return __float_as_uint(__frcp_rn(__uint_as_float(a))); }, HOST { return I(1.0f / F(a)); }, 1);
  test("min", DEV { return __float_as_uint(fminf(__uint_as_float(a), __uint_as_float(b))); }, HOST { float x = F(a), y = F(b); if (x != x) return I(y); if (y != y) return I(x); if (x == y) return std::signbit(x) ? a : b; return I(x < y ? x : y); }, 1);
  test("saturate", DEV { return __float_as_uint(__saturatef(__uint_as_float(a))); }, HOST { float x = F(a); return I(x > 0 ? (x < 1 ? x : 1) : 0); });
  test("fma.sat", DEV { float d; asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(d) : "f"(__uint_as_float(a)), "f"(__uint_as_float(b)), "f"(__uint_as_float(c))); return __float_as_uint(d); }, HOST { float x = std::fma(F(a), F(b), F(c)); return I(x > 0 ? (x < 1 ? x : 1) : 0); });
  test("f2i rn", DEV { return __float2int_rn(__uint_as_float(a)); }, HOST { return sat<int32_t>(std::nearbyint(double(F(a))), -2147483648.0, 2147483647.0); });
  test("f2i rz", DEV { return __float2int_rz(__uint_as_float(a)); }, HOST { return sat<int32_t>(std::trunc(double(F(a))), -2147483648.0, 2147483647.0); });
  test("f2i rd", DEV { return __float2int_rd(__uint_as_float(a)); }, HOST { return sat<int32_t>(std::floor(double(F(a))), -2147483648.0, 2147483647.0); });
  test("f2u", DEV { return __float2uint_rn(__uint_as_float(a)); }, HOST { return sat<uint32_t>(std::nearbyint(double(F(a))), 0.0, 4294967295.0); });
  test("i2f", DEV { return __float_as_uint(__int2float_rn(int(a))); }, HOST { return I(float(int(a))); });
  test("i2f rz", DEV { return __float_as_uint(__uint2float_rz(a)); }, HOST { float f = float(a); if (double(f) > a) f = std::nextafter(f, 0.0f); return I(f); });
  test("rint", DEV { return __float_as_uint(rintf(__uint_as_float(a))); }, HOST { return I(std::nearbyint(F(a))); }, 1);
  test("floor", DEV { return __float_as_uint(floorf(__uint_as_float(a))); }, HOST { return I(std::floor(F(a))); }, 1);
  test("f2h", DEV { return __half_as_ushort(__float2half_rn(__uint_as_float(a))); }, HOST { return toh(F(a)); }, -1);
  test("f2bf", DEV { return __bfloat16_as_ushort(__float2bfloat16_rn(__uint_as_float(a))); }, HOST { return tob(F(a)); }, -2);
  test("f22h2", DEV { __half2 h = __floats2half2_rn(__uint_as_float(a), __uint_as_float(b)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { return toh(F(a)) | uint32_t(toh(F(b))) << 16; }, -1);
  test("f22bf2", DEV { __nv_bfloat162 h = __floats2bfloat162_rn(__uint_as_float(a), __uint_as_float(b)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { return tob(F(a)) | uint32_t(tob(F(b))) << 16; }, -2);
  test("h2f", DEV { return __float_as_uint(__half2float(__ushort_as_half(a))); }, HOST { return I(fromh(a)); }, 1);
  test("hfma2", DEV { __half2 h = __hfma2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b), *reinterpret_cast<__half2*>(&c)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) { double x = fromh(a >> k), y = fromh(b >> k), z = fromh(c >> k); long double v = fma_exact(x, y, z); double d = (double)v; if ((long double)d != v && d == d && !std::isinf(d)) { uint64_t q; memcpy(&q, &d, 8); if (!(q & 1)) d = std::nextafter(d, v > d ? INFINITY : -INFINITY); } r |= uint32_t(toh(d)) << k; } return r; }, -1);
  test("hadd2", DEV { __half2 h = __hadd2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) r |= uint32_t(toh(fromh(a >> k) + fromh(b >> k))) << k; return r; }, -1);
  test("hmul2", DEV { __half2 h = __hmul2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) r |= uint32_t(toh(fromh(a >> k) * fromh(b >> k))) << k; return r; }, -1);
  test("bf hfma2", DEV { __nv_bfloat162 h = __hfma2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b), *reinterpret_cast<__nv_bfloat162*>(&c)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) { double x = fromb(a >> k), y = fromb(b >> k), z = fromb(c >> k), p = x * y, s = p + z; double bb = s - p, err = (p - (s - bb)) + (z - bb); if (err != 0 && s == s && !std::isinf(s)) { uint64_t q; memcpy(&q, &s, 8); if (!(q & 1)) s = std::nextafter(s, err > 0 ? INFINITY : -INFINITY); } r |= uint32_t(tob(s)) << k; } return r; }, -2);
  test("hmax2", DEV { __half2 h = __hmax2(*reinterpret_cast<__half2*>(&a), *reinterpret_cast<__half2*>(&b)); return *reinterpret_cast<uint32_t*>(&h); }, HOST { uint32_t r = 0; for (int k = 0; k < 32; k += 16) { double x = fromh(a >> k), y = fromh(b >> k); uint16_t v = x != x ? (b >> k) : y != y ? (a >> k) : x == y ? ((a >> k & 0x8000) ? (b >> k) : (a >> k)) : x > y ? (a >> k) : (b >> k); r |= uint32_t(v) << k; } return r; }, -1);
  test("hlt", DEV { return __hlt(__ushort_as_half(a), __ushort_as_half(b)) | __hgeu(__ushort_as_half(a), __ushort_as_half(b)) << 1; }, HOST { double x = fromh(a), y = fromh(b); return uint32_t(x < y) | uint32_t(!(x < y)) << 1; });
  test("ex2", DEV { float d; asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(d) : "f"(__uint_as_float(a))); return __float_as_uint(d); }, HOST { float x = F(a); if (std::fpclassify(x) == FP_SUBNORMAL) x = 0; float f = std::exp2(double(x)); if (std::fpclassify(f) == FP_SUBNORMAL) f = 0; return I(f); }, 2);
  test("expf", DEV { return __float_as_uint(expf(__uint_as_float(a))); }, HOST { return I(std::exp(double(F(a)))); }, 5);
  test("tanh", DEV { float d; asm("tanh.approx.f32 %0, %1;" : "=f"(d) : "f"(__uint_as_float(a))); return __float_as_uint(d); }, HOST { return I(std::tanh(double(F(a)))); }, 2);
  test("log2", DEV { return __float_as_uint(__log2f(__uint_as_float(a))); }, HOST { return I(std::log2(double(F(a)))); }, 2);
  test("rsqrt", DEV { return __float_as_uint(rsqrtf(__uint_as_float(a))); }, HOST { return I(1 / std::sqrt(double(F(a)))); }, 2);
  test("double", DEV { double x = double(__uint_as_float(a)) * 1.25 + double(int(b)); return __float_as_uint(float(x / 3.0)); }, HOST { double x = std::fma(double(F(a)), 1.25, double(int(b))); return I(float(x / 3.0)); }, 1);
  test("shfl", DEV { uint32_t up = __shfl_up_sync(~0u, a, 3), dn = __shfl_down_sync(~0u, b, 5, 8), x = __shfl_xor_sync(~0u, c, 9), i = __shfl_sync(~0u, a, int(threadIdx.x) / 2, 16); return up + 3 * dn + 5 * x + 7 * i + threadIdx.x % 2; }, HOST { return 0; }, 99);  // below
  for (int w = 0; w < N; w += 32) for (int l = 0; l < 32; ++l) { uint32_t up = A[w + (l < 3 ? l : l - 3)], dn = B[w + (l % 8 + 5 < 8 ? l + 5 : l)], x = C[w + (l ^ 9)], i = A[w + l / 16 * 16 + (((w + l) % 128) / 2) % 16]; if (D[w + l] != up + 3 * dn + 5 * x + 7 * i + l % 2) { printf("WRONG shfl at %d\n", w + l); ++bad; w = N; break; } }
  test("ballot", DEV { uint32_t v = __ballot_sync(~0u, a & 1), m = __match_any_sync(~0u, b & 3), r = __reduce_add_sync(~0u, c), q = __reduce_max_sync(~0u, int(c)); return v ^ m * 3 ^ r * 5 ^ q * 7 ^ (__any_sync(~0u, a == 1) << 3) ^ (__all_sync(~0u, a != 1) << 9); }, HOST { return 0; }, 99);
  for (int w = 0; w < N; w += 32) { uint32_t v = 0, r = 0; int q = INT32_MIN; bool any = false; for (int l = 0; l < 32; ++l) { v |= (A[w + l] & 1) << l; r += C[w + l]; q = std::max(q, int(C[w + l])); any |= A[w + l] == 1; } for (int l = 0; l < 32; ++l) { uint32_t m = 0; for (int j = 0; j < 32; ++j) m |= uint32_t((B[w + j] & 3) == (B[w + l] & 3)) << j; if (D[w + l] != (v ^ m * 3 ^ r * 5 ^ uint32_t(q) * 7 ^ uint32_t(any) << 3 ^ uint32_t(!any) << 9)) { printf("WRONG ballot at %d\n", w + l); ++bad; w = N; break; } } }
  test("divergence", DEV { uint32_t r = 0; for (uint32_t i = 0; i < (a & 15); ++i) { if (b >> i & 1) continue; if ((c >> i & 3) == 2) break; r = r * 31 + i; } return r; }, HOST { uint32_t r = 0; for (uint32_t i = 0; i < (a & 15); ++i) { if (b >> i & 1) continue; if ((c >> i & 3) == 2) break; r = r * 31 + i; } return r; });
  test("switch", DEV { switch (a % 9) { case 0: return b; case 1: return b * 3; case 2: return b ^ c; case 3: return b + c; case 4: return ~c; case 5: return b << 3; case 6: return c >> 5; case 7: return b - c; default: return 77; } }, HOST { switch (a % 9) { case 0: return b; case 1: return b * 3; case 2: return b ^ c; case 3: return b + c; case 4: return ~c; case 5: return b << 3; case 6: return c >> 5; case 7: return b - c; default: return 77; } });
  test("local array", DEV { uint32_t v[16]; for (int i = 0; i < 16; ++i) v[i] = a * i + b; uint32_t r = 0; for (int i = 0; i < 8; ++i) { r += v[(c >> i * 4) & 15]; v[(b >> i * 4) & 15] ^= r; } return r ^ v[c & 15]; }, HOST { uint32_t v[16]; for (int i = 0; i < 16; ++i) v[i] = a * i + b; uint32_t r = 0; for (int i = 0; i < 8; ++i) { r += v[(c >> i * 4) & 15]; v[(b >> i * 4) & 15] ^= r; } return r ^ v[c & 15]; });
  test("printf", DEV { if (blockIdx.x == 3 && threadIdx.x == 5) printf("block %d says %s %.3f %llu\n", blockIdx.x, "hello", 1.5f, 123456789012ull); assert(threadIdx.x < 128); return a; }, HOST { return a; });
  printf("instructions: %d tests, %d wrong\n", count, bad); return bad != 0;
}
