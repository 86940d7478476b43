// Structures of the emulator: kernels decoded from PTX, warps that run in lockstep with masks, blocks, clusters.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

using u8 = uint8_t; using u16 = uint16_t; using u32 = uint32_t; using u64 = uint64_t;
using s8 = int8_t; using s16 = int16_t; using s32 = int32_t; using s64 = int64_t;

struct Error : std::runtime_error { using std::runtime_error::runtime_error; };
#define FAIL(...) do { char b_[2000]; snprintf(b_, sizeof b_, __VA_ARGS__); throw Error(b_); } while (0)

// ---- PTX text
struct Operand {
  enum Kind { REG, IMM, VEC, ADDR, NAME, SINK } kind = SINK;
  std::string name;           // register, symbol, label
  bool neg = false;           // !%p
  u64 imm = 0; bool is_float = false; int float_bits = 0;
  std::vector<Operand> elems; // VEC; ADDR: base, then coordinates
  std::string second;         // %r|%p
  s64 offset = 0;             // ADDR, NAME+imm
};
struct Text {                 // one instruction
  std::string pred; bool pneg = false;
  std::string op; std::vector<std::string> mods;  // op is the first word
  std::vector<Operand> args;
  std::string raw; int file = 0, line = 0;
};

enum Space { GENERIC, GLOBAL, SHARED, LOCAL, PARAM, CONST };
enum Status { OK = 0, RETRY = 1, YIELD = 2 };
struct Warp; struct Ins;
using Handler = int (*)(Warp&, const Ins&, u32);
enum Flow : u8 { PLAIN, BRA, EXIT, SYNC, BRX };

struct Ins {
  Handler fn = nullptr;
  u32 o[6] = {0, 0, 0, 0, 0, 0};
  s32 pred = -1; bool pneg = false; Flow flow = PLAIN; u8 space = 0, n = 0, width = 0;
  s32 base = -1; bool base64 = true; bool flag = false, flag2 = false; s32 target = -1;
  s64 imm = 0; s32 a = 0, b = 0, c = 0;
  std::vector<u32> ext;
  std::string text; int file = 0, line = 0;
};

struct Param { std::string name; u32 offset, size; };
struct Kernel {
  std::string name, pretty;
  std::vector<Param> params; u32 param_bytes = 0;
  std::vector<Ins> code;
  std::vector<char> image;    // constants and special registers: the beginning of a register file
  size_t file_bytes = 0;
  u32 specials = 0;           // offset of special registers' area
  u32 static_shared = 0, dynamic_at = 0, local_bytes = 0;
  int req_cluster[3] = {0, 0, 0}; int maxntid = 0; int reqntid = 0;
  bool uses_pdl = false;
  std::map<int, std::string>* files = nullptr;
};
// Special registers: each 32 lanes of 8 bytes in the area at `specials` (4-byte ones use 4-byte lanes).
enum Special { TIDX, TIDY, TIDZ, NTIDX, NTIDY, NTIDZ, CTAX, CTAY, CTAZ, NCTAX, NCTAY, NCTAZ, LANE, WARPID, NWARPID,
  CLUSTER_CTARANK, CLUSTER_NCTARANK, CLUSTER_CTAX, CLUSTER_CTAY, CLUSTER_CTAZ, CLUSTER_NCTAX, CLUSTER_NCTAY, CLUSTER_NCTAZ,
  CLUSTERX, CLUSTERY, CLUSTERZ, NCLUSTERX, NCLUSTERY, NCLUSTERZ, LM_EQ, LM_LT, LM_LE, LM_GT, LM_GE, SMID, NSMID, DYN_SMEM, TOTAL_SMEM,
  GRIDID, WARPSZ, PARAM_BASE, LOCAL_BASE, N_SPECIALS };

struct Dim { int x = 1, y = 1, z = 1; int count() const { return x * y * z; } };

struct Fragment {
  u32 mask = 0; s32 pc = 0; bool yielded = false;
  bool arrived = false; u64 generation = 0;   // at a barrier
  bool apart = false;                         // option diverge: does not reconverge where it need not
};
struct Block; struct Cluster; struct Launch;

extern u64 progress;      // counts what others may wait for
struct Copy { char* to; const char* from; u32 bytes, valid; bool from_global; u32 address; Block* block; };
struct CopyGroup { std::vector<Copy> copies; };
struct LaneCopies { std::vector<Copy> open; std::deque<CopyGroup> groups; };   // cp.async
using Reader = std::function<std::function<void()>()>;   // reads the source, returns what writes it
struct BulkGroup { std::vector<Reader> reads; std::vector<std::function<void()>> writes; bool read = false;
  void do_reads() { if (!read) for (auto& r : reads) writes.push_back(r()); read = true; }
  void do_all() { do_reads(); for (auto& f : writes) f(); ++progress; } };
