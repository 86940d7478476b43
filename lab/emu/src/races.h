// Happens-before between warps: vector clocks, and for every byte who wrote and who read it last.
#pragma once
#include "core.h"

constexpr u32 kAsyncAgents = 16;   // of a block: copies under way
struct Entry { u32 agent, clock, pc; };
struct Cell { u32 clock = 0, readers = 0, pc = 0; u16 agent = 0; u8 async = 0, atomic = 0; };
struct Clock {
  std::vector<u32> time, fenced;   // what is known of every agent; and what of its writes asynchronous copies may read
  void join(const Clock& o) { const size_t n = o.time.size(); if (time.size() < n) { time.resize(n); fenced.resize(n); } for (size_t k = 0; k < n; ++k) { time[k] = time[k] > o.time[k] ? time[k] : o.time[k]; fenced[k] = fenced[k] > o.fenced[k] ? fenced[k] : o.fenced[k]; } }
  void clear() { time.clear(); fenced.clear(); }
};
struct Meeting { Clock gathering, released; void complete() { released.join(gathering); gathering.clear(); } };
struct WarpRaces { Clock now, snapshot, heard; u32 agent = 0; };
struct BlockRaces { std::vector<Cell> cells; std::map<u32, Meeting> barriers; Meeting bars[16]; std::vector<WarpRaces> warps; u32 base = 0; u32 next_async = 0; std::vector<u32> async_clock; };
struct Issued { Clock clock; u32 agent, pc; Warp* warp; };   // of an asynchronous copy

bool races_on(); bool races_global();
void race_begin(Launch& L);
void race_start(Block& b);
void race_shared(Warp& w, Block* b, u32 at, u32 bytes, int kind);             // 0 read 1 write 2 atomic
void race_global(Warp& w, u64 address, u32 bytes, int kind);                  // 3 strong read, 4 strong write
void race_acquire(Warp& w, u64 address, bool whole); void race_release(Warp& w, u64 address, bool whole);
void race_fence(Warp& w, bool proxy);
std::shared_ptr<Issued> race_issue(Warp& w);
void race_async_shared(const Issued& i, Block* b, u32 at, u32 bytes, bool write, bool done);   // check at the start, record at the end
void race_async_global(const Issued& i, u64 address, u64 bytes, bool write, bool done);
void race_read_done(Warp& w, Block* b, u32 at, u32 bytes, u32 pc);            // the warp has waited for its asynchronous reads
void race_bar_arrive(Warp& w, u32 id); void race_bar_complete(Block& b, u32 id); void race_bar_pass(Warp& w, u32 id);
void race_mbar_arrive(Warp& w, Block* b, u32 at); void race_mbar_tx(const Issued& i, Block* b, u32 at); void race_mbar_complete(Block* b, u32 at); void race_mbar_pass(Warp& w, Block* b, u32 at);
void race_cluster_arrive(Warp& w); void race_cluster_complete(Cluster& c); void race_cluster_pass(Warp& w);
