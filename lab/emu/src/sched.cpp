// Launches: blocks and warps take turns on one processor.
#include "core.h"
#include "races.h"
#include <algorithm>
#include <chrono>
#include <set>

Options options;
u64 progress = 0; int access_kind = 0;
static u64 random_state = 0x9e3779b97f4a7c15ull;
u64 random_bits() { random_state ^= random_state << 13; random_state ^= random_state >> 7; random_state ^= random_state << 17; return random_state >> 11; }
u64 cached_from = 1, cached_to = 0;
static std::map<u64, Range> ranges;
void add_range(const void* from, u64 bytes, const std::string& what) { u64 f = reinterpret_cast<u64>(from); auto it = ranges.find(f); if (it != ranges.end() && it->second.to >= f + bytes) return; ranges[f] = {f, f + bytes, what}; cached_from = 1; cached_to = 0; }
void remove_range(const void* from) { ranges.erase(reinterpret_cast<u64>(from)); cached_from = 1; cached_to = 0; }
void clear_ranges(const std::string& prefix) { for (auto it = ranges.begin(); it != ranges.end();) it = it->second.what.rfind(prefix, 0) == 0 ? ranges.erase(it) : std::next(it); cached_from = 1; cached_to = 0; }
const Range* find_range(u64 address) {
  auto it = ranges.upper_bound(address); const Range* best = nullptr;
  for (int k = 0; k < 500 && it != ranges.begin(); ++k) { --it; if (address < it->second.to) { best = &it->second; break; } }
  return best;
}
void bad_global(Warp& w, u64 address, u32 size, bool write) {
  // neighbouring or overlapping ranges count as one
  const Range* r = find_range(address); u64 end = r ? r->to : 0;
  while (r && end < address + size) { const Range* n = find_range(end); if (!n) break; end = n->to; }
  if (r && end >= address + size) { cached_from = r->from; cached_to = end; return; }
  std::string near = "no tensor is near";
  auto it = ranges.upper_bound(address);
  if (it != ranges.begin()) { auto b = std::prev(it); near = std::to_string(address - b->second.to) + " bytes behind the end of " + b->second.what + " (" + std::to_string(b->second.to - b->second.from) + " bytes)"; if (r) near = "crosses the end of " + r->what; }
  else if (it != ranges.end()) near = std::to_string(it->second.from - address) + " bytes before " + it->second.what;
  FAIL("global %s of %u bytes at %#llx is outside every tensor: %s", write ? "write" : "read", size, (unsigned long long)address, near.c_str());
}
static std::set<std::string> warned; static std::vector<std::string> warnings;
void warn_once(const std::string& key, const std::string& text) { if (warned.insert(key).second) { warnings.push_back(text); fprintf(stderr, "emu warning: %s\n", text.c_str()); } }
size_t warning_count() { return warnings.size(); }

void block_lost_threads(Block& b);
std::string describe_barrier(Warp& w, const Ins& i);
static std::string source(Kernel* k, const Ins& i) { std::string f = k->files->count(i.file) ? k->files->at(i.file) : "?"; size_t s = f.rfind('/'); return (s == std::string::npos ? f : f.substr(s + 1)) + ":" + std::to_string(i.line); }
std::string source_of_pc(Kernel* k, u32 pc) { return source(k, k->code[pc]); }
std::string where(Warp& w) {
  Block& b = *w.block; Launch& l = *b.launch; char t[400];
  u32 thread = w.index * 32 + w.lane_at;
  snprintf(t, sizeof t, "block (%d,%d,%d) of (%d,%d,%d), cluster rank %d, thread %u of %d (warp %d, lane %u)", b.cta[0], b.cta[1], b.cta[2], l.grid.x, l.grid.y, l.grid.z, b.rank, thread, l.block.count(), w.index, w.lane_at);
  std::string r = std::string(t) + "\n  kernel " + l.kernel->pretty; if (w.at) r += "\n  at " + source(l.kernel, *w.at) + ": " + w.at->text.substr(0, 300);
  return r;
}
void note_unwritten(Warp& w, u32 at) { char t[80]; snprintf(t, sizeof t, "read of shared memory at %#x that nobody has written: ", at); warn_once("u" + source(w.block->launch->kernel, *w.at), t + where(w)); }
std::string source_of(Warp& w) { return source(w.block->launch->kernel, *w.at); }

