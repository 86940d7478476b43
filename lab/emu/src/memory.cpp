// Loads, stores, atomics, asynchronous copies, tensor maps.
#include "core.h"
#include "half.h"
#include "tensor_map.h"
#include "races.h"
#include <algorithm>
#include <cmath>
#include <type_traits>

std::string source_of(Warp& w);
namespace {
inline bool spins(const Ins& i) { return i.flag; }   // volatile, acquire, relaxed: others may have to run first
inline void note_pdl(Warp& w, const Ins& i, u64 address) {
  if (options.pdl && w.block->launch->early && w.block->launch->kernel->uses_pdl && !w.pdl_waited && (i.space == GLOBAL || i.space == GENERIC) && !(address & kSharedTag) && !(address >= reinterpret_cast<u64>(w.block->launch->params.data()) && address < reinterpret_cast<u64>(w.block->launch->params.data()) + w.block->launch->params.size()))
    warn_once("pdl" + source_of(w), "global memory is accessed before griddepcontrol.wait: " + where(w));
}
template <class M, class R> int load1(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); R* d = w.r<R>(i.o[0]);
  if (options.pdl && m) note_pdl(w, i, a[__builtin_ctz(m)]);
  if (spins(i)) access_kind = 3;
  LANES(m) { M v; const u64 at = a[l]; memcpy(&v, memory_at(w, i.space, at, sizeof(M), false), sizeof(M)); d[l] = static_cast<R>(v); if (options.check_races && spins(i)) race_acquire(w, at, i.flag2); }
  access_kind = 0; return spins(i) ? YIELD : OK;
}
template <class M, class R> int load_vector(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); const int n = i.n;
  if (options.pdl && m) note_pdl(w, i, a[__builtin_ctz(m)]);
  if (spins(i)) access_kind = 3;
  LANES(m) { const char* p = memory_at(w, i.space, a[l], n * sizeof(M), false); if (options.check_races && spins(i)) race_acquire(w, a[l], i.flag2);
    M v[8]; memcpy(v, p, n * sizeof(M));
    for (int k = 0; k < n; ++k) if (i.ext[k]) w.r<R>(i.ext[k])[l] = static_cast<R>(v[k]); }
  access_kind = 0; return spins(i) ? YIELD : OK;
}
template <class M, class R> int store1(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); const R* s = w.r<R>(i.o[0]); ++progress;
  if (options.pdl && m) note_pdl(w, i, a[__builtin_ctz(m)]);
  if (i.c) access_kind = 3;
  LANES(m) { M v = static_cast<M>(s[l]); if (options.check_races && i.c) race_release(w, a[l], i.flag2); memcpy(memory_at(w, i.space, a[l], sizeof(M), true), &v, sizeof(M)); }
  access_kind = 0; return OK;
}
template <class M, class R> int store_vector(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); const int n = i.n; ++progress;
  if (options.pdl && m) note_pdl(w, i, a[__builtin_ctz(m)]);
  if (i.c) access_kind = 3;
  LANES(m) { if (options.check_races && i.c) race_release(w, a[l], i.flag2); char* p = memory_at(w, i.space, a[l], n * sizeof(M), true);
    M v[8]; for (int k = 0; k < n; ++k) v[k] = static_cast<M>(w.r<R>(i.ext[k])[l]);
    memcpy(p, v, n * sizeof(M)); }
  access_kind = 0; return OK;
}
struct B128 { u64 v[2]; };

