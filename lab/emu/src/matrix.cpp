// Matrix instructions: mma, ldmatrix, stmatrix, movmatrix, wgmma.
#include "core.h"
#include "half.h"
#include "races.h"
#include <cmath>

std::string source_of_pc(Kernel* k, u32 pc); std::string source_of(Warp& w);
namespace {
void whole_warp(Warp& w, u32 m) { if (m != w.all || w.all != ~0u) FAIL("a matrix instruction needs all 32 lanes, %#x are here", m); }
u32 missing(Warp& w, u32 m) { return w.live & ~m; }

int ldmatrix(Warp& w, const Ins& i, u32 m) {  // n: matrices; flag: trans
  if (missing(w, m)) return RETRY; whole_warp(w, m);
  LaneAddresses a(w, i); u32 out[4][32];
  for (int k = 0; k < i.n; ++k) {
    u16 tile[8][8];
    for (int row = 0; row < 8; ++row) { w.lane_at = 8 * k + row; memcpy(tile[row], memory_at(w, SHARED, static_cast<u32>(a[8 * k + row]), 16, false), 16); }
    for (int l = 0; l < 32; ++l) { const int r = l / 4, c = l % 4 * 2; u16 x = i.flag ? tile[c][r] : tile[r][c], y = i.flag ? tile[c + 1][r] : tile[r][c + 1]; out[k][l] = x | u32(y) << 16; }
  }
  for (int k = 0; k < i.n; ++k) if (i.ext[k]) memcpy(w.r<u32>(i.ext[k]), out[k], 128);
  return OK;
}
int stmatrix(Warp& w, const Ins& i, u32 m) {
  if (missing(w, m)) return RETRY; whole_warp(w, m); ++progress;
  LaneAddresses a(w, i);
  for (int k = 0; k < i.n; ++k) {
    u16 tile[8][8]; const u32* s = w.r<u32>(i.ext[k]);
    for (int l = 0; l < 32; ++l) { const int r = l / 4, c = l % 4 * 2; (i.flag ? tile[c][r] : tile[r][c]) = u16(s[l]); (i.flag ? tile[c + 1][r] : tile[r][c + 1]) = u16(s[l] >> 16); }
    for (int row = 0; row < 8; ++row) { w.lane_at = 8 * k + row; memcpy(memory_at(w, SHARED, static_cast<u32>(a[8 * k + row]), 16, true), tile[row], 16); }
  }
  return OK;
}
int movmatrix(Warp& w, const Ins& i, u32 m) {
  if (missing(w, m)) return RETRY; whole_warp(w, m); u16 tile[8][8]; const u32* s = w.r<u32>(i.o[1]); u32* d = w.r<u32>(i.o[0]);
  for (int l = 0; l < 32; ++l) { tile[l / 4][l % 4 * 2] = u16(s[l]); tile[l / 4][l % 4 * 2 + 1] = u16(s[l] >> 16); }
  for (int l = 0; l < 32; ++l) d[l] = tile[l % 4 * 2][l / 4] | u32(tile[l % 4 * 2 + 1][l / 4]) << 16;
  return OK;
}
enum Kind { F16, BF16, TF32, S8, U8, S4, U4 };
int bits_of(int k) { return k == TF32 ? 32 : k <= BF16 ? 16 : k <= U8 ? 8 : 4; }
inline float value_f(int kind, const u8* p, int at) { if (kind == TF32) { u32 b; memcpy(&b, p + 4 * at, 4); b &= ~0x1fffu; float f; memcpy(&f, &b, 4); return f; } u16 h; memcpy(&h, p + 2 * at, 2); return kind == F16 ? h2f(h) : bf2f(h); }
inline s32 value_i(int kind, const u8* p, int at) { switch (kind) { case S8: return s8(p[at]); case U8: return p[at]; case S4: return s32(s8((p[at / 2] >> (at % 2 * 4)) << 4)) >> 4; default: return p[at / 2] >> (at % 2 * 4) & 15; } }
// mma.sync m16n8k*: a: A's kind, b: B's kind, n: k; width: accumulator 0 f32, 1 f16, 2 s32, flag: saturate. ext: d.., a.., b.., c..
int mma(Warp& w, const Ins& i, u32 m) {
  if (missing(w, m)) return RETRY; whole_warp(w, m);
  const int K = i.n, ka = i.a, kb = i.b, per = 32 / bits_of(ka), na = i.o[1], nb = i.o[2], nd = i.o[0];
  const u32 *D = i.ext.data(), *A = D + nd, *B = A + na, *C = B + nb;
  static thread_local float fa[16][64], fb[64][8]; static thread_local s32 ia[16][64], ib[64][8]; const bool integer = i.width == 2;
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int r = 0; r < na; ++r) {  // registers alternate rows g, g+8, then the next half of k (na == 1: m8)
      const int row = g + (r % 2) * 8, k0 = (r / 2) * (4 * per) + t * per; const u32 v = w.r<u32>(A[r])[l]; const u8* p = reinterpret_cast<const u8*>(&v);
      for (int e = 0; e < per; ++e) if (integer) ia[row][k0 + e] = value_i(ka, p, e); else fa[row][k0 + e] = value_f(ka, p, e);
    }
    for (int r = 0; r < nb; ++r) { const int k0 = r * (4 * per) + t * per; const u32 v = w.r<u32>(B[r])[l]; const u8* p = reinterpret_cast<const u8*>(&v); for (int e = 0; e < per; ++e) if (integer) ib[k0 + e][g] = value_i(kb, p, e); else fb[k0 + e][g] = value_f(kb, p, e); }
  }
  const int rows = i.c;   // 16, or 8 for m8n8k*
  for (int l = 0; l < 32; ++l) {
    const int g = l / 4, t = l % 4;
    for (int q = 0; q < (rows == 16 ? 4 : 2); ++q) {
      const int row = g + q / 2 * 8, col = t * 2 + q % 2;
      if (integer) { s64 s = w.r<s32>(C[q])[l]; for (int k = 0; k < K; ++k) s += s64(ia[row][k]) * ib[k][col]; if (i.flag) s = std::min<s64>(std::max<s64>(s, INT32_MIN), INT32_MAX); w.r<s32>(D[q])[l] = s32(s); }
      else if (i.width == 0) { double s = w.r<float>(C[q])[l]; for (int k = 0; k < K; ++k) s += double(fa[row][k]) * fb[k][col]; w.r<float>(D[q])[l] = static_cast<float>(s); }
      else { u16 h; memcpy(&h, w.R + C[q / 2] + 4 * l + q % 2 * 2, 2); double s = h2f(h); for (int k = 0; k < K; ++k) s += double(fa[row][k]) * fb[k][col]; h = d2h(s); memcpy(w.R + D[q / 2] + 4 * l + q % 2 * 2, &h, 2); }
    }
  }
  return OK;
}

