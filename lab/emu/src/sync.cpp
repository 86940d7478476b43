// What threads do together: warp shuffles and votes, barriers, mbarriers, clusters.
#include "core.h"
#include "races.h"
#include "tensor_map.h"
#include <algorithm>

namespace {
// Lanes whose member masks are all here may go; the others wait. Returns the lanes that may go.
u32 present(Warp& w, const u32* members, u32 m) {
  u32 go = 0;
  for (u32 k = m; k; k &= k - 1) {
    const int l = __builtin_ctz(k); u32 need = members[l];
    if (!(need >> l & 1)) FAIL("lane %d is not in its own member mask %#x", l, need);
    if (need & w.all & ~w.live) warn_once(w.block->launch->kernel->name + "exited", "member mask " + std::to_string(need) + " names lanes that have exited: " + where(w));
    need &= w.live;
    if ((need & ~m) == 0) go |= 1u << l;
  }
  return go;
}
#define ALL_PRESENT(members) { u32 go_ = present(w, members, m); if (go_ != m) return RETRY; }

int shfl(Warp& w, const Ins& i, u32 m) {  // a: mode 0 up 1 down 2 bfly 3 idx; o: d, p, a, b, c, members
  const u32* mem = w.r<u32>(i.o[5]); ALL_PRESENT(mem)
  u32* d = w.r<u32>(i.o[0]); const u32 *a = w.r<u32>(i.o[2]), *b = w.r<u32>(i.o[3]), *c = w.r<u32>(i.o[4]); u32 out[32], bits = 0;
  for (u32 k = m; k; k &= k - 1) {
    const int l = __builtin_ctz(k); const int bv = b[l] & 31, clamp = c[l] & 31, seg = c[l] >> 8 & 31; const int maxl = (l & seg) | (clamp & ~seg), minl = l & seg; int j; bool p;
    switch (i.a) { case 0: j = l - bv; p = j >= maxl; break; case 1: j = l + bv; p = j <= maxl; break; case 2: j = l ^ bv; p = j <= maxl; break; default: j = minl | (bv & ~seg); p = j <= maxl; }
    if (!p) j = l;
    if (!(m >> j & 1)) { if (w.all >> j & 1) warn_once(w.block->launch->kernel->name + i.text, "a shuffle reads lane " + std::to_string(j) + " which takes no part: " + where(w)); out[l] = 0xdeadbeef; } else out[l] = a[j];
    bits |= u32(p) << l;
  }
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); d[l] = out[l]; }
  if (i.flag) { u32* p = w.r<u32>(i.o[1]); *p = (*p & ~m) | bits; }
  return OK;
}
int vote(Warp& w, const Ins& i, u32 m) {  // a: 0 all 1 any 2 uni 3 ballot; o: d, p, members
  const u32* mem = w.r<u32>(i.o[2]); ALL_PRESENT(mem)
  u32 p = *w.r<u32>(i.o[1]); if (i.flag) p = ~p; u32 bits = 0;
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); const u32 in = mem[l] & m, on = p & in; if (i.a == 3) w.r<u32>(i.o[0])[l] = on; else bits |= u32(i.a == 0 ? on == in : i.a == 1 ? on != 0 : on == in || on == 0) << l; }
  if (i.a != 3) { u32* d = w.r<u32>(i.o[0]); *d = (*d & ~m) | bits; }
  return OK;
}
template <class T> int match(Warp& w, const Ins& i, u32 m) {  // a: 0 any 1 all
  const u32* mem = w.r<u32>(i.o[3]); ALL_PRESENT(mem)
  u32* d = w.r<u32>(i.o[0]); const T* a = w.r<T>(i.o[2]); u32 bits = 0, out[32];
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); u32 same = 0; const u32 in = mem[l] & m; for (u32 q = in; q; q &= q - 1) { int j = __builtin_ctz(q); if (a[j] == a[l]) same |= 1u << j; } if (i.a) { bool all = same == in; out[l] = all ? in : 0; bits |= u32(all) << l; } else out[l] = same; }
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); d[l] = out[l]; }
  if (i.flag) { u32* p = w.r<u32>(i.o[1]); *p = (*p & ~m) | bits; }
  return OK;
}
int redux(Warp& w, const Ins& i, u32 m) {  // a: 0 add 1 min 2 max 3 and 4 or 5 xor; flag: signed
  const u32* mem = w.r<u32>(i.o[2]); ALL_PRESENT(mem)
  u32* d = w.r<u32>(i.o[0]); const u32* a = w.r<u32>(i.o[1]); u32 out[32];
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); bool first = true; u32 r = 0;
    for (u32 q = mem[l] & m; q; q &= q - 1) { u32 v = a[__builtin_ctz(q)]; if (first) { r = v; first = false; continue; }
      switch (i.a) { case 0: r += v; break; case 1: r = i.flag ? u32(std::min(s32(r), s32(v))) : std::min(r, v); break; case 2: r = i.flag ? u32(std::max(s32(r), s32(v))) : std::max(r, v); break; case 3: r &= v; break; case 4: r |= v; break; case 5: r ^= v; break; } }
    out[l] = r; }
  for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); d[l] = out[l]; }
  return OK;
}
int warp_sync(Warp& w, const Ins& i, u32 m) { const u32* mem = w.r<u32>(i.o[0]); ALL_PRESENT(mem) return OK; }
int activemask(Warp& w, const Ins& i, u32 m) { u32* d = w.r<u32>(i.o[0]); for (int l = 0; l < 32; ++l) if (m >> l & 1) d[l] = m; return OK; }
int elect(Warp& w, const Ins& i, u32 m) {
  const u32* mem = w.r<u32>(i.o[2]); ALL_PRESENT(mem)
  u32 bits = 0; for (u32 k = m; k; k &= k - 1) { const int l = __builtin_ctz(k); const int leader = __builtin_ctz(mem[l] & w.live); if (leader == l) bits |= 1u << l; if (i.flag) w.r<u32>(i.o[0])[l] = leader; }
  u32* p = w.r<u32>(i.o[1]); *p = (*p & ~m) | bits; return OK;
}

