// SiLU as csrc/cuda/conv.cuh makes it, over the floats in [-200, 200], against fp64: alone, and beside partners
// whose denominators are multiplied with its own. ex2 is taken two units in the last place off, the reciprocal one,
// in both directions (what the special function unit may do).
//   g++ -O3 -ffp-contract=off -mfma -o conv_silu conv_silu.cpp && ./conv_silu [step between floats, default 1]
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
static float of(uint32_t b) { float f; memcpy(&f, &b, 4); return f; }
static uint32_t bits(float f) { uint32_t b; memcpy(&b, &f, 4); return b; }
static float off(float f, int ulp) { return f == 0 || std::isinf(f) ? f : of(bits(f) + ulp); }
static float flush(float f) { return std::fabs(f) < 0x1p-126f ? 0.0f : f; }
static const float kLog2e = 1.4426950408889634f, kLn2 = 0.6931471805599453f, kLeast = 0x1p-62f;
static float ex2(float p, int e) { return flush(off(flush(std::exp2f(flush(p))), e)); }
static float rcp(float d, int e) { return flush(off(flush(1.0f / flush(d)), e)); }
static float sat(float x) { return x >= 1 ? 1.0f : x > 0 ? x : 0.0f; }
static float alone(float y, int e) {
  const float p = -kLog2e * y, inverse = -kLog2e;
  return p * rcp(fmaf(ex2(p, 2 * e), inverse, inverse), e);
}
static float paired(float y, float other, int e) {
  const float p = -kLog2e * y, q = -kLog2e * other;
  const float a = sat(fmaf(ex2(p, 2 * e), kLeast, kLeast)), b = sat(fmaf(ex2(q, 2 * e), kLeast, kLeast));
  const float n = p * b, r = rcp(a * b, e) * (-kLn2 * kLeast);
  return n * r;
}
int main(int argc, char** argv) {
  const uint32_t step = argc > 1 ? atoi(argv[1]) : 1, top = bits(200.0f);
  const float partners[] = {0.0f, -0.0f, 1.0f, -1.0f, 200.0f, -200.0f, -42.9f, -43.1f, 30.0f, -88.8f};
  double worst_abs = 0, worst_rel = 0, at_abs = 0, at_rel = 0, worst_small = 0;
  for (int sign = 0; sign < 2; ++sign)
    for (uint64_t b = 0; b <= top; b += step) {
      const float y = of(static_cast<uint32_t>(b) | (sign ? 0x80000000u : 0));
      const double truth = y / (1.0 + std::exp(-static_cast<double>(y)));
      const float other = partners[(b / step) % 10];
      for (int e = -1; e <= 1; e += 2) {
        const double got[2] = {alone(y, e), paired(y, other, e)};
        for (double g : got) {
          const double error = std::fabs(g - truth);
          if (!(error <= worst_abs)) worst_abs = error, at_abs = y;
          if (y > -40) {
            const double rel = error / std::fabs(truth);
            if (std::fabs(truth) > 1e-15 && !(rel <= worst_rel)) worst_rel = rel, at_rel = y;
          } else if (!(error <= worst_small)) worst_small = error;
        }
      }
    }
  printf("largest absolute error %.3g at %.9g\n", worst_abs, at_abs);
  printf("largest relative error %.3g (%.1f units of 2^-24) at %.9g, for y > -40\n", worst_rel, worst_rel * 16777216, at_rel);
  printf("largest absolute error for y <= -40: %.3g\n", worst_small);
}