// ---- wgmma: each of the four warps makes its 16 rows
struct View { u32 start, lead, stride; int swizzle; bool k_major; int bytes; };
View view_of(u64 desc, bool k_major, int bytes) {
  View v{u32(desc & 0x3fff) << 4, u32(desc >> 16 & 0x3fff) << 4, u32(desc >> 32 & 0x3fff) << 4, int(desc >> 62), k_major, bytes};
  if (desc >> 49 & 7) FAIL("wgmma: base offset %d of a matrix descriptor", int(desc >> 49 & 7));
  return v;
}
// Address of element (mn, k).
u32 element(const View& v, int mn, int k) {
  u32 a; const int line = v.swizzle == 1 ? 128 : v.swizzle == 2 ? 64 : v.swizzle == 3 ? 32 : 16;
  if (v.k_major) {
    const int kb = k * v.bytes;
    if (v.swizzle == 0) a = v.start + mn / 8 * v.stride + mn % 8 * 16 + kb / 16 * v.lead + kb % 16;
    else a = v.start + mn / 8 * v.stride + mn % 8 * line + kb / line * v.lead + kb % line;
  } else {
    const int mb = mn * v.bytes;
    if (v.swizzle == 0) a = v.start + mb / 16 * v.stride + mb % 16 + k / 8 * v.lead + k % 8 * 16;
    else a = v.start + mb / line * v.lead + mb % line + k / 8 * v.stride + k % 8 * line;
  }
  if (v.swizzle == 1) a ^= (a >> 7 & 7) << 4; if (v.swizzle == 2) a ^= (a >> 7 & 3) << 4; if (v.swizzle == 3) a ^= (a >> 7 & 1) << 4;
  return a;
}
u64 hash_of(Block& b, const std::vector<u32>& chunks) { u64 h = 1469598103934665603ull; for (u32 c : chunks) { u64 v[2]; memcpy(v, b.shared.data() + c, 16); h = (h ^ v[0]) * 1099511628211ull; h = (h ^ v[1] ^ h >> 32) * 1099511628211ull; } return h; }
// a, b: kinds; n: N/8; c: K; flag: A in registers; flag2: A transposed (mn-major); pneg2...: see decode. ext: d..., then a registers
struct Wg { int ka, kb, N, K; bool a_regs, a_mn, b_mn; int acc; int sa, sb; u32 da, db, scale; bool scale_is_pred, saturate; };
std::vector<Wg> wgs;
int wgmma(Warp& w, const Ins& i, u32 m) {
  if (missing(w, m)) return RETRY; whole_warp(w, m);
  if (!w.wg_fenced) warn_once("fence" + source_of(w), "a wgmma without wgmma.fence since the last wait: " + where(w));
  const Wg& g = wgs[i.a]; const int N = g.N, K = g.K; Block& b = *w.block; const int part = w.index % 4;
  const u64 db = w.r<u64>(g.db)[0]; for (int l = 1; l < 32; ++l) if (w.r<u64>(g.db)[l] != db) FAIL("wgmma: lanes have different descriptors");
  const int bytes = bits_of(g.kb) / 8; const bool integer = g.kb >= S8;
  WgmmaOpen open; open.pc = &i - w.block->launch->kernel->code.data();
  auto fetch = [&](const View& v, int mn0, int count, auto&& put) {
    const int step = 16 / bytes;
    if (v.k_major) for (int mn = 0; mn < count; ++mn) for (int k = 0; k < K; k += step) open.chunks.push_back(element(v, mn0 + mn, k));
    else for (int k = 0; k < K; ++k) for (int mn = 0; mn < count; mn += step) open.chunks.push_back(element(v, mn0 + mn, k));
    for (int mn = 0; mn < count; ++mn) for (int k = 0; k < K; ++k) { const u32 a = element(v, mn0 + mn, k); if (a < 1024 || a + bytes > b.shared_size) FAIL("wgmma reads shared memory at %#x, outside [0x400, %#x)", a, b.shared_size); if (options.check_uninitialised && !b.written[a]) note_unwritten(w, a); put(mn, k, reinterpret_cast<const u8*>(b.shared.data() + a)); }
  };
  static thread_local std::vector<float> fa(16 * 64), fb(256 * 64); static thread_local std::vector<s32> ia(16 * 64), ib(256 * 64);
  fetch(view_of(db, !g.b_mn, bytes), 0, N, [&](int n, int k, const u8* p) { if (integer) ib[n * K + k] = value_i(g.kb, p, 0); else fb[n * K + k] = value_f(g.kb, p, 0); });
  if (g.a_regs) {
    const int per = 32 / bits_of(g.ka);
    for (int l = 0; l < 32; ++l) for (int r = 0; r < 4; ++r) { const int row = l / 4 + r % 2 * 8, k0 = r / 2 * 4 * per + l % 4 * per; const u32 v = w.r<u32>(i.ext[i.n + r])[l]; const u8* p = reinterpret_cast<const u8*>(&v); for (int e = 0; e < per; ++e) if (integer) ia[row * K + k0 + e] = value_i(g.ka, p, e); else fa[row * K + k0 + e] = value_f(g.ka, p, e); }
  } else {
    const u64 da = w.r<u64>(g.da)[0]; for (int l = 1; l < 32; ++l) if (w.r<u64>(g.da)[l] != da) FAIL("wgmma: lanes have different descriptors");
    fetch(view_of(da, !g.a_mn, bytes), part * 16, 16, [&](int r, int k, const u8* p) { if (integer) ia[r * K + k] = value_i(g.ka, p, 0); else fa[r * K + k] = value_f(g.ka, p, 0); });
  }
  bool add = true; if (g.scale_is_pred) { u32 p = *w.r<u32>(g.scale); if (p != 0 && p != ~0u) FAIL("wgmma: lanes have different scale-d"); add = p; }
  for (int l = 0; l < 32; ++l) for (int j = 0; j < N / 8; ++j) for (int q = 0; q < 4; ++q) {
    const int row = l / 4 + q / 2 * 8, col = 8 * j + l % 4 * 2 + q % 2;
    if (integer) { s32* d = &w.r<s32>(i.ext[4 * j + q])[l]; const s32 *x = &ia[row * K], *y = &ib[col * K]; s64 s = add ? *d : 0; s32 t = 0; for (int k = 0; k < K; ++k) t += x[k] * y[k]; s += t; if (g.saturate) s = std::min<s64>(std::max<s64>(s, INT32_MIN), INT32_MAX); *d = s32(s); }
    else { const float *x = &fa[row * K], *y = &fb[col * K]; double t = 0; for (int k = 0; k < K; ++k) t += double(x[k]) * y[k]; t *= g.sa * g.sb;
      if (g.acc == 0) { float* d = &w.r<float>(i.ext[4 * j + q])[l]; *d = static_cast<float>((add ? double(*d) : 0.0) + t); }
      else { char* p = w.R + i.ext[2 * j + q / 2] + 4 * l + q % 2 * 2; u16 h; memcpy(&h, p, 2); h = d2h((add ? double(h2f(h)) : 0.0) + t); memcpy(p, &h, 2); } }
  }
  if (options.check_races) { auto issued = race_issue(w); for (u32 c : open.chunks) race_async_shared(*issued, &b, c, 16, false, false); }
  open.hash = hash_of(b, open.chunks);
  w.wg_open.push_back(std::move(open));
  return OK;
}
void check_group(Warp& w, const std::vector<WgmmaOpen>& g) { for (auto& o : g) { if (hash_of(*w.block, o.chunks) != o.hash) FAIL("shared memory that a wgmma reads was changed before its wait_group: the one at %s", source_of_pc(w.block->launch->kernel, o.pc).c_str()); if (options.check_races) for (u32 c : o.chunks) race_read_done(w, w.block, c, 16, o.pc); } }
int wg_commit(Warp& w, const Ins&, u32 m) { if (missing(w, m)) return RETRY; w.wg_groups.push_back(std::move(w.wg_open)); w.wg_open.clear(); return OK; }
int wg_wait(Warp& w, const Ins& i, u32 m) { if (missing(w, m)) return RETRY; w.wg_fenced = false; while (w.wg_groups.size() > static_cast<size_t>(i.a)) { check_group(w, w.wg_groups.front()); w.wg_groups.pop_front(); } return OK; }
int wg_fence(Warp& w, const Ins&, u32 m) { if (missing(w, m)) return RETRY; w.wg_fenced = true; return OK; }
int kind_of(const std::string& s) { if (s == "f16") return F16; if (s == "bf16") return BF16; if (s == "tf32") return TF32; if (s == "s8") return S8; if (s == "u8") return U8; if (s == "s4") return S4; if (s == "u4") return U4; return -1; }
}  // namespace