// ---- barriers of a block
void complete_if_full(Block& b, Bar& bar) {
  int threads = 0; bool all = true; bool any = false;
  for (auto& w : b.warps) { const u32 a = bar.arrived[w.index]; any |= a != 0; if (w.live ? (a & w.live) == w.live : a != 0) threads += 32; else if (w.live) all = false; }
  if (!any) return;
  if (bar.expected) { if (threads > bar.expected) FAIL("barrier: %d threads arrived where %d are expected", threads, bar.expected); if (threads < bar.expected) return; }
  else if (!all) return;
  u64* r = bar.result; r[0] = bar.red_and; r[1] = bar.red_or; r[2] = bar.red_pop; bar.red_and = 1; bar.red_or = 0; bar.red_pop = 0;
  if (options.check_races) race_bar_complete(b, &bar - b.bars);
  std::fill(bar.arrived.begin(), bar.arrived.end(), 0); ++bar.generation; bar.expected = 0; ++progress;
}
int bar(Warp& w, const Ins& i, u32 m) {  // a: 0 sync 1 arrive 2 red; o[0]: id, o[1]: count (flag); o[2]: result, o[3]: predicate; b: 0 and 1 or 2 popc
  const int first = __builtin_ctz(m); const u32 id = w.r<u32>(i.o[0])[first]; if (id > 15) FAIL("barrier %u", id);
  for (u32 k = m; k; k &= k - 1) if (w.r<u32>(i.o[0])[__builtin_ctz(k)] != id) FAIL("threads of a warp name different barriers in one instruction");
  Bar& b = w.block->bars[id]; Fragment& f = *w.cur; if (b.arrived.empty()) b.arrived.resize(w.block->warps.size());
  if (!f.arrived) {
    const int expected = i.flag ? w.r<u32>(i.o[1])[first] : 0;
    if (i.flag && (expected % 32 || expected <= 0)) FAIL("barrier for %d threads", expected);
    if (std::any_of(b.arrived.begin(), b.arrived.end(), [](u32 a) { return a != 0; }) && b.expected != expected) FAIL("barrier %u: some expect %d threads, some %d (0: all)", id, b.expected, expected);
    if (b.arrived[w.index] & m) FAIL("threads arrive twice at barrier %u", id);
    b.expected = expected; b.arrived[w.index] |= m; f.generation = b.generation;
    if (i.a == 2) { u32 p = *w.r<u32>(i.o[3]); if (i.flag2) p = ~p; p &= m; if (p != m) b.red_and = 0; if (p) b.red_or = 1; b.red_pop += __builtin_popcount(p); }
    if (i.a != 1) f.arrived = true;
    if (options.check_races) race_bar_arrive(w, id);
    complete_if_full(*w.block, b);
    if (i.a == 1) return OK;
  }
  if (b.generation == f.generation) return RETRY;
  f.arrived = false; if (options.check_races) race_bar_pass(w, id);
  if (i.a == 2) { if (i.b == 2) { for (u32 k = m; k; k &= k - 1) w.r<u32>(i.o[2])[__builtin_ctz(k)] = b.result[2]; } else { u32* d = w.r<u32>(i.o[2]); *d = b.result[i.b] ? *d | m : *d & ~m; } }
  return OK;
}

