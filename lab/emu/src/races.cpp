#include "races.h"
#include <algorithm>

std::string source_of_pc(Kernel* k, u32 pc);
namespace {
u32 agents = 0, per_block = 0; bool whole_launch = false; Launch* current = nullptr;
std::vector<std::vector<Entry>> sets;
struct Key { u32 set, agent, clock; bool operator==(const Key& o) const { return set == o.set && agent == o.agent && clock == o.clock; } };
struct HashKey { size_t operator()(const Key& k) const { u64 h = k.set * 0x9e3779b97f4a7c15ull; h ^= (u64(k.agent) << 32 | k.clock) * 0xc2b2ae3d27d4eb4full; return h ^ h >> 29; } };
std::unordered_map<Key, u32, HashKey> memo;
std::unordered_map<u64, std::vector<Cell>> pages;       // of global memory
std::unordered_map<u64, Meeting> places;                // addresses of strong accesses
std::unordered_map<Cluster*, Meeting> clusters;
Key last_key{~0u, 0, 0}; u32 last_set = 0;
u32 with(u32 set, u32 agent, u32 clock, u32 pc) {
  const Key key{set, agent, clock}; if (key == last_key) return last_set;
  auto [it, fresh] = memo.try_emplace(key, 0);
  if (fresh) { std::vector<Entry> e; if (set) e = sets[set]; bool found = false; for (auto& x : e) if (x.agent == agent) { x.clock = clock; x.pc = pc; found = true; } if (!found) e.push_back({agent, clock, pc}); sets.push_back(e); it->second = sets.size() - 1; }
  last_key = key; return last_set = it->second;
}
std::string name_of(u32 agent) {
  const u32 block = agent / per_block, i = agent % per_block; const u32 warps = per_block - kAsyncAgents;
  return (i < warps ? "warp " + std::to_string(i) : std::string("a copy under way")) + (current->cluster.count() > 1 || whole_launch ? " of block " + std::to_string(block) : "");
}
void report(Warp& w, const std::string& place, const char* what, const char* before, u32 agent, u32 pc, const std::string& why) {
  const std::string other = source_of_pc(current->kernel, pc), mine = w.at ? source_of_pc(current->kernel, w.at - current->kernel->code.data()) : "?";
  warn_once("race" + other + mine + what, std::string("race: ") + what + " " + place + ", which " + name_of(agent) + " " + before + " at " + other + why + ": " + where(w));
}
void check(Warp& w, const Clock& c, u32 self, Cell& x, bool write, bool async, const char* space, u64 address, u32 pc, bool atomic = false) {
  auto place = [&] { char t[64]; snprintf(t, sizeof t, "%s memory at %#llx", space, (unsigned long long)address); return std::string(t); };
  if (x.clock) {
    if (x.agent != self && c.time[x.agent] < x.clock) { if (!(atomic && x.atomic)) report(w, place(), write ? "write of" : "read of", "writes", x.agent, x.pc, " without an order between them"); }
    else if (async && !x.async && c.fenced[x.agent] < x.clock) report(w, place(), write ? "asynchronous write of" : "asynchronous read of", "writes", x.agent, x.pc, " with no fence.proxy.async in between");
  }
  if (write && x.readers) for (auto& e : sets[x.readers]) if (e.agent != self && c.time[e.agent] < e.clock) { report(w, place(), "write of", "reads", e.agent, e.pc, " without an order between them"); break; }
  (void)pc;
}
void record_write(Cell& x, u32 agent, u32 clock, u32 pc, bool async, bool atomic) { x.clock = clock; x.agent = agent; x.pc = pc; x.async = async; x.atomic = atomic; x.readers = 0; }
WarpRaces& of(Warp& w); 
u32 pc_of(Warp& w) { return w.at - current->kernel->code.data(); }
void touch(Warp& w, Cell& x, int kind, const char* space, u64 address) {
  WarpRaces& r = of(w); const u32 self = r.agent, pc = pc_of(w);
  const bool write = kind == 1 || kind == 2 || kind == 4, strong = kind >= 2;
  check(w, r.now, self, x, write, false, space, address, pc, strong);
  if (write) record_write(x, self, r.now.time[self], pc, false, strong);
  else if (!strong) x.readers = with(x.readers, self, r.now.time[self], pc);
}
std::vector<Cell>& page(u64 p) { auto& v = pages[p]; if (v.empty()) v.resize(4096); return v; }
}  // namespace
#include "races_state.h"
namespace { WarpRaces& of(Warp& w) { return w.block->races->warps[w.index]; } }