template <class T> using Un = std::make_unsigned_t<T>;
enum AtomOp { A_ADD, A_MIN, A_MAX, A_AND, A_OR, A_XOR, A_EXCH, A_CAS, A_INC, A_DEC };
template <class T> T atom_int(int op, T old, T b, T c) {
  switch (op) { case A_ADD: return Un<T>(old) + Un<T>(b); case A_MIN: return std::min(old, b); case A_MAX: return std::max(old, b); case A_AND: return old & b; case A_OR: return old | b; case A_XOR: return old ^ b;
    case A_EXCH: return b; case A_CAS: return old == b ? c : old; case A_INC: return Un<T>(old) >= Un<T>(b) ? 0 : old + 1; case A_DEC: return old == 0 || Un<T>(old) > Un<T>(b) ? b : old - 1; }
  return old;
}
template <class T> T atom_float(int op, T old, T b, T) { switch (op) { case A_ADD: return old + b; case A_MIN: return std::fmin(old, b); case A_MAX: return std::fmax(old, b); case A_EXCH: return b; } return old; }
u32 order_seed = 1;
// lanes in random order when scheduling is random: nobody may rely on one
std::vector<int> lane_order(u32 m) { std::vector<int> o; for (u32 k = m; k; k &= k - 1) o.push_back(__builtin_ctz(k)); if (options.seed) for (size_t k = o.size(); k > 1; --k) std::swap(o[k - 1], o[random_bits() % k]); return o; }
template <class T, bool kFloat> int atom(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); T* d = w.r<T>(i.o[0]); const T *b = w.r<T>(i.o[1]), *c = w.r<T>(i.o[2]);
  for (int l : lane_order(m)) {
    w.lane_at = l; access_kind = 2; char* p = memory_at(w, i.space, a[l], sizeof(T), true); access_kind = 0; T old, v; memcpy(&old, p, sizeof(T));
    if (options.check_races) { race_acquire(w, a[l], i.c & 1); race_release(w, a[l], i.c & 2); }
    if constexpr (kFloat) v = atom_float<T>(i.a, old, b[l], T()); else v = atom_int<T>(i.a, old, b[l], i.a == A_CAS ? c[l] : T());
    if (memcmp(&v, &old, sizeof(T))) ++progress;
    memcpy(p, &v, sizeof(T)); if (i.flag2) d[l] = old;
  }
  return YIELD;
}
template <bool kB> u16 half_add(u16 x, u16 y, int op) { float a = kB ? bf2f(x) : h2f(x), b = kB ? bf2f(y) : h2f(y); if (op == A_MIN) return a < b ? x : y; if (op == A_MAX) return a > b ? x : y; double r = double(a) + b; return kB ? d2bf(r) : d2h(r); }
template <bool kB, int kParts> int atom_half(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i);
  for (int l : lane_order(m)) {
    w.lane_at = l; access_kind = 2; char* p = memory_at(w, i.space, a[l], 2 * kParts, true); access_kind = 0; ++progress;
    for (int k = 0; k < kParts; ++k) { u16 old, v; memcpy(&old, p + 2 * k, 2); memcpy(&v, w.R + i.o[1] + l * 2 * kParts + 2 * k, 2); u16 r = half_add<kB>(old, v, i.a); if (i.flag2) memcpy(w.R + i.o[0] + l * 2 * kParts + 2 * k, &old, 2); memcpy(p + 2 * k, &r, 2); }
  }
  return YIELD;
}
// red.global.add.v2.f32 and the like: ext: sources; a: operation, b: 0 f32, 1 f16, 2 bf16, 3 f16x2, 4 bf16x2
int red_vector(Warp& w, const Ins& i, u32 m) {
  LaneAddresses a(w, i); const int size = i.width;
  for (int l : lane_order(m)) { w.lane_at = l; access_kind = 2; char* p = memory_at(w, i.space, a[l], size * i.n, true); access_kind = 0; ++progress;
    for (int k = 0; k < i.n; ++k) { const char* s = w.R + i.ext[k] + l * size; char* q = p + k * size;
      if (i.b == 0) { float x, y; memcpy(&x, q, 4); memcpy(&y, s, 4); x += y; memcpy(q, &x, 4); }
      else for (int h = 0; h < size / 2; ++h) { u16 x, y; memcpy(&x, q + 2 * h, 2); memcpy(&y, s + 2 * h, 2); x = i.b % 2 ? half_add<false>(x, y, i.a) : half_add<true>(x, y, i.a); memcpy(q + 2 * h, &x, 2); } } }
  return YIELD;
}

void check_global_range(Warp& w, u64 from, u64 bytes, bool write) {   // without a note for the race check
  if (!bytes || !options.check_bounds) return;
  for (u64 a : {from, from + bytes - 1}) if (!(a >= cached_from && a + 1 <= cached_to)) bad_global(w, a, 1, write);
}
// ---- cp.async (not bulk)
void do_copy(const Copy& c, Warp& w) {
  if (options.check_races) race_shared(w, c.block, c.address, c.bytes, 1);
  std::vector<char> v(c.bytes, 0); memcpy(v.data(), c.from, c.valid); memcpy(c.to, v.data(), c.bytes);
  if (options.check_uninitialised) memset(c.block->written.data() + c.address, 1, c.bytes);
  ++progress;
}
int cp_async(Warp& w, const Ins& i, u32 m) {  // o[0] unused; base: destination; c: source register; o[1]: source size, flag2: given
  if (w.copies.empty()) w.copies.resize(32);
  LaneAddresses to(w, i); const u64* from = w.r<u64>(i.o[2]);
  LANES(m) {
    u32 bytes = i.a, valid = bytes; if (i.flag2) { valid = w.r<u32>(i.o[1])[l]; if (valid > bytes) FAIL("cp.async: source size %u exceeds %u", valid, bytes); }
    if (i.n && (*w.r<u32>(i.o[3]) >> l & 1)) valid = 0;   // ignore-src
    u64 source = from[l] + i.b; if (source % bytes) FAIL("cp.async: misaligned source %#llx", (unsigned long long)source);
    const char* p = valid ? reinterpret_cast<const char*>(source) : nullptr; check_global_range(w, source, valid, false); if (options.check_races > 1 && valid) race_global(w, source, valid, 0);
    bool keep = options.check_uninitialised; options.check_uninitialised = false; char* q = shared_at(w, static_cast<u32>(to[l]), bytes, true); options.check_uninitialised = keep;
    Copy c{q, p, bytes, valid, true, static_cast<u32>(to[l]) & 0xffffff, w.block};
    if (options.async_mode == 1 || (options.async_mode == 2 && random_bits() % 2)) do_copy(c, w); else w.copies[l].open.push_back(c);
  }
  return OK;
}
int cp_commit(Warp& w, const Ins&, u32 m) {
  if (w.copies.empty()) w.copies.resize(32);
  LANES(m) { w.copies[l].groups.push_back({std::move(w.copies[l].open)}); w.copies[l].open.clear(); }
  return OK;
}
int cp_wait(Warp& w, const Ins& i, u32 m) {  // a: groups that may stay open; -1: wait_all
  if (w.copies.empty()) return OK;
  LANES(m) { auto& c = w.copies[l]; while (c.groups.size() > static_cast<size_t>(std::max(i.a, 0))) { for (auto& k : c.groups.front().copies) do_copy(k, w); c.groups.pop_front(); } if (i.a < 0) { for (auto& k : c.open) do_copy(k, w); c.open.clear(); } }
  return OK;
}