// ---- mbarriers: bit 0 phase, 1-20 expected, 21-40 pending, 41-63 bytes under way (signed)
struct Mbar { u32 phase, expected, pending; s32 tx; };
Mbar unpack(u64 v) { return {u32(v & 1), u32(v >> 1 & 0xfffff), u32(v >> 21 & 0xfffff), s32(s64(v) >> 41)}; }
u64 pack(const Mbar& b) { return u64(b.phase) | u64(b.expected) << 1 | u64(b.pending) << 21 | u64(s64(b.tx)) << 41; }
struct Ref { Block* block; u32 at; };
Ref bar_at(Warp& w, u64 address) {
  if (address >> 32 && !(address & kSharedTag)) FAIL("mbarrier at %#llx, which is no shared address", (unsigned long long)address);
  u32 a = static_cast<u32>(address), rank = a >> 24; Block* b = w.block;
  if (rank) { if (rank - 1 >= b->cluster->blocks.size()) FAIL("mbarrier in block %u of a cluster of %zu", rank - 1, b->cluster->blocks.size()); b = b->cluster->blocks[rank - 1].get(); if (!b->live_warps) FAIL("mbarrier of a block that has exited"); }
  a &= 0xffffff; if (a % 8 || a < 1024 || a + 8 > b->shared_size) FAIL("mbarrier at shared address %#x", a);
  return {b, a};
}
Mbar get(const Ref& r) { u64 v; memcpy(&v, r.block->shared.data() + r.at, 8); Mbar b = unpack(v); if (v == ~0ull || !b.expected || b.pending > b.expected) FAIL("mbarrier at shared address %#x of block %d is not initialised (or overwritten): %#llx", r.at, r.block->rank, (unsigned long long)v); return b; }
void put(const Ref& r, const Mbar& b) { u64 v = pack(b); memcpy(r.block->shared.data() + r.at, &v, 8); if (options.check_uninitialised) memset(r.block->written.data() + r.at, 1, 8); ++progress; }
void settle(Mbar& b, const Ref& r) { if (b.pending == 0 && b.tx == 0) { b.phase ^= 1; b.pending = b.expected; if (options.check_races) race_mbar_complete(r.block, r.at); } }
int mbar_init(Warp& w, const Ins& i, u32 m) { LaneAddresses a(w, i); LANES(m) { Ref r = bar_at(w, a[l]); u32 n = w.r<u32>(i.o[1])[l]; if (!n || n > 0xfffff) FAIL("mbarrier.init with %u arrivals", n); put(r, {0, n, n, 0}); } return OK; }
int mbar_inval(Warp& w, const Ins& i, u32 m) { LaneAddresses a(w, i); LANES(m) { Ref r = bar_at(w, a[l]); get(r); memset(r.block->shared.data() + r.at, 0xff, 8); } return OK; }
int mbar_arrive(Warp& w, const Ins& i, u32 m) {  // a: 0 arrive 1 arrive+expect 2 expect only 3 complete; o[0] state (flag), o[1] count or bytes (flag2); b: drop; c: noComplete
  LaneAddresses a(w, i);
  LANES(m) {
    Ref r = bar_at(w, a[l]); Mbar b = get(r); u32 n = i.flag2 ? w.r<u32>(i.o[1])[l] : 1;
    if (i.flag) w.r<u64>(i.o[0])[l] = u64(b.phase) | u64(b.pending) << 1;
    if (i.a == 1 || i.a == 2) { b.tx += n; if (b.tx > 0xfffff) FAIL("mbarrier expects %d bytes", b.tx); }
    if (i.a == 3) b.tx -= n;
    u32 arrivals = i.a == 0 ? n : i.a == 1 ? 1 : 0;
    if (arrivals > b.pending) FAIL("%u arrivals at the mbarrier at %#x, which waits for %u more", arrivals, r.at, b.pending);
    b.pending -= arrivals; if (i.b) { b.expected -= arrivals; } if (options.check_races && arrivals) race_mbar_arrive(w, r.block, r.at); settle(b, r); put(r, b);
  }
  return OK;
}
int mbar_test(Warp& w, const Ins& i, u32 m) {  // a: 1 try (waits), 0 test; flag: parity; o[0] predicate, o[1] state or parity
  LaneAddresses a(w, i); u32 bits = 0;
  LANES(m) { Ref r = bar_at(w, a[l]); if (r.block != w.block) FAIL("a wait on an mbarrier of another block"); Mbar b = get(r); u32 phase = i.flag ? w.r<u32>(i.o[1])[l] & 1 : u32(w.r<u64>(i.o[1])[l] & 1); if (b.phase != phase) bits |= 1u << l; }
  if (options.check_races) { u64 last = 0; LANES(bits) { if (a[l] == last) continue; last = a[l]; Ref r = bar_at(w, last); race_mbar_pass(w, r.block, r.at); } }
  u32* p = w.r<u32>(i.o[0]);
  if (i.a && bits != m) { if (options.spurious && random_bits() % 4 == 0) { *p = (*p & ~m) | bits; return YIELD; } if (!bits) return RETRY; }
  *p = (*p & ~m) | bits; return bits == m ? OK : YIELD;
}
int mbar_pending(Warp& w, const Ins& i, u32 m) { LANES(m) w.r<u32>(i.o[0])[l] = u32(w.r<u64>(i.o[1])[l] >> 1 & 0xfffff); return OK; }
int cp_arrive(Warp& w, const Ins& i, u32 m) {  // cp.async.mbarrier.arrive: when the copies before are done; flag: noinc
  LaneAddresses a(w, i);
  LANES(m) {
    Ref r = bar_at(w, a[l]); std::vector<Copy> copies;
    if (!w.copies.empty()) { auto& c = w.copies[l]; for (auto& g : c.groups) for (auto& k : g.copies) copies.push_back(k); for (auto& k : c.open) copies.push_back(k); }
    if (!i.flag) { Mbar b = get(r); ++b.pending; put(r, b); }
    auto issued = race_issue(w);
    auto run = [=] { for (auto& c : copies) { if (issued) race_async_shared(*issued, c.block, c.address, c.bytes, true, true); std::vector<char> v(c.bytes, 0); memcpy(v.data(), c.from, c.valid); memcpy(c.to, v.data(), c.bytes); if (options.check_uninitialised) memset(c.block->written.data() + c.address, 1, c.bytes); }
      Mbar b = get(r); if (!b.pending) FAIL("too many arrivals at an mbarrier"); --b.pending; if (issued) race_mbar_tx(*issued, r.block, r.at); settle(b, r); put(r, b); };
    if (options.async_mode == 1) run(); else w.block->async.push_back({run, i.text});
  }
  return OK;
}