struct LaneBulk { std::vector<Reader> open; std::deque<BulkGroup> groups; };
struct WgmmaOpen { std::vector<u32> chunks; u64 hash = 0; u32 pc = 0; };   // addresses of 16 bytes that it reads

struct Warp {
  char* R = nullptr; Block* block = nullptr; int index = 0; u32 live = 0, all = 0;
  std::vector<Fragment> frags; Fragment* cur = nullptr;
  u64 cluster_generation[32] = {};
  std::vector<LaneCopies> copies; std::vector<LaneBulk> bulk;
  std::vector<WgmmaOpen> wg_open; std::deque<std::vector<WgmmaOpen>> wg_groups;
  const Ins* at = nullptr; u32 lane_at = 0; bool pdl_waited = false, wg_fenced = false;
  u64 executed = 0;
  template <class T> T* r(u32 offset) { return reinterpret_cast<T*>(R + offset); }
};
struct Bar { std::vector<u32> arrived; u64 generation = 0; int expected = 0; u64 red_and = 1, red_or = 0, red_pop = 0; u64 result[4] = {}; };

struct BlockRaces; struct Issued;
struct Async { std::function<void()> run; std::string what; };
struct Block {
  Launch* launch = nullptr; Cluster* cluster = nullptr; int rank = 0; int cta[3] = {};
  std::vector<char> shared; std::vector<u8> written; u32 shared_size = 0;
  std::vector<Warp> warps; Bar bars[16]; std::vector<char> local; int live_warps = 0;
  std::vector<Async> async;   // copies under way into or out of this block
  bool started = false;
  std::shared_ptr<BlockRaces> races;
};
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks; u64 generation = 0; int arrived = 0; int live_threads = 0; int index = 0;
};
struct Aligned { char* p = nullptr; size_t n = 0; Aligned() = default; Aligned(const Aligned&) = delete; ~Aligned() { free(p); } void assign(size_t bytes, char v) { free(p); p = static_cast<char*>(aligned_alloc(128, (bytes + 127) / 128 * 128)); n = bytes; memset(p, v, bytes); } char* data() const { return p; } size_t size() const { return n; } };
struct Launch {
  Kernel* kernel = nullptr; Dim grid, block, cluster; u32 dynamic_shared = 0; Aligned params; bool early = false; bool cooperative = false;
  std::vector<std::unique_ptr<Cluster>> resident; s64 next_cluster = 0, clusters = 0;
};

// ---- options, see README
struct Options {
  u64 seed = 0;           // 0: a fixed order; otherwise random scheduling
  int async_mode = 0;     // 0 late, 1 early, 2 random
  bool check_bounds = true, check_uninitialised = false; int check_races = 0;
  int resident = 0;       // clusters that run at once from the start; 0: one, and more when they wait
  u64 max_instructions = 0;
  int pdl = 0;            // 1: report global accesses before griddepcontrol.wait
  int trace = 0;
  bool spurious = false, diverge = false;
  int sms = 132;
};
extern Options options;
extern u64 progress;      // counts what others may wait for
u64 random_bits();

struct Range { u64 from, to; std::string what; };
void add_range(const void* from, u64 bytes, const std::string& what);
void remove_range(const void* from);
const Range* find_range(u64 address);
extern u64 cached_from, cached_to;
void bad_global(Warp& w, u64 address, u32 size, bool write);

Kernel* decode_kernel(const std::string& ptx_path, const std::string& name);
void* module_symbol(const std::string& ptx_path, const std::string& name, u64* size);
void run_launch(Launch& launch);
void warn_once(const std::string& key, const std::string& text);
std::string where(Warp& w);