// ---- bulk copies
struct BarrierAt { Block* block; u32 at; };
Block* block_of(Warp& w, u32 address) { u32 rank = address >> 24; if (!rank) return w.block; if (rank - 1 >= w.block->cluster->blocks.size()) FAIL("shared address %#x names block %u of a cluster of %zu", address, rank - 1, w.block->cluster->blocks.size()); return w.block->cluster->blocks[rank - 1].get(); }
void check_shared_range(Block* b, u32 at, u32 bytes, const char* what) { if (at < 1024 || at + bytes > b->shared_size) FAIL("%s: shared memory [%#x, %#x) lies outside [0x400, %#x)", what, at, at + bytes, b->shared_size); }
u64 read_bar(Block* b, u32 at) { u64 v; memcpy(&v, b->shared.data() + at, 8); return v; }
void start(Warp& w, std::function<void()> run, std::string what) {
  if (options.async_mode == 1) { run(); ++progress; return; }
  w.block->async.push_back({std::move(run), std::move(what)});
}

void mark_written(Block* b, u32 at, u32 bytes) { if (options.check_uninitialised) memset(b->written.data() + at, 1, bytes); }
void check_written(Block* b, u32 at, u32 bytes) { if (options.check_uninitialised) for (u32 k = 0; k < bytes; ++k) if (!b->written[at + k]) { char t[100]; snprintf(t, sizeof t, "bulk copy of shared memory at %#x that nobody has written", at + k); warn_once(b->launch->kernel->name + "bulk" , t); break; } }
void lanes_one_by_one(Warp& w, u32 m, const std::function<void(int)>& f) { LANES(m) f(l); }
void push_bulk(Warp& w, int l, Reader run) { if (options.async_mode == 1) { run()(); ++progress; return; } if (w.bulk.empty()) w.bulk.resize(32); w.bulk[l].open.push_back(std::move(run)); }