// ---- clusters
int cluster_arrive(Warp& w, const Ins&, u32 m) {
  Cluster& c = *w.block->cluster;
  LANES(m) { if (w.cluster_generation[l] != 0) FAIL("barrier.cluster.arrive twice without a wait"); w.cluster_generation[l] = c.generation + 1; }
  c.arrived += __builtin_popcount(m); ++progress; if (options.check_races) race_cluster_arrive(w);
  if (c.arrived >= c.live_threads) { c.arrived = 0; ++c.generation; if (options.check_races) race_cluster_complete(c); }
  return OK;
}
int cluster_wait(Warp& w, const Ins&, u32 m) {
  Cluster& c = *w.block->cluster;
  LANES(m) { if (!w.cluster_generation[l]) FAIL("barrier.cluster.wait without an arrive"); if (w.cluster_generation[l] == c.generation + 1) return RETRY; }
  LANES(m) w.cluster_generation[l] = 0;
  if (options.check_races) race_cluster_pass(w);
  return OK;
}
int pdl_wait(Warp& w, const Ins&, u32) { w.pdl_waited = true; return OK; }
int yield_(Warp&, const Ins&, u32) { return YIELD; }
int ok(Warp&, const Ins&, u32) { return OK; }
int exited(Warp&, const Ins&, u32) { return OK; }
}  // namespace