static std::vector<char*> spare; static size_t spare_bytes = 0;
static char* take_file(size_t bytes) {
  if (spare_bytes != bytes) { for (char* p : spare) free(p); spare.clear(); spare_bytes = bytes; }
  if (!spare.empty()) { char* p = spare.back(); spare.pop_back(); return p; }
  void* p = nullptr; size_t b = (bytes + 4095) / 4096 * 4096; p = aligned_alloc(4096, b); if (!p) FAIL("out of memory"); return static_cast<char*>(p);
}
static void fill(Warp& w, int special, u32 v) { u32* p = w.r<u32>(w.block->launch->kernel->specials + special * 256); for (int l = 0; l < 32; ++l) p[l] = v; }

static void start_block(Block& b) {
  Launch& L = *b.launch; Kernel& k = *L.kernel; b.started = true;
  const int threads = L.block.count(), warps = (threads + 31) / 32;
  b.shared_size = k.dynamic_at + L.dynamic_shared; b.shared.assign(b.shared_size + 64, static_cast<char>(0xff));
  if (options.check_uninitialised) b.written.assign(b.shared_size + 64, 0);
  if (k.local_bytes) { b.local.assign(size_t(threads) * k.local_bytes, static_cast<char>(0xff)); add_range(b.local.data(), b.local.size(), "local memory"); }
  b.warps.resize(warps); b.live_warps = warps; if (options.check_races) race_start(b);
  const Dim &g = L.grid, &n = L.block, &c = L.cluster;
  for (int i = 0; i < warps; ++i) {
    Warp& w = b.warps[i]; w.block = &b; w.index = i; w.R = take_file(k.file_bytes); memcpy(w.R, k.image.data(), k.image.size());
    const int lanes = std::min(32, threads - 32 * i); w.all = w.live = lanes == 32 ? ~0u : (1u << lanes) - 1;
    w.frags.reserve(40); w.frags.push_back({w.live, 0});
    auto sp = [&](int s) { return w.r<u32>(k.specials + s * 256); };
    for (int l = 0; l < 32; ++l) { int t = 32 * i + l; sp(TIDX)[l] = t % n.x; sp(TIDY)[l] = t / n.x % n.y; sp(TIDZ)[l] = t / n.x / n.y; sp(LANE)[l] = l;
      sp(LM_EQ)[l] = 1u << l; sp(LM_LT)[l] = (1u << l) - 1; sp(LM_LE)[l] = (2u << l) - 1; sp(LM_GT)[l] = ~((2u << l) - 1); sp(LM_GE)[l] = ~((1u << l) - 1);
      w.r<u64>(k.specials + PARAM_BASE * 256)[l] = reinterpret_cast<u64>(L.params.data()); w.r<u64>(k.specials + LOCAL_BASE * 256)[l] = reinterpret_cast<u64>(b.local.data()) + u64(std::min(t, threads - 1)) * k.local_bytes; w.r<u64>(k.specials + GRIDID * 256)[l] = 1; }
    fill(w, NTIDX, n.x); fill(w, NTIDY, n.y); fill(w, NTIDZ, n.z); fill(w, CTAX, b.cta[0]); fill(w, CTAY, b.cta[1]); fill(w, CTAZ, b.cta[2]); fill(w, NCTAX, g.x); fill(w, NCTAY, g.y); fill(w, NCTAZ, g.z);
    fill(w, WARPID, i); fill(w, NWARPID, warps); fill(w, CLUSTER_CTARANK, b.rank); fill(w, CLUSTER_NCTARANK, c.count());
    fill(w, CLUSTER_CTAX, b.cta[0] % c.x); fill(w, CLUSTER_CTAY, b.cta[1] % c.y); fill(w, CLUSTER_CTAZ, b.cta[2] % c.z); fill(w, CLUSTER_NCTAX, c.x); fill(w, CLUSTER_NCTAY, c.y); fill(w, CLUSTER_NCTAZ, c.z);
    fill(w, CLUSTERX, b.cta[0] / c.x); fill(w, CLUSTERY, b.cta[1] / c.y); fill(w, CLUSTERZ, b.cta[2] / c.z); fill(w, NCLUSTERX, g.x / c.x); fill(w, NCLUSTERY, g.y / c.y); fill(w, NCLUSTERZ, g.z / c.z);
    fill(w, SMID, (b.cta[0] + b.cta[1] * g.x) % options.sms); fill(w, NSMID, options.sms); fill(w, DYN_SMEM, L.dynamic_shared); fill(w, TOTAL_SMEM, b.shared_size - 1024);
  }
}
static void end_block(Block& b) {
  for (auto& w : b.warps) {
    for (auto& c : w.bulk) { if (!c.open.empty()) warn_once(b.launch->kernel->name + "open", "a bulk store was never committed in " + b.launch->kernel->pretty);
      for (auto& g : c.groups) { if (!g.read) warn_once(b.launch->kernel->name + "unread", "a thread exits while its bulk stores still read shared memory (no wait_group.read) in " + b.launch->kernel->pretty); g.do_all(); } }
    if (!w.wg_groups.empty() || !w.wg_open.empty()) warn_once(b.launch->kernel->name + "wgmma", "a warp exits with wgmmas under way in " + b.launch->kernel->pretty);
    spare.push_back(w.R); w.R = nullptr;
  }
  if (!b.local.empty()) remove_range(b.local.data());
}
static void lanes_exit(Warp& w, u32 m) {
  for (auto& c : w.copies) (void)c;
  w.live &= ~m; Cluster& c = *w.block->cluster; c.live_threads -= __builtin_popcount(m);
  ++progress;
  if (!w.live) { --w.block->live_warps; if (options.pdl && w.block->launch->early && !w.pdl_waited) warn_once(w.block->launch->kernel->name + "nowait", "launched early, but threads exit without griddepcontrol.wait: " + where(w)); }
  block_lost_threads(*w.block);
  // threads that have exited count as arrived
  if (c.live_threads > 0 && c.arrived >= c.live_threads) { c.arrived = 0; ++c.generation; if (options.check_races) race_cluster_complete(c); }
}