bool races_on() { return options.check_races > 0; }
bool races_global() { return whole_launch; }
void race_begin(Launch& L) {
  current = &L; const u32 warps = (L.block.count() + 31) / 32; per_block = warps + kAsyncAgents;
  const u64 all = u64(L.grid.count()) * per_block; whole_launch = options.check_races > 1 && all <= 12000; agents = whole_launch ? all : L.cluster.count() * per_block;
  if (options.check_races > 1 && !whole_launch) { static bool said = false; if (!said) fprintf(stderr, "emu: a launch has too many blocks for the race check of global memory; shared memory is checked\n"); said = true; }
  sets.assign(1, {}); memo.clear(); pages.clear(); places.clear(); clusters.clear(); last_key = {~0u, 0, 0};
}
void race_start(Block& b) {
  b.races = std::make_shared<BlockRaces>(); BlockRaces& r = *b.races; r.cells.resize(b.shared_size + 64); r.base = ((whole_launch ? b.cluster->index * current->cluster.count() : 0) + b.rank) * per_block; r.async_clock.assign(kAsyncAgents, 0);
  r.warps.resize(b.warps.size());
  for (size_t i = 0; i < r.warps.size(); ++i) { auto& w = r.warps[i]; w.agent = r.base + i; w.now.time.assign(agents, 0); w.now.fenced.assign(agents, 0); w.now.time[w.agent] = 1; }
}
void race_shared(Warp& w, Block* b, u32 at, u32 bytes, int kind) { Cell* c = &b->races->cells[at]; for (u32 k = 0; k < bytes; ++k) touch(w, c[k], kind, "shared", at + k); }
void race_global(Warp& w, u64 address, u32 bytes, int kind) {
  if (!whole_launch) return; const u64 local = reinterpret_cast<u64>(w.block->local.data()); if (address >= local && address < local + w.block->local.size()) return;
  std::vector<Cell>& p = page(address >> 12); for (u32 k = 0; k < bytes; ++k) touch(w, p[(address & 4095) + k], kind, "global", address + k);
}
// Strong accesses: `whole` with .acquire or .release; otherwise together with the fences around them.
void race_acquire(Warp& w, u64 address, bool whole) { auto it = places.find(address); if (it == places.end()) return; WarpRaces& r = of(w); (whole ? r.now : r.heard).join(it->second.released); }
void race_release(Warp& w, u64 address, bool whole) { WarpRaces& r = of(w); const Clock& c = whole ? r.now : r.snapshot; if (c.time.empty()) return; places[address].released.join(c); if (whole) ++r.now.time[r.agent]; }
void race_fence(Warp& w, bool proxy) {
  WarpRaces& r = of(w);
  if (proxy) { r.now.fenced = r.now.time; return; }
  if (!r.heard.time.empty()) { r.now.join(r.heard); r.heard.clear(); }
  r.snapshot = r.now; ++r.now.time[r.agent];
}
std::shared_ptr<Issued> race_issue(Warp& w) {
  if (!races_on()) return nullptr; BlockRaces& b = *w.block->races; auto i = std::make_shared<Issued>(); i->clock = of(w).now; const u32 k = b.next_async++ % kAsyncAgents; i->agent = b.base + w.block->warps.size() + k; i->pc = pc_of(w); i->warp = &w; ++b.async_clock[k];
  return i;
}
static u32 async_time(const Issued& i) { BlockRaces& b = *i.warp->block->races; return b.async_clock[i.agent - b.base - i.warp->block->warps.size()]; }
void race_async_shared(const Issued& i, Block* b, u32 at, u32 bytes, bool write, bool done) {
  Cell* c = &b->races->cells[at]; const u32 self = of(*i.warp).agent, t = async_time(i);
  for (u32 k = 0; k < bytes; ++k) { if (!done) check(*i.warp, i.clock, self, c[k], write, true, "shared", at + k, i.pc); else if (write) record_write(c[k], i.agent, t, i.pc, true, false); }
}
void race_async_global(const Issued& i, u64 address, u64 bytes, bool write, bool done) {
  if (!whole_launch) return; const u32 self = of(*i.warp).agent; u64 a = address; const u64 end = address + bytes; WarpRaces& r = of(*i.warp);
  while (a < end) { std::vector<Cell>& p = page(a >> 12); const u64 stop = std::min(end, ((a >> 12) + 1) << 12);
    for (; a < stop; ++a) { Cell& x = p[a & 4095]; if (!done) check(*i.warp, i.clock, self, x, write, true, "global", a, i.pc); else if (write) record_write(x, self, r.now.time[self], i.pc, true, false); else x.readers = with(x.readers, self, i.clock.time[self], i.pc); } }
}
void race_read_done(Warp& w, Block* b, u32 at, u32 bytes, u32 pc) { WarpRaces& r = of(w); Cell* c = &b->races->cells[at]; for (u32 k = 0; k < bytes; ++k) c[k].readers = with(c[k].readers, r.agent, r.now.time[r.agent], pc); }
static void give(Warp& w, Meeting& m) { WarpRaces& r = of(w); m.gathering.join(r.now); ++r.now.time[r.agent]; }
void race_bar_arrive(Warp& w, u32 id) { give(w, w.block->races->bars[id]); }
void race_bar_complete(Block& b, u32 id) { b.races->bars[id].complete(); }
void race_bar_pass(Warp& w, u32 id) { of(w).now.join(w.block->races->bars[id].released); }
void race_mbar_arrive(Warp& w, Block* b, u32 at) { give(w, b->races->barriers[at]); }
void race_mbar_tx(const Issued& i, Block* b, u32 at) { Clock& c = b->races->barriers[at].gathering; if (c.time.size() < agents) { c.time.resize(agents); c.fenced.resize(agents); } c.time[i.agent] = std::max(c.time[i.agent], async_time(i)); }
void race_mbar_complete(Block* b, u32 at) { b->races->barriers[at].complete(); }
void race_mbar_pass(Warp& w, Block* b, u32 at) { of(w).now.join(b->races->barriers[at].released); }
void race_cluster_arrive(Warp& w) { give(w, clusters[w.block->cluster]); }
void race_cluster_complete(Cluster& c) { clusters[&c].complete(); }
void race_cluster_pass(Warp& w) { of(w).now.join(clusters[w.block->cluster].released); }