void barrier_tx(Block* block, u32 at, s64 bytes, Issued* issued) { Ref r{block, at}; if (at % 8 || at < 1024 || at + 8 > block->shared_size) FAIL("mbarrier of a copy at shared address %#x", at); Mbar b = get(r); b.tx += s32(bytes); if (b.tx < -0xfffff) FAIL("mbarrier: more bytes arrive than are expected"); if (issued) race_mbar_tx(*issued, block, at); settle(b, r); put(r, b); }
void block_lost_threads(Block& b) { for (auto& bar : b.bars) if (!bar.arrived.empty()) complete_if_full(b, bar); }
std::string describe_barrier(Warp& w, const Ins& i) {
  char t[200] = ""; if (!w.cur || !w.cur->mask) return t; const int l = __builtin_ctz(w.cur->mask);
  if (i.fn == mbar_test) { LaneAddresses a(w, i); Ref r = bar_at(w, a[l]); Mbar b = get(r); snprintf(t, sizeof t, "mbarrier %#x: phase bit %u, waits for %u of %u arrivals and %d bytes; asked parity %u", r.at, b.phase, b.pending, b.expected, b.tx, i.flag ? w.r<u32>(i.o[1])[l] & 1 : u32(w.r<u64>(i.o[1])[l] & 1)); }
  if (i.fn == bar) { u32 id = w.r<u32>(i.o[0])[l]; Bar& b = w.block->bars[id]; int n = 0; for (u32 a : b.arrived) n += a != 0; snprintf(t, sizeof t, "barrier %u: %d warps have arrived, expected threads %d (0: all)", id, n, b.expected); }
  return t;
}