static u64 total_instructions = 0;
u64 executed_instructions() { return total_instructions; }

// Runs a warp until it waits or its turn is over; whether it did anything.
static bool run_warp(Warp& w, s64 turn) {
  Kernel& k = *w.block->launch->kernel; Ins* const code = k.code.data(); bool did = false; auto& F = w.frags;
  for (;;) {
    for (size_t a = 0; a < F.size(); ++a) for (size_t b = a + 1; b < F.size();) if (F[a].pc == F[b].pc && !F[a].arrived && !F[b].arrived && (!(F[a].apart || F[b].apart) || code[F[a].pc].flow == SYNC)) { F[a].apart = false; F[a].mask |= F[b].mask; F[a].yielded = false; F.erase(F.begin() + b); } else ++b;
    int pick = -1;
    for (size_t a = 0; a < F.size(); ++a) if (!F[a].yielded && (pick < 0 || F[a].pc < F[pick].pc)) pick = a;
    if (pick < 0) { for (auto& f : F) f.yielded = false; return did; }
    if (turn <= 0) return did;
    if (options.seed && F.size() > 1 && random_bits() % 8 == 0) { size_t r = random_bits() % F.size(); if (!F[r].yielded) pick = r; }
    if (options.diverge && options.seed) {
      if (F[pick].apart) { if (random_bits() % 16 == 0) F[pick].apart = false; }
      else if (!F[pick].arrived && code[F[pick].pc].flow != SYNC && (F[pick].mask & (F[pick].mask - 1)) && F.size() < 8 && random_bits() % 2 == 0) { const u32 some = F[pick].mask & static_cast<u32>(random_bits()); if (some && some != F[pick].mask) { Fragment o{F[pick].mask & ~some, F[pick].pc}; o.apart = true; F[pick].mask = some; F[pick].apart = true; F.push_back(o); } }
    }
    Fragment* f = &F[pick]; w.cur = f; s32 limit = INT32_MAX;
    for (auto& o : F) if (&o != f && o.pc > f->pc && o.pc < limit) limit = o.pc;
    bool again = false;
    while (!again) {
      const Ins& i = code[f->pc]; w.at = &i; ++w.executed; --turn; ++total_instructions;
      u32 m = f->mask; if (i.pred >= 0) { const u32 p = *w.r<u32>(i.pred); m &= i.pneg ? ~p : p; }
      switch (i.flow) {
        case PLAIN: { int st = OK; if (m) { st = i.fn(w, i, m); } ++f->pc; did = true; if (st == YIELD) { f->yielded = true; again = true; } break; }
        case BRA:
          did = true;
          if (m == f->mask) { if (i.target <= f->pc) again = F.size() > 1 || turn <= 0; f->pc = i.target; again |= F.size() > 1; }
          else if (!m) ++f->pc;
          else { Fragment other{f->mask & ~m, f->pc + 1}; f->mask = m; f->pc = i.target; F.push_back(other); again = true; }
          break;
        case BRX: {
          did = true; std::map<u32, u32> by; for (u32 q = m; q; q &= q - 1) { int l = __builtin_ctz(q); u32 x = w.r<u32>(i.o[0])[l]; if (x >= i.ext.size()) FAIL("brx.idx %u", x); by[i.ext[x]] |= 1u << l; }
          if (f->mask & ~m) by[f->pc + 1] |= f->mask & ~m; bool first = true; const int at = f - F.data();
          for (auto& [pc, lanes] : by) { if (first) { F[at].mask = lanes; F[at].pc = pc; first = false; } else F.push_back({lanes, static_cast<s32>(pc)}); }
          again = true; break; }
        case EXIT:
          did = true;
          if (m) { lanes_exit(w, m); f->mask &= ~m; }
          if (!f->mask) { F.erase(F.begin() + (f - F.data())); again = true; } else ++f->pc;
          if (!w.live) return true;
          break;
        case SYNC: {
          if (m != f->mask) { did = true; if (!m) { ++f->pc; break; } F.push_back({f->mask & ~m, f->pc + 1}); f->mask = m; }
          const int st = i.fn(w, i, m);
          if (st == RETRY) { f->yielded = true; again = true; --w.executed; --total_instructions; ++turn; break; }
          did = true; ++f->pc; if (st == YIELD) { f->yielded = true; again = true; } if (F.size() > 1) again = true; break; }
      }
      if (!again && (f->pc >= limit || turn <= 0)) again = true;
      if (options.diverge && options.seed && (random_bits() & 7) == 0) again = true;
    }
  }
}