// ---- memory
void note_unwritten(Warp& w, u32 at);
void race_shared(Warp& w, Block* b, u32 at, u32 bytes, int kind);
void race_global(Warp& w, u64 address, u32 bytes, int kind);
extern int access_kind;   // 0, or 2 atomic, 3 strong: of the accesses that follow
inline char* shared_at(Warp& w, u32 address, u32 size, bool write) {
  Block* b = w.block; u32 rank = address >> 24, at = address & 0xffffff;
  if (rank) {
    if (rank - 1 >= b->cluster->blocks.size()) FAIL("address %#x names block %u of a cluster of %zu", address, rank - 1, b->cluster->blocks.size());
    b = b->cluster->blocks[rank - 1].get();
    if (!b->live_warps) FAIL("access to shared memory of block %u of the cluster, which has exited", rank - 1);
  }
  if (at < 1024 || at + size > b->shared_size) FAIL("shared %s of %u bytes at %#x: outside [0x400, %#x)", write ? "write" : "read", size, at, b->shared_size);
  if (at % size && size <= 16) FAIL("misaligned shared %s of %u bytes at %#x", write ? "write" : "read", size, at);
  if (options.check_uninitialised) {
    if (write) memset(b->written.data() + at, 1, size);
    else for (u32 i = 0; i < size; ++i) if (!b->written[at + i]) { note_unwritten(w, at + i); break; }
  }
  if (options.check_races) race_shared(w, b, at, size, access_kind ? (access_kind == 2 ? 2 : write ? 2 : 3) : write);
  return b->shared.data() + at;
}
constexpr u64 kSharedTag = 1ull << 62;
inline char* global_at(Warp& w, u64 address, u32 size, bool write) {
  if (address % size) FAIL("misaligned global %s of %u bytes at %#llx", write ? "write" : "read", size, (unsigned long long)address);
  if (options.check_bounds && !(address >= cached_from && address + size <= cached_to)) bad_global(w, address, size, write);
  if (options.check_races > 1) race_global(w, address, size, access_kind ? (access_kind == 2 ? 2 : write ? 4 : 3) : write);
  return reinterpret_cast<char*>(address);
}
inline char* memory_at(Warp& w, int space, u64 address, u32 size, bool write) {
  if (space == SHARED || (space == GENERIC && (address & kSharedTag))) return shared_at(w, static_cast<u32>(address), size, write);
  if (space == GLOBAL || space == GENERIC) return global_at(w, address, size, write);
  if (address % size) FAIL("misaligned access of %u bytes at %#llx", size, (unsigned long long)address);
  return reinterpret_cast<char*>(address);
}
struct LaneAddresses {
  const char* p; bool wide; s64 imm;
  LaneAddresses(Warp& w, const Ins& i) : p(i.base >= 0 ? w.R + i.base : nullptr), wide(i.base64), imm(i.imm) {}
  u64 operator[](int l) const {
    if (!p) return imm;
    return wide ? reinterpret_cast<const u64*>(p)[l] + imm : static_cast<u32>(reinterpret_cast<const u32*>(p)[l] + imm);
  }
};
#define LANES(m) for (u32 m_ = (m), l = 0; m_ && ((l = __builtin_ctz(m_)), (w.lane_at = l), true); m_ &= m_ - 1)

// Decoding of one instruction: `D` gives register offsets.
struct Decoder;
bool decode_alu(Decoder& d, const Text& t, Ins& i);
bool decode_memory(Decoder& d, const Text& t, Ins& i);
bool decode_sync(Decoder& d, const Text& t, Ins& i);
bool decode_matrix(Decoder& d, const Text& t, Ins& i);

struct RegInfo { u32 offset; u8 bytes; bool pred; };
struct Symbol { Space space; u64 value; u32 size; };
struct Decoder {
  Kernel* kernel;
  std::unordered_map<std::string, RegInfo> regs;
  std::unordered_map<std::string, Symbol> symbols;      // shared offsets, host addresses, local and parameter offsets
  std::unordered_map<std::string, s32> labels;
  std::map<std::pair<int, u64>, u32> constants; std::vector<char>* image;
  std::unordered_map<std::string, std::vector<std::string>> branch_targets;
  u32 constant(u64 value, int bytes);
  u32 special(const std::string& name, int* bytes = nullptr);
  RegInfo reg(const Operand& o);
  u32 dst(const Operand& o, int bytes);                  // exact width; SINK: a scratch register
  u32 src(const Operand& o, int bytes);                  // register or immediate or symbol's value
  u32 pred(const Operand& o);
  void address(const Operand& o, Ins& i);
  u32 scratch_at = 0;
};
constexpr u32 kConstantRoom = 1 << 20;
struct Type { char kind; int bits; };                    // s u f b p, bf: 'g' (bfloat16), 't' tf32
bool parse_type(const std::string& s, Type* t);
inline bool has(const Text& t, const char* mod) { for (auto& m : t.mods) if (m == mod) return true; return false; }
inline Type last_type(const Text& t) { Type r{'b', 32}; for (auto& m : t.mods) parse_type(m, &r); return r; }