bool decode_sync(Decoder& d, const Text& x, Ins& i) {
  const std::string& op = x.op; const auto& A = x.args; Type t = last_type(x);
  i.flow = SYNC;
  if (op == "shfl") {
    if (!has(x, "sync")) FAIL("shfl without sync"); i.a = has(x, "up") ? 0 : has(x, "down") ? 1 : has(x, "bfly") ? 2 : 3; i.o[0] = d.dst(A[0], 4);
    if (!A[0].second.empty() && A[0].second != "_") { Operand q = A[0]; q.name = q.second; i.o[1] = d.pred(q); i.flag = true; }
    for (int k = 1; k < 5; ++k) i.o[k + 1] = d.src(A[k], 4); i.fn = &shfl; return true;
  }
  if (op == "vote") { if (!has(x, "sync")) FAIL("vote without sync"); i.a = has(x, "all") ? 0 : has(x, "any") ? 1 : has(x, "uni") ? 2 : 3; i.o[0] = i.a == 3 ? d.dst(A[0], 4) : d.pred(A[0]); i.o[1] = d.pred(A[1]); i.flag = A[1].neg; i.o[2] = d.src(A[2], 4); i.fn = &vote; return true; }
  if (op == "match") { i.a = has(x, "all"); i.o[0] = d.dst(A[0], 4); if (!A[0].second.empty()) { Operand q = A[0]; q.name = q.second; i.o[1] = d.pred(q); i.flag = true; } i.o[2] = d.src(A[1], t.bits / 8); i.o[3] = d.src(A[2], 4); i.fn = t.bits == 64 ? &match<u64> : &match<u32>; return true; }
  if (op == "redux") { if (t.kind == 'f') FAIL("redux of floats"); static const char* k[] = {"add", "min", "max", "and", "or", "xor"}; for (int n = 0; n < 6; ++n) if (has(x, k[n])) i.a = n; i.flag = t.kind == 's'; i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 4); i.o[2] = d.src(A[2], 4); i.fn = &redux; return true; }
  if (op == "activemask") { i.o[0] = d.dst(A[0], 4); i.fn = &activemask; return true; }
  if (op == "elect") { i.o[0] = 0; if (A[0].kind != Operand::SINK && A[0].name != "_") { i.o[0] = d.dst(A[0], 4); i.flag = true; } Operand q = A[0]; q.kind = Operand::REG; q.name = q.second; i.o[1] = d.pred(q); i.o[2] = d.src(A[1], 4); i.fn = &elect; return true; }
  if (op == "bar" || op == "barrier") {
    if (has(x, "warp")) { i.o[0] = d.src(A[0], 4); i.fn = &warp_sync; return true; }
    if (has(x, "cluster")) { i.fn = has(x, "arrive") ? &cluster_arrive : &cluster_wait; return true; }
    i.a = has(x, "arrive") ? 1 : has(x, "red") ? 2 : 0; size_t k = 0;
    if (i.a == 2) { i.b = has(x, "and") ? 0 : has(x, "or") ? 1 : 2; i.o[2] = i.b == 2 ? d.dst(A[0], 4) : d.pred(A[0]); k = 1; i.o[3] = d.pred(A.back()); i.flag2 = A.back().neg; }
    i.o[0] = d.src(A[k], 4); if (A.size() > k + 1 + (i.a == 2)) { i.flag = true; i.o[1] = d.src(A[k + 1], 4); } i.fn = &bar; return true;
  }
  i.flow = PLAIN;
  if (op == "mbarrier") {
    const std::string& what = x.mods[0];
    if (what == "init") { d.address(A[0], i); i.o[1] = d.src(A[1], 4); i.fn = &mbar_init; return true; }
    if (what == "inval") { d.address(A[0], i); i.fn = &mbar_inval; return true; }
    if (what == "pending_count") { i.o[0] = d.dst(A[0], 4); i.o[1] = d.src(A[1], 8); i.fn = &mbar_pending; return true; }
    if (what == "test_wait" || what == "try_wait") { i.a = what == "try_wait"; i.flag = has(x, "parity"); i.o[0] = d.pred(A[0]); d.address(A[1], i); i.o[1] = d.src(A[2], i.flag ? 4 : 8); i.fn = &mbar_test; i.flow = SYNC; return true; }
    if (what == "expect_tx" || what == "complete_tx") { i.a = what == "expect_tx" ? 2 : 3; d.address(A[0], i); i.o[1] = d.src(A[1], 4); i.flag2 = true; i.fn = &mbar_arrive; return true; }
    if (what == "arrive" || what == "arrive_drop") {
      i.b = what == "arrive_drop"; i.a = has(x, "expect_tx") ? 1 : 0; size_t k = A[0].kind == Operand::ADDR ? 0 : 1;
      if (k == 1 && A[0].kind != Operand::SINK) { i.o[0] = d.dst(A[0], 8); i.flag = true; }
      d.address(A[k], i); if (A.size() > k + 1) { i.o[1] = d.src(A[k + 1], 4); i.flag2 = true; } i.fn = &mbar_arrive; return true;
    }
    return false;
  }
  if (op == "cp" && x.mods.size() > 2 && x.mods[0] == "async" && x.mods[1] == "mbarrier") { d.address(A[0], i); i.flag = has(x, "noinc"); i.fn = &cp_arrive; return true; }
  if (op == "griddepcontrol") { i.fn = has(x, "wait") ? &pdl_wait : &ok; return true; }
  if (op == "nanosleep") { i.fn = &yield_; return true; }
  if (op == "setmaxnreg") { i.fn = &ok; return true; }
  (void)exited;
  return false;
}