static void report_waiting(Launch& L, std::string& text) {
  int lines = 0;
  for (auto& c : L.resident) for (auto& b : c->blocks) for (auto& w : b->warps) for (auto& f : w.frags) {
    if (!w.live || ++lines > 48) continue; w.cur = &f; const Ins& i = L.kernel->code[f.pc]; char t[120]; snprintf(t, sizeof t, "\n  block (%d,%d,%d) warp %d lanes %#x: ", b->cta[0], b->cta[1], b->cta[2], w.index, f.mask);
    std::string d; try { d = describe_barrier(w, i); } catch (Error& e) { d = e.what(); }
    text += t + source(L.kernel, i) + ": " + i.text.substr(0, 90) + (d.empty() ? "" : "  [" + d + "]");
  }
  if (lines > 48) text += "\n  ... and " + std::to_string(lines - 48) + " more";
}

static int residency(Launch& L) {
  const int threads = (L.block.count() + 31) / 32 * 32; const u32 shared = L.kernel->dynamic_at + L.dynamic_shared;  // with the system's 1 KiB
  int per = std::min({2048 / threads, int(233472 / std::max<u32>(shared, 1)), 32}); return std::max(per, 1) * options.sms;
}
static void admit(Launch& L) {
  const Dim &g = L.grid, &c = L.cluster; s64 index = L.next_cluster++; const int cx = g.x / c.x, cy = g.y / c.y; auto cl = std::make_unique<Cluster>(); cl->index = index;
  if (options.seed && L.clusters < 100000) { // a fixed shuffle: index -> (index * odd + offset) mod clusters where it is a bijection
    static s64 mult = 1, add = 0, of = -1; if (index == 0 || of != L.clusters) { of = L.clusters; add = random_bits() % of; do mult = random_bits() % of; while (of > 1 && std::__gcd(mult ? mult : of, of) != 1); if (of == 1) mult = 0; } index = (index * mult + add) % L.clusters; }
  const int x0 = index % cx * c.x, y0 = index / cx % cy * c.y, z0 = index / cx / cy * c.z;
  for (int r = 0; r < c.count(); ++r) { auto b = std::make_unique<Block>(); b->launch = &L; b->cluster = cl.get(); b->rank = r; b->cta[0] = x0 + r % c.x; b->cta[1] = y0 + r / c.x % c.y; b->cta[2] = z0 + r / c.x / c.y; cl->blocks.push_back(std::move(b)); }
  cl->live_threads = c.count() * L.block.count();
  for (auto& b : cl->blocks) start_block(*b);
  L.resident.push_back(std::move(cl));
}
static bool run_one_async(Launch& L, bool random) {
  std::vector<Block*> with; for (auto& c : L.resident) for (auto& b : c->blocks) if (!b->async.empty()) { with.push_back(b.get()); if (!random) break; }
  if (with.empty()) return false; Block* b = with[random ? random_bits() % with.size() : 0]; size_t at = random ? random_bits() % b->async.size() : 0;
  Async a = std::move(b->async[at]); b->async.erase(b->async.begin() + at);
  try { a.run(); } catch (Error& e) { FAIL("%s\n  by the asynchronous %.200s, started by block (%d,%d,%d)", e.what(), a.what.c_str(), b->cta[0], b->cta[1], b->cta[2]); }
  return true;
}