int bulk_load(Warp& w, const Ins& i, u32 m) {  // shared <- global; o: to, from, size, barrier, mask (flag)
  LANES(m) {
    u32 to = w.r<u32>(i.o[0])[l] + i.a, bytes = w.r<u32>(i.o[2])[l], bar = w.r<u32>(i.o[3])[l] + i.c; u64 from = w.r<u64>(i.o[1])[l] + i.b;
    if (to % 16 || from % 16 || bytes % 16) FAIL("cp.async.bulk: addresses and size must be multiples of 16: to %#x from %#llx size %u", to, (unsigned long long)from, bytes);
    if (bytes == 0) FAIL("cp.async.bulk of no bytes");
    check_global_range(w, from, bytes, false);
    std::vector<Block*> blocks; if (i.flag) { u32 mask = w.r<u16>(i.o[4])[l]; if (!mask || mask >> w.block->cluster->blocks.size()) FAIL("multicast mask %#x in a cluster of %zu", mask, w.block->cluster->blocks.size()); for (int k = 0; k < 16; ++k) if (mask >> k & 1) blocks.push_back(w.block->cluster->blocks[k].get()); }
    else { blocks.push_back(block_of(w, to)); if (block_of(w, bar) != blocks[0]) FAIL("cp.async.bulk: destination and barrier are in different blocks"); }
    for (Block* b : blocks) {
      u32 at = to & 0xffffff, ba = bar & 0xffffff; check_shared_range(b, at, bytes, "cp.async.bulk"); auto issued = race_issue(w); if (issued) { race_async_shared(*issued, b, at, bytes, true, false); race_async_global(*issued, from, bytes, false, false); race_async_global(*issued, from, bytes, false, true); }
      start(w, [=] { if (!b->live_warps) FAIL("cp.async.bulk arrives in block that has exited"); if (issued) race_async_shared(*issued, b, at, bytes, true, true); memcpy(b->shared.data() + at, reinterpret_cast<const char*>(from), bytes); mark_written(b, at, bytes); barrier_tx(b, ba, -s64(bytes), issued.get()); }, i.text);
    }
  }
  return OK;
}
int bulk_shared(Warp& w, const Ins& i, u32 m) {  // shared::cluster <- shared::cta
  LANES(m) {
    u32 to = w.r<u32>(i.o[0])[l] + i.a, from = w.r<u32>(i.o[1])[l] + i.b, bytes = w.r<u32>(i.o[2])[l], bar = w.r<u32>(i.o[3])[l] + i.c;
    if (to % 16 || from % 16 || bytes % 16) FAIL("cp.async.bulk: addresses and size must be multiples of 16");
    Block *b = block_of(w, to), *own = w.block; u32 at = to & 0xffffff, ba = bar & 0xffffff, f = from & 0xffffff; if (block_of(w, bar) != b) FAIL("cp.async.bulk: destination and barrier are in different blocks");
    check_shared_range(b, at, bytes, "cp.async.bulk"); check_shared_range(own, f, bytes, "cp.async.bulk");
    auto issued = race_issue(w); if (issued) { race_async_shared(*issued, b, at, bytes, true, false); race_async_shared(*issued, own, f, bytes, false, false); }
    start(w, [=] { if (issued) race_async_shared(*issued, b, at, bytes, true, true); if (!b->live_warps || !own->live_warps) FAIL("cp.async.bulk between blocks, one of which has exited"); check_written(own, f, bytes); memmove(b->shared.data() + at, own->shared.data() + f, bytes); mark_written(b, at, bytes); barrier_tx(b, ba, -s64(bytes), issued.get()); }, i.text);
  }
  return OK;
}
template <class T> void reduce_into(char* to, const char* from, u32 bytes, int op) { for (u32 k = 0; k < bytes / sizeof(T); ++k) { T x, y; memcpy(&x, to + k * sizeof(T), sizeof(T)); memcpy(&y, from + k * sizeof(T), sizeof(T)); if constexpr (std::is_floating_point_v<T>) x = atom_float<T>(op, x, y, T()); else x = atom_int<T>(op, x, y, T()); memcpy(to + k * sizeof(T), &x, sizeof(T)); } }
void reduce_bytes(char* to, const char* from, u32 bytes, int op, Type t) {
  if (op < 0) { memcpy(to, from, bytes); return; }
  if (t.kind == 'f' && t.bits == 32) reduce_into<float>(to, from, bytes, op); else if (t.kind == 'f' && t.bits == 64) reduce_into<double>(to, from, bytes, op);
  else if (t.bits == 16 && (t.kind == 'f' || t.kind == 'g')) for (u32 k = 0; k < bytes / 2; ++k) { u16 x, y; memcpy(&x, to + 2 * k, 2); memcpy(&y, from + 2 * k, 2); x = t.kind == 'f' ? half_add<false>(x, y, op) : half_add<true>(x, y, op); memcpy(to + 2 * k, &x, 2); }
  else if (t.kind == 's' && t.bits == 32) reduce_into<s32>(to, from, bytes, op); else if (t.bits == 32) reduce_into<u32>(to, from, bytes, op); else if (t.kind == 's') reduce_into<s64>(to, from, bytes, op); else reduce_into<u64>(to, from, bytes, op);
}
int bulk_store(Warp& w, const Ins& i, u32 m) {  // global <- shared; o: to, from, size; n: type, c: reduction or -1
  LANES(m) {
    u64 to = w.r<u64>(i.o[0])[l] + i.a; u32 from = (w.r<u32>(i.o[1])[l] + i.b) & 0xffffff, bytes = w.r<u32>(i.o[2])[l];
    if (to % 16 || from % 16 || bytes % 16) FAIL("cp.async.bulk: addresses and size must be multiples of 16: to %#llx from %#x size %u", (unsigned long long)to, from, bytes);
    check_global_range(w, to, bytes, true); Block* b = w.block; check_shared_range(b, from, bytes, "cp.async.bulk"); const int op = i.c; const Type t{static_cast<char>(i.n), i.width * 8};
    auto issued = race_issue(w); Warp* warp = &w; if (issued) { race_async_shared(*issued, b, from, bytes, false, false); if (op < 0) race_async_global(*issued, to, bytes, true, false); }
    push_bulk(w, l, [=]() -> std::function<void()> { if (issued) race_read_done(*warp, b, from, bytes, issued->pc); check_written(b, from, bytes); std::vector<char> v(b->shared.data() + from, b->shared.data() + from + bytes); return [=] { if (issued && op < 0) race_async_global(*issued, to, bytes, true, true); reduce_bytes(reinterpret_cast<char*>(to), v.data(), bytes, op, t); }; });
  }
  return OK;
}
int bulk_commit(Warp& w, const Ins&, u32 m) { if (w.bulk.empty()) w.bulk.resize(32); LANES(m) { BulkGroup g; g.reads = std::move(w.bulk[l].open); w.bulk[l].groups.push_back(std::move(g)); w.bulk[l].open.clear(); } return OK; }
int bulk_wait(Warp& w, const Ins& i, u32 m) {  // late: the source is read when somebody waits for that, the result written when somebody waits for it
  if (w.bulk.empty()) return OK;
  LANES(m) { auto& g = w.bulk[l].groups; if (i.flag) { for (size_t k = 0; k + i.a < g.size(); ++k) g[k].do_reads(); } else while (g.size() > static_cast<size_t>(i.a)) { g.front().do_all(); g.pop_front(); } }
  return OK;
}
int tensor_load(Warp& w, const Ins& i, u32 m) {  // ext: coordinates; o: to, map, barrier, mask (flag)
  LANES(m) {
    u32 to = w.r<u32>(i.o[0])[l] + i.a, bar = w.r<u32>(i.o[2])[l] + i.c; u64 map = w.r<u64>(i.o[1])[l] + i.b; s32 at[5] = {};
    for (size_t k = 0; k < i.ext.size(); ++k) at[k] = w.r<s32>(i.ext[k])[l];
    TensorMap t = read_map(map); if (t.rank != static_cast<int>(i.ext.size())) FAIL("tensor map has %d dimensions, the instruction %zu", t.rank, i.ext.size());
    const u32 bytes = t.box_bytes();
    if ((to & 0xffffff) % 128) FAIL("tensor copy to %#x, which is no multiple of 128", to);
    const u64 end = t.base + t.extent(); check_global_range(w, t.base, end - t.base, false);
    std::vector<Block*> blocks; if (i.flag) { u32 mask = w.r<u16>(i.o[4])[l]; if (!mask || mask >> w.block->cluster->blocks.size()) FAIL("multicast mask %#x in a cluster of %zu", mask, w.block->cluster->blocks.size()); for (int k = 0; k < 16; ++k) if (mask >> k & 1) blocks.push_back(w.block->cluster->blocks[k].get()); }
    else { blocks.push_back(block_of(w, to)); if (block_of(w, bar) != blocks[0]) FAIL("tensor copy: destination and barrier are in different blocks"); }
    std::vector<s32> c(at, at + 5);
    for (Block* b : blocks) { u32 a = to & 0xffffff, ba = bar & 0xffffff; check_shared_range(b, a, bytes, "tensor copy");
      auto issued = race_issue(w); if (issued) race_async_shared(*issued, b, a, bytes, true, false);
      if (issued && races_global()) t.copy(const_cast<char*>(b->shared.data()), a, c.data(), true, [&](char*, const char* g, u32 n) { if (g) { race_async_global(*issued, reinterpret_cast<u64>(g), n, false, false); race_async_global(*issued, reinterpret_cast<u64>(g), n, false, true); } });
      start(w, [=] { if (issued) race_async_shared(*issued, b, a, bytes, true, true); if (!b->live_warps) FAIL("tensor copy arrives in a block that has exited"); t.copy(b->shared.data(), a, c.data(), true, [](char* s, const char* g, u32 n) { if (g) memcpy(s, g, n); else memset(s, 0, n); }); mark_written(b, a, bytes); barrier_tx(b, ba, -s64(bytes), issued.get()); }, i.text); }
  }
  return OK;
}
int tensor_store(Warp& w, const Ins& i, u32 m) {
  LANES(m) {
    u64 map = w.r<u64>(i.o[1])[l] + i.b; u32 from = (w.r<u32>(i.o[0])[l] + i.a) & 0xffffff; s32 at[5] = {}; for (size_t k = 0; k < i.ext.size(); ++k) at[k] = w.r<s32>(i.ext[k])[l];
    TensorMap t = read_map(map); if (t.rank != static_cast<int>(i.ext.size())) FAIL("tensor map has %d dimensions, the instruction %zu", t.rank, i.ext.size());
    if (from % 128) FAIL("tensor store from %#x, which is no multiple of 128", from);
    check_global_range(w, t.base, t.extent(), true); Block* b = w.block; check_shared_range(b, from, t.box_bytes(), "tensor store"); std::vector<s32> c(at, at + 5); const int op = i.c; const Type ty = t.element();
    auto issued = race_issue(w); Warp* warp = &w; if (issued) race_async_shared(*issued, b, from, t.box_bytes(), false, false);
    push_bulk(w, l, [=]() -> std::function<void()> { if (issued) race_read_done(*warp, b, from, t.box_bytes(), issued->pc); std::vector<char> v(b->shared.begin() + from, b->shared.begin() + from + t.box_bytes());
      return [=] { t.copy(const_cast<char*>(v.data()) - from, from, c.data(), false, [&](char* s, const char* g, u32 n) { if (g && issued && op < 0 && races_global()) { race_async_global(*issued, reinterpret_cast<u64>(g), n, true, false); race_async_global(*issued, reinterpret_cast<u64>(g), n, true, true); } if (g) reduce_bytes(const_cast<char*>(g), s, n, op, ty); }); }; });
  }
  return OK;
}
int mapa(Warp& w, const Ins& i, u32 m) {  // flag: 64 bits
  LANES(m) { u32 rank = w.r<u32>(i.o[2])[l]; if (rank >= w.block->cluster->blocks.size()) FAIL("mapa: block %u of a cluster of %zu", rank, w.block->cluster->blocks.size());
    u64 a = i.base64 ? w.r<u64>(i.o[1])[l] : w.r<u32>(i.o[1])[l]; u64 v = (a & ~0xff000000ull) | u64(rank + 1) << 24; if (i.flag2) v = (v & 0xffffffff); if (i.base64) w.r<u64>(i.o[0])[l] = v; else w.r<u32>(i.o[0])[l] = v; }
  return OK;
}
int getctarank(Warp& w, const Ins& i, u32 m) { LANES(m) { u64 a = i.base64 ? w.r<u64>(i.o[1])[l] : w.r<u32>(i.o[1])[l]; u32 r = u32(a) >> 24; w.r<u32>(i.o[0])[l] = r ? r - 1 : w.block->rank; } return OK; }
int st_async(Warp& w, const Ins& i, u32 m) {  // base: to; ext: values; o[3]: barrier (+c); width
  LaneAddresses a(w, i);
  LANES(m) { u32 to = a[l], bar = w.r<u32>(i.o[3])[l] + i.c; Block* b = block_of(w, to); if (block_of(w, bar) != b) FAIL("st.async: destination and barrier are in different blocks"); const u32 bytes = i.n * i.width; if (to % bytes) FAIL("st.async: misaligned"); check_shared_range(b, to & 0xffffff, bytes, "st.async");
    std::vector<char> v(bytes); for (int k = 0; k < i.n; ++k) memcpy(v.data() + k * i.width, w.R + i.ext[k] + l * i.width, i.width); u32 at = to & 0xffffff, ba = bar & 0xffffff;
    auto issued = race_issue(w); if (issued) race_async_shared(*issued, b, at, bytes, true, false);
    start(w, [=] { if (issued) race_async_shared(*issued, b, at, bytes, true, true); if (!b->live_warps) FAIL("st.async arrives in a block that has exited"); memcpy(b->shared.data() + at, v.data(), bytes); mark_written(b, at, bytes); barrier_tx(b, ba, -s64(bytes), issued.get()); }, i.text); }
  return OK;
}
int space_of(const Text& x) {
  for (auto& m : x.mods) { if (m == "global") return GLOBAL; if (m.rfind("shared", 0) == 0) return SHARED; if (m == "local") return LOCAL; if (m.rfind("param", 0) == 0) return PARAM; if (m == "const") return CONST; }
  return GENERIC;
}
template <class M> Handler pick_load(int reg, bool vec) {
  using S = std::conditional_t<std::is_signed_v<M>, s16, u16>; using I = std::conditional_t<std::is_signed_v<M>, s32, u32>; using L = std::conditional_t<std::is_signed_v<M>, s64, u64>;
  if (reg == 2) { if constexpr (sizeof(M) <= 2) return vec ? &load_vector<M, S> : &load1<M, S>; }
  if (reg == 4) { if constexpr (sizeof(M) <= 4) return vec ? &load_vector<M, I> : &load1<M, I>; }
  if (reg == 8) return vec ? &load_vector<M, L> : &load1<M, L>;
  return nullptr;
}
template <class M> Handler pick_store(int reg, bool vec) {
  if (reg == 2) { if constexpr (sizeof(M) <= 2) return vec ? &store_vector<M, u16> : &store1<M, u16>; }
  if (reg == 4) { if constexpr (sizeof(M) <= 4) return vec ? &store_vector<M, u32> : &store1<M, u32>; }
  if (reg == 8) return vec ? &store_vector<M, u64> : &store1<M, u64>;
  return nullptr;
}
}  // namespace