bool decode_matrix(Decoder& d, const Text& x, Ins& i) {
  const std::string& op = x.op; const auto& A = x.args;
  i.flow = SYNC;
  auto list = [&](const Operand& o, int bytes, bool dst) { int n = 0; if (o.kind == Operand::VEC) for (auto& e : o.elems) { i.ext.push_back(dst ? d.dst(e, bytes) : d.src(e, bytes)); ++n; } else { i.ext.push_back(dst ? d.dst(o, bytes) : d.src(o, bytes)); ++n; } return n; };
  if (op == "ldmatrix" || op == "stmatrix") {
    if (!has(x, "m8n8") || !has(x, "b16")) FAIL("shape"); i.flag = has(x, "trans"); const bool load = op == "ldmatrix"; d.address(load ? A[1] : A[0], i); i.n = list(load ? A[0] : A[1], 4, load);
    i.fn = load ? &ldmatrix : &stmatrix; return true;
  }
  if (op == "movmatrix") { i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 4); i.fn = &movmatrix; return true; }
  if (op == "mma") {
    int M = 0, N = 0, K = 0; std::vector<std::string> types;
    for (auto& mm : x.mods) { if (sscanf(mm.c_str(), "m%dn%dk%d", &M, &N, &K) == 3) continue; Type t; if (parse_type(mm, &t)) types.push_back(mm); }
    if (N != 8 || (M != 16 && M != 8) || types.size() != 4) FAIL("shape or types of mma"); if (!has(x, "row") || !has(x, "col")) FAIL("layout of mma");
    i.a = kind_of(types[1]); i.b = kind_of(types[2]); if (i.a < 0 || i.b < 0) FAIL("types of mma"); i.n = K; i.c = M; i.width = types[0] == "f32" ? 0 : types[0] == "f16" ? 1 : 2; if (types[0] != types[3]) FAIL("accumulators of different types"); i.flag = has(x, "satfinite");
    if (M == 8 && i.a == F16) FAIL("m8n8k4");
    i.o[0] = list(A[0], 4, true); i.o[1] = list(A[1], 4, false); i.o[2] = list(A[2], 4, false); list(A[3], 4, false);
    if (M == 8 && i.o[1] != 1u) FAIL("m8n8 with two registers");
    i.fn = &mma; return true;
  }
  if (op == "wgmma") {
    const std::string& what = x.mods[0];
    if (what == "fence") { i.fn = &wg_fence; return true; } if (what == "commit_group") { i.fn = &wg_commit; return true; } if (what == "wait_group") { i.a = A[0].imm; i.fn = &wg_wait; return true; }
    if (what != "mma_async" || has(x, "sp")) return false;
    int M = 0, N = 0, K = 0; std::vector<std::string> types; for (auto& mm : x.mods) { if (sscanf(mm.c_str(), "m%dn%dk%d", &M, &N, &K) == 3) continue; Type t; if (parse_type(mm, &t)) types.push_back(mm); }
    if (M != 64 || types.size() != 3) FAIL("shape or types of wgmma"); Wg g{}; g.ka = kind_of(types[1]); g.kb = kind_of(types[2]); if (g.ka < 0 || g.kb < 0 || bits_of(g.ka) == 4) FAIL("types of wgmma"); g.N = N; g.K = K; g.acc = types[0] == "f16"; g.sa = g.sb = 1; g.saturate = has(x, "satfinite");
    i.n = list(A[0], 4, true); if (i.n != (g.acc ? N / 4 : N / 2)) FAIL("wgmma has %d accumulators", i.n);
    g.a_regs = A[1].kind == Operand::VEC; if (g.a_regs) { if (list(A[1], 4, false) != 4) FAIL("registers of A"); } else g.da = d.src(A[1], 8); g.db = d.src(A[2], 8);
    size_t k = 3; if (A.size() > k) { if (A[k].kind == Operand::REG) { g.scale = d.pred(A[k]); g.scale_is_pred = true; if (A[k].neg) FAIL("negated scale-d"); } else if (!A[k].imm) { g.scale = d.pred(A[k]); g.scale_is_pred = true; } ++k; }
    if (g.kb <= TF32) { if (A.size() < k + 2) FAIL("operands"); g.sa = static_cast<int>(A[k].imm); g.sb = static_cast<int>(A[k + 1].imm); k += 2; if (!g.a_regs && A.size() > k) { g.a_mn = A[k].imm; ++k; } if (A.size() > k) g.b_mn = A[k].imm; }
    wgs.push_back(g); i.a = wgs.size() - 1; i.fn = &wgmma; return true;
  }
  i.flow = PLAIN;
  return false;
}