void run_launch(Launch& L) {
  static u64 launches = 0;
  if (options.seed) { random_state = (options.seed + 0x9e3779b97f4a7c15ull) * 0xbf58476d1ce4e5b9ull + ++launches * 0x94d049bb133111ebull; if (!random_state) random_state = 1; for (int k = 0; k < 8; ++k) random_bits(); }
  Warp* current = nullptr; const u64 begin = total_instructions;
  try {
    const int room = std::max(1, residency(L) / L.cluster.count()); const int from_start = options.resident > 0 ? std::min(options.resident, room) : 1;
    L.clusters = s64(L.grid.count()) / L.cluster.count(); L.next_cluster = 0; u64 idle = 0;
    add_range(L.params.data(), L.params.size(), "parameters"); access_kind = 0; if (options.check_races) race_begin(L);
    const bool random = options.seed != 0; size_t wanted = from_start;
    while (L.next_cluster < L.clusters || !L.resident.empty()) {
      while (L.resident.size() < wanted && L.next_cluster < L.clusters) admit(L);
      const u64 before = progress; bool did = false;
      std::vector<Warp*> order; for (auto& c : L.resident) for (auto& b : c->blocks) for (auto& w : b->warps) if (w.live) order.push_back(&w);
      if (random) for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random_bits() % k]);
      for (Warp* w : order) {
        if (!w->live) continue; current = w; const s64 turn = random ? (random_bits() % 4 == 0 ? 1 + random_bits() % 2000 : 1 + random_bits() % 60) : 200000; did |= run_warp(*w, turn); current = nullptr;
        if (options.async_mode == 2 && random_bits() % 4 == 0) run_one_async(L, true);
      }
      if (options.max_instructions && total_instructions - begin > options.max_instructions) { std::string t = "more than " + std::to_string(options.max_instructions) + " warp instructions; where they are:"; report_waiting(L, t); throw Error(t); }
      bool ended = false;
      for (size_t c = 0; c < L.resident.size();) {
        bool alive = false; for (auto& b : L.resident[c]->blocks) alive |= b->live_warps > 0;
        for (auto& b : L.resident[c]->blocks) if (!b->live_warps && !b->async.empty() && !alive) { std::string what = b->async.front().what; FAIL("block (%d,%d,%d) has exited while a copy is under way that nobody waited for: %.300s\n  kernel %s", b->cta[0], b->cta[1], b->cta[2], what.c_str(), L.kernel->pretty.c_str()); }
        if (alive) { ++c; continue; }
        for (auto& b : L.resident[c]->blocks) end_block(*b);
        L.resident.erase(L.resident.begin() + c); ended = true;
      }
      if (ended || progress != before) { idle = 0; continue; }
      ++idle;
      if (did && idle < 8) continue;
      if (options.async_mode != 1 && run_one_async(L, options.async_mode == 2)) { idle = 0; continue; }
      if (did && idle < 24 ) continue;
      if (L.next_cluster < L.clusters && static_cast<int>(L.resident.size()) < room) { ++wanted; idle = 0; continue; }
      if (random && idle < 64) continue;
      if (did && idle < 20000) continue;
      std::string t = did ? "all threads spin and nothing changes (livelock)" : "deadlock: every thread waits";
      if (L.next_cluster < L.clusters) t += "; " + std::to_string(L.next_cluster) + " of " + std::to_string(L.clusters) + " clusters have been admitted, no more fit the device";
      t += "\n  kernel " + L.kernel->pretty + ":"; report_waiting(L, t); throw Error(t);
    }
    remove_range(L.params.data());
  } catch (Error& e) {
    std::string t = e.what(); if (current) t += "\n  " + where(*current);
    for (auto& c : L.resident) for (auto& b : c->blocks) { for (auto& w : b->warps) { spare.push_back(w.R); } if (!b->local.empty()) remove_range(b->local.data()); }
    L.resident.clear(); remove_range(L.params.data());
    throw Error(t);
  }
}