bool decode_memory(Decoder& d, const Text& x, Ins& i) {
  const std::string& op = x.op; const auto& A = x.args; Type t = last_type(x);
  const int bytes = std::max(1, t.bits / 8);
  auto addr = [&](const Operand& o, u32& reg, s32& offset, bool& wide) {  // a register and a constant offset
    if (o.kind != Operand::ADDR) FAIL("address expected"); const Operand& b = o.elems[0]; offset = o.offset;
    if (b.kind == Operand::REG) { RegInfo r = d.reg(b); reg = r.offset; wide = r.bytes == 8; } else { reg = d.src(b, 4); wide = false; }
  };
  auto shared_addr = [&](const Operand& o, u32& reg, s32& offset) { bool wide; addr(o, reg, offset, wide); if (wide) FAIL("64-bit shared address in an asynchronous copy"); };
  auto global_addr = [&](const Operand& o, u32& reg, s32& offset) { bool wide; addr(o, reg, offset, wide); if (!wide) FAIL("32-bit global address"); };
  if (op == "ld" || op == "ldu" || op == "st") {
    if (op == "st" && has(x, "async")) {
      i.base64 = false; d.address(A[0], i); if (i.base64) FAIL("64-bit address in st.async"); i.width = bytes; const Operand& v = A[1];
      if (v.kind == Operand::VEC) for (auto& e : v.elems) i.ext.push_back(d.src(e, bytes)); else i.ext.push_back(d.src(v, bytes)); i.n = i.ext.size(); s32 off = 0; u32 r; shared_addr(A[2], r, off); i.o[3] = r; i.c = off; i.fn = &st_async; return true;
    }
    i.space = space_of(x); const bool load = op != "st"; d.address(load ? A[1] : A[0], i); const Operand& v = load ? A[0] : A[1];
    i.c = !load && (has(x, "volatile") || has(x, "release") || has(x, "relaxed") || has(x, "mmio")); i.flag2 = has(x, "acquire") || has(x, "release");
    i.flag = load && (has(x, "volatile") || has(x, "acquire") || has(x, "relaxed") || has(x, "mmio"));
    if (i.space == PARAM && i.base < 0) FAIL("parameter address");
    const bool vec = v.kind == Operand::VEC; int reg = 0;
    if (t.bits == 128) { FAIL("b128"); }
    if (vec) { i.n = v.elems.size(); for (auto& e : v.elems) { if (e.kind == Operand::SINK) { i.ext.push_back(0); continue; } if (e.kind == Operand::REG) { RegInfo r = d.reg(e); if (reg && r.bytes != reg) FAIL("registers of different sizes"); reg = r.bytes; } }
      if (!reg) reg = std::max(bytes, 2); i.ext.clear(); for (auto& e : v.elems) i.ext.push_back(e.kind == Operand::SINK ? 0 : load ? d.dst(e, reg) : d.src(e, reg)); }
    else if (v.kind == Operand::REG) { reg = d.reg(v).bytes; i.o[0] = d.reg(v).offset; } else if (v.kind == Operand::SINK) { reg = std::max(bytes, 2); i.o[0] = d.scratch_at; } else { reg = std::max(bytes, 2); i.o[0] = d.src(v, reg); }
    if (load) switch (t.bits * 2 + (t.kind == 's')) { case 16: i.fn = pick_load<u8>(reg, vec); break; case 17: i.fn = pick_load<s8>(reg, vec); break; case 32: i.fn = pick_load<u16>(reg, vec); break; case 33: i.fn = pick_load<s16>(reg, vec); break;
      case 64: i.fn = pick_load<u32>(reg, vec); break; case 65: i.fn = pick_load<s32>(reg, vec); break; case 128: i.fn = pick_load<u64>(reg, vec); break; case 129: i.fn = pick_load<s64>(reg, vec); break; }
    else switch (t.bits) { case 8: i.fn = pick_store<u8>(reg, vec); break; case 16: i.fn = pick_store<u16>(reg, vec); break; case 32: i.fn = pick_store<u32>(reg, vec); break; case 64: i.fn = pick_store<u64>(reg, vec); break; }
    return true;
  }
  if (op == "atom" || op == "red") {
    if (op == "red" && has(x, "async")) FAIL("red.async");
    i.space = space_of(x); i.flag2 = op == "atom"; i.c = (has(x, "acquire") || has(x, "acq_rel") ? 1 : 0) | (has(x, "release") || has(x, "acq_rel") ? 2 : 0); size_t k = i.flag2 ? 1 : 0; d.address(A[k], i);
    static const std::map<std::string, int> code = {{"add", A_ADD}, {"min", A_MIN}, {"max", A_MAX}, {"and", A_AND}, {"or", A_OR}, {"xor", A_XOR}, {"exch", A_EXCH}, {"cas", A_CAS}, {"inc", A_INC}, {"dec", A_DEC}};
    i.a = -1; for (auto& mm : x.mods) { auto it = code.find(mm); if (it != code.end()) i.a = it->second; } if (i.a < 0) FAIL("operation");
    if (A[k + 1].kind == Operand::VEC) { if (i.flag2) FAIL("vector atom"); i.n = A[k + 1].elems.size(); i.width = t.bits / 8; i.b = t.kind == 'f' && t.bits == 32 ? 0 : t.kind == 'f' || t.kind == 'F' ? 1 : 2; for (auto& e : A[k + 1].elems) i.ext.push_back(d.src(e, i.width)); i.fn = &red_vector; return true; }
    if (i.flag2) i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[k + 1], bytes); if (i.a == A_CAS) i.o[2] = d.src(A[k + 2], bytes);
    if (t.kind == 'F') i.fn = &atom_half<false, 2>; else if (t.kind == 'G') i.fn = &atom_half<true, 2>; else if (t.kind == 'g') i.fn = &atom_half<true, 1>; else if (t.kind == 'f' && t.bits == 16) i.fn = &atom_half<false, 1>;
    else if (t.kind == 'f') i.fn = t.bits == 32 ? &atom<float, true> : &atom<double, true>;
    else switch (t.bits * 2 + (t.kind == 's')) { case 32: i.fn = &atom<u16, false>; break; case 64: i.fn = &atom<u32, false>; break; case 65: i.fn = &atom<s32, false>; break; case 128: i.fn = &atom<u64, false>; break; case 129: i.fn = &atom<s64, false>; break; }
    return true;
  }
  if (op == "mapa") { const bool wide = t.bits == 64; i.base64 = wide; i.flag2 = wide && has(x, "shared::cluster"); i.o[0] = d.dst(A[0], bytes); i.o[1] = d.src(A[1], bytes); i.o[2] = d.src(A[2], 4); i.fn = &mapa; return true; }
  if (op == "getctarank") { i.base64 = t.bits == 64; i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], bytes); i.fn = &getctarank; return true; }
  if (op != "cp") return false;
  if (x.mods[0] == "reduce" ? !has(x, "bulk") : x.mods[0] != "async") return false;
  if (!has(x, "bulk")) {
    if (x.mods[1] == "commit_group") { i.fn = &cp_commit; return true; }
    if (x.mods[1] == "wait_all") { i.a = -1; i.fn = &cp_wait; return true; }
    if (x.mods[1] == "wait_group") { i.a = A[0].imm; i.fn = &cp_wait; return true; }
    if (x.mods[1] == "mbarrier") return false;
    if (has(x, "ca") || has(x, "cg")) {
      d.address(A[0], i); bool wide; u32 r; s32 off; addr(A[1], r, off, wide); i.o[2] = r; i.b = off; if (!wide) FAIL("source"); i.a = A[2].imm; if (i.a != 4 && i.a != 8 && i.a != 16) FAIL("size"); if (has(x, "cg") && i.a != 16) FAIL("cg copies 16 bytes");
      if (A.size() > 3) { if (has(x, "L2::cache_hint") && A.size() == 4) {} else if (A[3].kind == Operand::REG && d.reg(A[3]).pred) { i.o[3] = d.pred(A[3]); i.n = 1; } else { i.o[1] = d.src(A[3], 4); i.flag2 = true; } }
      i.fn = &cp_async; return true;
    }
    return false;
  }
  if (has(x, "commit_group")) { i.fn = &bulk_commit; return true; }
  if (has(x, "wait_group")) { i.a = A[0].imm; i.flag = has(x, "read"); i.fn = &bulk_wait; return true; }
  if (has(x, "prefetch")) { i.fn = [](Warp&, const Ins&, u32) -> int { return OK; }; return true; }
  const bool reduce = x.mods[0] == "reduce"; i.c = -1;
  if (reduce) { static const std::map<std::string, int> code = {{"add", A_ADD}, {"min", A_MIN}, {"max", A_MAX}, {"and", A_AND}, {"or", A_OR}, {"xor", A_XOR}, {"inc", A_INC}, {"dec", A_DEC}}; for (auto& mm : x.mods) { auto it = code.find(mm); if (it != code.end()) i.c = it->second; } if (i.c < 0) FAIL("reduction"); }
  size_t first = 0; std::vector<std::string> spaces; for (auto& mm : x.mods) if (mm == "global" || mm.rfind("shared", 0) == 0) spaces.push_back(mm); (void)first;
  if (spaces.size() != 2) FAIL("spaces");
  if (has(x, "tensor")) {
    if (has(x, "im2col")) FAIL("im2col");
    s32 off;
    if (spaces[0] != "global") {  // [dst], [map, {c}], [bar] {, mask}
      shared_addr(A[0], i.o[0], off); i.a = off; global_addr(A[1], i.o[1], off); i.b = off; for (auto& e : A[1].elems[1].elems) i.ext.push_back(d.src(e, 4)); shared_addr(A[2], i.o[2], off); i.c = off; i.flag = has(x, "multicast::cluster"); if (i.flag) i.o[4] = d.src(A[3], 2); i.fn = &tensor_load;
    } else { global_addr(A[0], i.o[1], off); i.b = off; for (auto& e : A[0].elems[1].elems) i.ext.push_back(d.src(e, 4)); shared_addr(A[1], i.o[0], off); i.a = off; if (!has(x, "bulk_group")) FAIL("completion"); i.fn = &tensor_store; }
    return true;
  }
  s32 off;
  if (spaces[0] != "global" && spaces[1] == "global") { shared_addr(A[0], i.o[0], off); i.a = off; global_addr(A[1], i.o[1], off); i.b = off; i.o[2] = d.src(A[2], 4); shared_addr(A[3], i.o[3], off); i.c = off; i.flag = has(x, "multicast::cluster"); if (i.flag) i.o[4] = d.src(A[4], 2); i.fn = &bulk_load; return true; }
  if (spaces[0] != "global") { if (reduce) FAIL("reduction in shared memory"); shared_addr(A[0], i.o[0], off); i.a = off; shared_addr(A[1], i.o[1], off); i.b = off; i.o[2] = d.src(A[2], 4); shared_addr(A[3], i.o[3], off); i.c = off; i.fn = &bulk_shared; return true; }
  global_addr(A[0], i.o[0], off); i.a = off; shared_addr(A[1], i.o[1], off); i.b = off; i.o[2] = d.src(A[2], 4); i.n = t.kind; i.width = t.bits / 8; if (!has(x, "bulk_group")) FAIL("completion"); i.fn = &bulk_store; return true;
}
