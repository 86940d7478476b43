// PTX text to decoded kernels. A module is read once; a kernel is decoded when it is first launched.
#include "core.h"
#include <cxxabi.h>
#include <sys/mman.h>
#include <algorithm>
#include <fstream>
#include <sstream>

namespace {
struct ModuleVar { std::string name; Space space; u32 align = 1; u64 size = 0; std::vector<u8> init; char* host = nullptr; bool is_extern = false;
                   std::vector<std::pair<u64, std::string>> pointers; };
struct Module {
  std::string text; std::map<std::string, std::pair<size_t, size_t>> entries;  // name -> range of the whole entry
  std::map<std::string, ModuleVar> vars; std::map<int, std::string> files;
  std::map<std::string, std::unique_ptr<Kernel>> kernels;
};
std::map<std::string, std::unique_ptr<Module>> modules;

bool word_char(char c) { return isalnum(static_cast<u8>(c)) || c == '_' || c == '$' || c == '%' || c == '.'; }

struct Scanner {
  const char *p, *end;
  void skip() {
    while (p < end) {
      if (isspace(static_cast<u8>(*p))) ++p;
      else if (p + 1 < end && p[0] == '/' && p[1] == '/') { while (p < end && *p != '\n') ++p; }
      else if (p + 1 < end && p[0] == '/' && p[1] == '*') { p += 2; while (p + 1 < end && !(p[0] == '*' && p[1] == '/')) ++p; p += 2; }
      else break;
    }
  }
  bool eat(char c) { skip(); if (p < end && *p == c) { ++p; return true; } return false; }
  char peek() { skip(); return p < end ? *p : 0; }
  std::string word() { skip(); const char* b = p; while (p < end && word_char(*p)) ++p; return std::string(b, p); }
};

u64 parse_int(const std::string& s) {
  if (s.size() > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X')) return strtoull(s.c_str() + 2, nullptr, 16);
  if (s.size() > 2 && s[0] == '0' && (s[1] == 'b' || s[1] == 'B')) return strtoull(s.c_str() + 2, nullptr, 2);
  if (s.size() > 1 && s[0] == '0' && isdigit(static_cast<u8>(s[1]))) return strtoull(s.c_str(), nullptr, 8);
  return strtoull(s.c_str(), nullptr, 10);
}

bool parse_number(const std::string& s, Operand& o) {
  if (s.empty() || !isdigit(static_cast<u8>(s[0]))) return false;
  o.kind = Operand::IMM;
  if (s.size() == 10 && s[0] == '0' && (s[1] == 'f' || s[1] == 'F')) { o.is_float = true; o.float_bits = 32; o.imm = strtoull(s.c_str() + 2, nullptr, 16); }
  else if (s.size() == 18 && s[0] == '0' && (s[1] == 'd' || s[1] == 'D')) { o.is_float = true; o.float_bits = 64; o.imm = strtoull(s.c_str() + 2, nullptr, 16); }
  else { std::string t = s; while (!t.empty() && (t.back() == 'U' || t.back() == 'u')) t.pop_back();
    if (t.find('.') != std::string::npos) { o.is_float = true; o.float_bits = 64; double d = strtod(t.c_str(), nullptr); memcpy(&o.imm, &d, 8); }
    else o.imm = parse_int(t); }
  return true;
}

Operand parse_operand(Scanner& s);
Operand parse_simple(Scanner& s) {
  Operand o;
  if (s.eat('!')) { o = parse_simple(s); o.neg = true; return o; }
  if (s.eat('-')) { o = parse_simple(s); if (o.is_float) o.imm ^= o.float_bits == 32 ? 0x80000000ull : 1ull << 63; else o.imm = -o.imm; return o; }
  std::string w = s.word();
  if (w.empty()) FAIL("cannot read operand at: %.60s", s.p);
  if (parse_number(w, o)) return o;
  if (w == "_") { o.kind = Operand::SINK; return o; }
  // component selection %tid.x stays in the name; a trailing .x of a vector register too
  o.kind = w[0] == '%' ? Operand::REG : Operand::NAME;
  o.name = w;
  if (s.peek() == '+') { s.eat('+'); bool neg = s.eat('-'); Operand n; std::string v = s.word(); parse_number(v, n); o.offset = neg ? -static_cast<s64>(n.imm) : static_cast<s64>(n.imm); }
  else if (s.peek() == '|') { s.eat('|'); o.second = s.word(); }
  return o;
}
Operand parse_operand(Scanner& s) {
  if (s.eat('(')) {
    Operand o; o.kind = Operand::VEC; if (!s.eat(')')) { do o.elems.push_back(parse_operand(s)); while (s.eat(',')); if (!s.eat(')')) FAIL(") expected at: %.60s", s.p); }
    return o;
  }
  if (s.eat('{')) {
    Operand o; o.kind = Operand::VEC;
    if (!s.eat('}')) { do o.elems.push_back(parse_operand(s)); while (s.eat(',')); if (!s.eat('}')) FAIL("} expected at: %.60s", s.p); }
    return o;
  }
  if (s.eat('[')) {
    Operand o; o.kind = Operand::ADDR;
    do {
      Operand e = parse_operand(s);
      if (s.peek() == '-') { s.eat('-'); Operand n; parse_number(s.word(), n); e.offset = -static_cast<s64>(n.imm); }
      o.elems.push_back(e);
    } while (s.eat(','));
    if (!s.eat(']')) FAIL("] expected at: %.60s", s.p);
    o.offset = o.elems[0].offset; o.elems[0].offset = 0;
    return o;
  }
  return parse_simple(s);
}

std::string demangle(const std::string& name) {
  int status = 0; char* d = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  std::string r = d ? d : name; free(d);
  for (const char* cut : {"(anonymous namespace)::", "dualscale::"}) { size_t at; while ((at = r.find(cut)) != std::string::npos) r.erase(at, strlen(cut)); }
  if (size_t at = r.rfind('('); d && at != std::string::npos) r = r.substr(0, at);
  return r;
}

ModuleVar parse_var(Scanner& s, Space space, bool is_extern) {
  ModuleVar v; v.space = space; v.is_extern = is_extern; int bytes = 1;
  for (;;) {
    std::string w = s.word();
    if (w == ".align") v.align = parse_int(s.word());
    else if (w == ".visible" || w == ".weak" || w == ".common" || w == ".extern" || w == ".const" || w == ".global" || w == ".shared" || w == ".local") continue;
    else if (w[0] == '.') { Type t; if (w == ".attribute") { s.eat('('); while (!s.eat(')')) s.word(); } else if (parse_type(w.substr(1), &t)) bytes = t.bits / 8; else if (w == ".v2") bytes *= 1; else FAIL("variable: %s", w.c_str()); }
    else { v.name = w; break; }
  }
  u64 count = 1; bool array = false;
  while (s.eat('[')) { array = true; if (s.eat(']')) { count = 0; continue; } count *= parse_int(s.word()); s.eat(']'); }
  v.size = count * bytes; v.align = std::max<u32>(v.align, bytes); (void)array;
  if (s.eat('=')) {
    v.init.assign(v.size, 0); u64 at = 0;
    std::function<void()> one = [&] {
      if (s.eat('{')) { if (!s.eat('}')) { do one(); while (s.eat(',')); s.eat('}'); } return; }
      Operand o = parse_simple(s);
      if (o.kind == Operand::NAME) {
        std::string n = o.name;
        if (n == "generic") { s.eat('('); o = parse_simple(s); s.eat(')'); n = o.name; }
        v.pointers.push_back({at, n}); at += bytes; return;
      }
      memcpy(v.init.data() + at, &o.imm, bytes); at += bytes;
    };
    one();
  }
  s.eat(';');
  return v;
}

Module& module_of(const std::string& path) {
  auto& slot = modules[path];
  if (slot) return *slot;
  slot = std::make_unique<Module>();
  Module& m = *slot;
  std::ifstream in(path); if (!in) FAIL("cannot open %s", path.c_str());
  std::stringstream buffer; buffer << in.rdbuf(); m.text = buffer.str();
  Scanner s{m.text.data(), m.text.data() + m.text.size()};
  while (s.peek()) {
    const char* begin = s.p;
    std::string w = s.word();
    if (w == ".version" || w == ".address_size") s.word();
    else if (w == ".target") { s.word(); while (s.eat(',')) s.word(); }
    else if (w == ".file") {
      int index = parse_int(s.word()); s.skip();
      if (*s.p == '"') { const char* b = ++s.p; while (*s.p != '"') ++s.p; m.files[index] = std::string(b, s.p); ++s.p; }
      while (s.peek() == ',') { s.eat(','); s.word(); }
    } else if (w == ".section") { while (s.p < s.end && *s.p != '{') ++s.p; int depth = 0; do { if (*s.p == '{') ++depth; if (*s.p == '}') --depth; ++s.p; } while (depth && s.p < s.end); }
    else if (w == ".visible" || w == ".weak" || w == ".extern") {
      const char* save = s.p; std::string next = s.word();
      if (next == ".func") { while (s.p < s.end && *s.p != ';' && *s.p != '{') ++s.p; if (*s.p == ';') ++s.p; else { int depth = 0; do { if (*s.p == '{') ++depth; if (*s.p == '}') --depth; ++s.p; } while (depth && s.p < s.end); } }
      else if (next == ".entry") s.p = save;
      else { s.p = begin; bool ext = w == ".extern"; s.word(); std::string sp = s.word();
        Space space = sp == ".global" ? GLOBAL : sp == ".const" ? CONST : SHARED;
        ModuleVar v = parse_var(s, space, ext); m.vars[v.name] = v; }
    } else if (w == ".global" || w == ".const" || w == ".shared") { ModuleVar v = parse_var(s, w == ".global" ? GLOBAL : w == ".const" ? CONST : SHARED, false); m.vars[v.name] = v; }
    else if (w == ".entry") {
      std::string name = s.word(); const char* from = s.p;
      int depth = 0; bool body = false;
      while (s.p < s.end) {
        char c = *s.p;
        if (c == '/' && s.p[1] == '/') { while (s.p < s.end && *s.p != '\n') ++s.p; continue; }
        if (c == '"') { ++s.p; while (*s.p != '"') ++s.p; }
        if (c == '{') { ++depth; body = true; }
        if (c == '}') --depth;
        ++s.p;
        if (body && !depth) break;
      }
      m.entries[name] = {from - m.text.data(), s.p - m.text.data()};
    } else if (w == ".func") { while (s.p < s.end && *s.p != ';' && *s.p != '{') ++s.p; if (*s.p == ';') ++s.p; else { int depth = 0; do { if (*s.p == '{') ++depth; if (*s.p == '}') --depth; ++s.p; } while (depth && s.p < s.end); } }
    else if (w == ".pragma") { while (!s.eat(';')) ++s.p; }
    else if (w.empty()) FAIL("cannot read PTX at: %.80s", s.p);
    else FAIL("unknown directive %s", w.c_str());
  }
  for (auto& [name, v] : m.vars) {
    if (v.space == SHARED) continue;
    u64 room = std::max<u64>(v.size, 1);
    v.host = static_cast<char*>(aligned_alloc(256, (room + 255) / 256 * 256));
    memset(v.host, 0, room); if (!v.init.empty()) memcpy(v.host, v.init.data(), v.size);
    add_range(v.host, v.size, "variable " + demangle(name));
  }
  for (auto& [name, v] : m.vars) for (auto& [at, target] : v.pointers) { u64 address = reinterpret_cast<u64>(m.vars.at(target).host); memcpy(v.host + at, &address, 8); }
  return m;
}
}  // namespace

bool parse_type(const std::string& s, Type* t) {
  if (s == "pred") { *t = {'p', 1}; return true; }
  if (s == "bf16") { *t = {'g', 16}; return true; }
  if (s == "bf16x2") { *t = {'G', 32}; return true; }
  if (s == "f16x2") { *t = {'F', 32}; return true; }
  if (s == "s16x2") { *t = {'S', 32}; return true; }
  if (s == "u16x2") { *t = {'W', 32}; return true; }
  if (s == "tf32") { *t = {'t', 32}; return true; }
  if (s.size() < 2 || !strchr("sufb", s[0])) return false;
  for (size_t i = 1; i < s.size(); ++i) if (!isdigit(static_cast<u8>(s[i]))) return false;
  int bits = atoi(s.c_str() + 1);
  if (bits != 4 && bits != 8 && bits != 16 && bits != 32 && bits != 64 && bits != 128) return false;
  *t = {s[0], bits}; return true;
}

u32 Decoder::constant(u64 value, int bytes) {
  if (bytes < 8) value &= (1ull << (8 * bytes)) - 1;
  auto [it, fresh] = constants.try_emplace({bytes, value}, 0);
  if (fresh) {
    u32 at = (image->size() + 63) / 64 * 64; image->resize(at + 32 * bytes); it->second = at;
    for (int l = 0; l < 32; ++l) memcpy(image->data() + at + l * bytes, &value, bytes);
  }
  return it->second;
}
u32 Decoder::special(const std::string& n, int* bytes) {
  static const std::map<std::string, int> names = {
    {"%tid.x", TIDX}, {"%tid.y", TIDY}, {"%tid.z", TIDZ}, {"%ntid.x", NTIDX}, {"%ntid.y", NTIDY}, {"%ntid.z", NTIDZ},
    {"%ctaid.x", CTAX}, {"%ctaid.y", CTAY}, {"%ctaid.z", CTAZ}, {"%nctaid.x", NCTAX}, {"%nctaid.y", NCTAY}, {"%nctaid.z", NCTAZ},
    {"%laneid", LANE}, {"%warpid", WARPID}, {"%nwarpid", NWARPID}, {"%cluster_ctarank", CLUSTER_CTARANK}, {"%cluster_nctarank", CLUSTER_NCTARANK},
    {"%cluster_ctaid.x", CLUSTER_CTAX}, {"%cluster_ctaid.y", CLUSTER_CTAY}, {"%cluster_ctaid.z", CLUSTER_CTAZ},
    {"%cluster_nctaid.x", CLUSTER_NCTAX}, {"%cluster_nctaid.y", CLUSTER_NCTAY}, {"%cluster_nctaid.z", CLUSTER_NCTAZ},
    {"%clusterid.x", CLUSTERX}, {"%clusterid.y", CLUSTERY}, {"%clusterid.z", CLUSTERZ}, {"%nclusterid.x", NCLUSTERX}, {"%nclusterid.y", NCLUSTERY}, {"%nclusterid.z", NCLUSTERZ},
    {"%lanemask_eq", LM_EQ}, {"%lanemask_lt", LM_LT}, {"%lanemask_le", LM_LE}, {"%lanemask_gt", LM_GT}, {"%lanemask_ge", LM_GE},
    {"%smid", SMID}, {"%nsmid", NSMID}, {"%dynamic_smem_size", DYN_SMEM}, {"%total_smem_size", TOTAL_SMEM}, {"%gridid", GRIDID}, {"WARP_SZ", WARPSZ}};
  auto it = names.find(n); if (it == names.end()) return 0;
  if (bytes) *bytes = it->second == GRIDID ? 8 : 4;
  return kernel->specials + it->second * 256;
}
RegInfo Decoder::reg(const Operand& o) {
  auto it = regs.find(o.name); if (it != regs.end()) return it->second;
  int bytes = 4; if (u32 at = special(o.name, &bytes)) return {at, static_cast<u8>(bytes), false};
  FAIL("unknown register %s", o.name.c_str());
}
u32 Decoder::dst(const Operand& o, int bytes) {
  if (o.kind == Operand::SINK) return scratch_at;
  if (o.kind != Operand::REG) FAIL("a register is expected as destination");
  RegInfo r = reg(o); if (r.pred || r.bytes != bytes) FAIL("destination %s has %d bytes, not %d", o.name.c_str(), r.bytes, bytes);
  return r.offset;
}
u32 Decoder::src(const Operand& o, int bytes) {
  if (o.kind == Operand::IMM) {
    u64 v = o.imm;
    if (o.is_float && o.float_bits == 64 && bytes == 4) { double d; memcpy(&d, &v, 8); float f = d; u32 b; memcpy(&b, &f, 4); v = b; }
    return constant(v, bytes);
  }
  if (o.kind == Operand::NAME) {
    if (o.name == "WARP_SZ") return constant(32, bytes);
    auto it = symbols.find(o.name); if (it == symbols.end()) FAIL("unknown symbol %s", o.name.c_str());
    if (it->second.space == LOCAL || it->second.space == PARAM) FAIL("address of %s is not expected here", o.name.c_str());
    return constant(it->second.value + o.offset, bytes);
  }
  if (o.kind != Operand::REG) FAIL("a register or a number is expected");
  RegInfo r = reg(o);
  if (r.pred || r.bytes != bytes) FAIL("operand %s has %d bytes, not %d", o.name.c_str(), r.bytes, bytes);
  return r.offset;
}
u32 Decoder::pred(const Operand& o) {
  if (o.kind == Operand::SINK) return scratch_at;
  if (o.kind == Operand::IMM) { u32 at = (image->size() + 63) / 64 * 64; image->resize(at + 64); u32 v = o.imm ? ~0u : 0; memcpy(image->data() + at, &v, 4); return at; }
  auto it = regs.find(o.name); if (it == regs.end() || !it->second.pred) FAIL("a predicate is expected, not %s", o.name.c_str());
  return it->second.offset;
}
void Decoder::address(const Operand& o, Ins& i) {
  if (o.kind != Operand::ADDR) FAIL("an address is expected");
  const Operand& b = o.elems[0]; i.imm = o.offset;
  if (b.kind == Operand::IMM) { i.base = -1; i.imm += b.imm; return; }
  if (b.kind == Operand::NAME) {
    auto it = symbols.find(b.name); if (it == symbols.end()) FAIL("unknown symbol %s", b.name.c_str());
    i.imm += it->second.value; i.base64 = true; i.base = -1;
    if (it->second.space == LOCAL) i.base = kernel->specials + LOCAL_BASE * 256;
    if (it->second.space == PARAM) i.base = kernel->specials + PARAM_BASE * 256;
    return;
  }
  RegInfo r = reg(b); i.base = r.offset; i.base64 = r.bytes == 8;
  if (r.bytes != 8 && r.bytes != 4) FAIL("address register %s", b.name.c_str());
}

static int nop(Warp&, const Ins&, u32) { return OK; }
static int print_(Warp& w, const Ins& i, u32 m) {
  LANES(m) {
    const char* base = reinterpret_cast<const char*>(w.r<u64>(i.base)[l]); u64 format, list; memcpy(&format, base + i.ext[0], 8); memcpy(&list, base + i.ext[1], 8);
    const char* f = reinterpret_cast<const char*>(format); const char* a = reinterpret_cast<const char*>(list); std::string out; size_t at = 0;
    while (*f) {
      if (*f != '%') { out += *f++; continue; } if (f[1] == '%') { out += '%'; f += 2; continue; }
      std::string spec = "%"; ++f; while (*f && !isalpha(static_cast<u8>(*f))) spec += *f++; int longs = 0; while (*f == 'l' || *f == 'h' || *f == 'z') { longs += *f != 'h'; ++f; } char c = *f++; char t[600];
      if (strchr("feEgGaA", c)) { at = (at + 7) / 8 * 8; double v; memcpy(&v, a + at, 8); at += 8; snprintf(t, sizeof t, (spec + c).c_str(), v); }
      else if (c == 's') { at = (at + 7) / 8 * 8; u64 v; memcpy(&v, a + at, 8); at += 8; snprintf(t, sizeof t, (spec + c).c_str(), reinterpret_cast<const char*>(v)); }
      else if (c == 'p' || longs) { at = (at + 7) / 8 * 8; u64 v; memcpy(&v, a + at, 8); at += 8; snprintf(t, sizeof t, (spec + (c == 'p' ? "p" : std::string("ll") + c)).c_str(), v); }
      else { u32 v; memcpy(&v, a + at, 4); at += 4; snprintf(t, sizeof t, (spec + c).c_str(), v); }
      out += t;
    }
    fputs(out.c_str(), stdout); }
  fflush(stdout); return OK;
}
static int assert_(Warp& w, const Ins& i, u32 m) { const int l = __builtin_ctz(m); w.lane_at = l; const char* base = reinterpret_cast<const char*>(w.r<u64>(i.base)[l]); u64 text; memcpy(&text, base + i.ext[0], 8); FAIL("assertion fails: %.500s", reinterpret_cast<const char*>(text)); }
static int trap(Warp&, const Ins&, u32) { FAIL("trap"); }

Kernel* decode_kernel(const std::string& path, const std::string& name) {
  Module& m = module_of(path);
  auto found = m.entries.find(name); if (found == m.entries.end()) return nullptr;
  auto& slot = m.kernels[name]; if (slot) return slot.get();
  auto k = std::make_unique<Kernel>(); k->name = name; k->pretty = demangle(name); k->files = &m.files;
  k->image.resize(64);
  k->specials = k->image.size(); k->image.resize(k->specials + N_SPECIALS * 256);
  Decoder d; d.kernel = k.get(); d.image = &k->image;
  k->file_bytes = kConstantRoom;
  auto room = [&](u32 bytes) { u32 at = (k->file_bytes + 63) / 64 * 64; k->file_bytes = at + bytes; return at; };
  d.scratch_at = room(512);
  u32 shared_at = 1024;
  auto place_shared = [&](const ModuleVar& v) { shared_at = (shared_at + v.align - 1) / v.align * v.align; d.symbols[v.name] = {SHARED, shared_at, static_cast<u32>(v.size)}; shared_at += v.size; };
  u32 dynamic_align = 16; std::vector<std::string> dynamic_names;
  Scanner s{m.text.data() + found->second.first, m.text.data() + found->second.second};
  std::string body_text(s.p, s.end);
  for (auto& [n, v] : m.vars) {
    if (v.space != SHARED) { d.symbols[n] = {v.space, reinterpret_cast<u64>(v.host), static_cast<u32>(v.size)}; continue; }
    if (body_text.find(n) == std::string::npos) continue;
    if (v.is_extern) { dynamic_names.push_back(n); dynamic_align = std::max(dynamic_align, v.align); } else place_shared(v);
  }
  // parameters
  if (s.eat('(')) {
    while (!s.eat(')')) {
      std::string w = s.word(); if (w != ".param") FAIL("parameter: %s", w.c_str());
      u32 align = 1, bytes = 0, count = 1; std::string pname;
      for (;;) { w = s.word(); Type t; if (w == ".align") align = parse_int(s.word()); else if (w == ".ptr" || w == ".global" || w == ".const" || w == ".shared") continue;
        else if (w[0] == '.' && parse_type(w.substr(1), &t)) bytes = t.bits / 8; else { pname = w; break; } }
      if (s.eat('[')) { count = parse_int(s.word()); s.eat(']'); }
      align = std::max(align, bytes);
      k->param_bytes = (k->param_bytes + align - 1) / align * align;
      k->params.push_back({pname, k->param_bytes, bytes * count}); d.symbols[pname] = {PARAM, k->param_bytes, bytes * count}; k->param_bytes += bytes * count;
      s.eat(',');
    }
  }
  while (s.peek() != '{') {
    std::string w = s.word(); std::vector<int> v;
    if (w == ".explicitcluster" || w == ".blocksareclusters") continue;
    if (w == ".pragma") { while (!s.eat(';')) ++s.p; continue; }
    do v.push_back(parse_int(s.word())); while (s.eat(','));
    v.resize(3, 1);
    if (w == ".maxntid") k->maxntid = v[0] * v[1] * v[2];
    if (w == ".reqntid") k->reqntid = v[0] * v[1] * v[2];
    if (w == ".reqnctapercluster") for (int i = 0; i < 3; ++i) k->req_cluster[i] = v[i];
  }
  s.eat('{');
  std::vector<Text> texts; std::vector<int> scopes;
  std::vector<int> parent{-1}; int scope = 0;
  std::map<std::pair<int, std::string>, s32> labels; std::map<std::pair<int, std::string>, std::string> renamed;
  std::map<std::string, std::vector<std::string>> targets;
  int file = 0, line = 0; u32 local = 0;
  auto scoped_reg = [&](const std::string& n) { for (int c = scope; c > 0; c = parent[c]) { auto it = renamed.find({c, n}); if (it != renamed.end()) return it->second; } return n; };
  std::function<void(Operand&)> rename = [&](Operand& o) {
    if (o.kind == Operand::REG || o.kind == Operand::NAME) { std::string r = scoped_reg(o.name); if (r != o.name) { o.kind = Operand::REG; o.name = r; } else if (o.kind == Operand::NAME && d.regs.count(o.name)) o.kind = Operand::REG; }
    if (!o.second.empty()) o.second = scoped_reg(o.second);
    for (auto& e : o.elems) rename(e);
  };
  for (;;) {
    char c = s.peek();
    if (!c) break;
    if (c == '{') { s.eat('{'); parent.push_back(scope); scope = parent.size() - 1; continue; }
    if (c == '}') { s.eat('}'); if (scope == 0) break; scope = parent[scope]; continue; }
    if (c == ';') { s.eat(';'); continue; }
    const char* begin = s.p;
    Text t; t.file = file; t.line = line;
    if (s.eat('@')) { t.pneg = s.eat('!'); t.pred = scoped_reg(s.word()); }
    std::string w = s.word();
    if (w == ".loc") { int f = parse_int(s.word()), ln = parse_int(s.word()); s.word(); if (ln) { file = f; line = ln; } while (s.peek() == ',') { s.eat(','); s.word(); while (s.p < s.end && *s.p != '\n' && *s.p != ',') ++s.p; } continue; }
    if (w == ".pragma") { while (!s.eat(';')) ++s.p; continue; }
    if (w == ".reg") {
      std::string ty = s.word(); Type tt; if (ty == ".v2" || ty == ".v4" || !parse_type(ty.substr(1), &tt)) FAIL("register type %s", ty.c_str());
      int bytes = std::max(tt.bits / 8, 1); if (tt.kind != 'p' && bytes == 1) bytes = 2;
      do {
        std::string n = s.word();
        auto make = [&](std::string nm) { std::string full = scope ? nm + "@" + std::to_string(scope) : nm; if (scope) renamed[{scope, nm}] = full;
          d.regs[full] = {room(tt.kind == 'p' ? 4 : 32 * bytes), static_cast<u8>(tt.kind == 'p' ? 4 : bytes), tt.kind == 'p'}; };
        if (s.eat('<')) { int count = parse_int(s.word()); s.eat('>'); for (int i = 0; i < count; ++i) make(n + std::to_string(i)); } else make(n);
      } while (s.eat(','));
      s.eat(';'); continue;
    }
    if (w == ".shared") { place_shared(parse_var(s, SHARED, false)); continue; }
    if (w == ".param") { ModuleVar v = parse_var(s, LOCAL, false); local = (local + 15) / 16 * 16; auto it = d.symbols.find(v.name); if (it == d.symbols.end() || it->second.size < v.size) { d.symbols[v.name] = {LOCAL, local, static_cast<u32>(v.size)}; local += v.size; } continue; }
    if (w == ".local") { ModuleVar v = parse_var(s, LOCAL, false); local = (local + v.align - 1) / v.align * v.align; d.symbols[v.name] = {LOCAL, local, static_cast<u32>(v.size)}; local += v.size; continue; }
    if (w == ".global" || w == ".const") FAIL("variable inside a kernel");
    if (w.empty()) FAIL("cannot read PTX at: %.80s", s.p);
    if (s.peek() == ':' && s.p[1] != ':') {
      s.eat(':'); const char* save = s.p; std::string next = s.word();
      if (next == ".branchtargets") { std::vector<std::string> list; do list.push_back(s.word()); while (s.eat(',')); s.eat(';'); targets[w] = list; continue; }
      s.p = save; labels[{scope, w}] = texts.size(); continue;
    }
    // instruction: the opcode may hold :: (shared::cluster)
    std::string op = w; while (s.p + 1 < s.end && s.p[0] == ':' && s.p[1] == ':') { s.p += 2; op += "::"; op += s.word(); }
    size_t at = 0; std::vector<std::string> parts; while (at <= op.size()) { size_t dot = op.find('.', at); if (dot == std::string::npos) dot = op.size(); parts.push_back(op.substr(at, dot - at)); at = dot + 1; }
    t.op = parts[0]; t.mods.assign(parts.begin() + 1, parts.end());
    try { if (!s.eat(';')) { do { t.args.push_back(parse_operand(s)); } while (s.eat(',')); if (!s.eat(';')) FAIL("; expected"); } }
    catch (Error& e) { FAIL("%s in: %.100s", e.what(), begin); }
    t.raw = std::string(begin, s.p); for (auto& ch : t.raw) if (ch == '\n' || ch == '\t') ch = ' ';
    for (auto& a : t.args) rename(a);
    texts.push_back(std::move(t)); scopes.push_back(scope);
  }
  shared_at = (shared_at + dynamic_align - 1) / dynamic_align * dynamic_align; k->dynamic_at = shared_at; k->static_shared = shared_at - 1024;
  for (auto& n : dynamic_names) d.symbols[n] = {SHARED, shared_at, 0};
  k->local_bytes = (local + 15) / 16 * 16;
  k->code.resize(texts.size() + 1);
  auto label_of = [&](int sc, const std::string& n) { for (int c = sc; c >= 0; c = parent[c]) { auto it = labels.find({c, n}); if (it != labels.end()) return it->second; } FAIL("unknown label %s", n.c_str()); };
  for (size_t n = 0; n < texts.size(); ++n) {
    Text& t = texts[n]; Ins& i = k->code[n];
    i.text = t.raw; i.file = t.file; i.line = t.line;
    try {
      if (!t.pred.empty()) { Operand p; p.kind = Operand::REG; p.name = t.pred; i.pred = d.pred(p); i.pneg = t.pneg; }
      if (t.op == "bra") { i.flow = BRA; i.target = label_of(scopes[n], t.args[0].name); i.fn = nop; continue; }
      if (t.op == "brx") { i.flow = BRX; i.o[0] = d.src(t.args[0], 4); for (auto& l : targets.at(t.args[1].name)) i.ext.push_back(label_of(scopes[n], l)); i.fn = nop; continue; }
      if (t.op == "ret" || t.op == "exit") { i.flow = EXIT; i.fn = nop; continue; }
      if (t.op == "call") {
        std::string name; std::vector<std::string> parts; std::function<void(const Operand&)> walk = [&](const Operand& o) { if (!o.name.empty()) parts.push_back(o.name); for (auto& e : o.elems) walk(e); }; for (auto& a : t.args) walk(a);
        for (auto& q : parts) if (q == "vprintf" || q == "__assertfail") name = q;
        if (name.empty()) FAIL("a call of a device function (only printf and assert are known; make it __forceinline__)");
        for (size_t q = 0; q < parts.size(); ++q) if (parts[q] == name) for (size_t r = q + 1; r < parts.size(); ++r) i.ext.push_back(d.symbols.at(parts[r]).value);
        i.base = k->specials + LOCAL_BASE * 256; i.fn = name == "vprintf" ? print_ : assert_; continue;
      }
      if (t.op == "trap" || t.op == "brkpt") { i.fn = trap; continue; }
      if (!decode_alu(d, t, i) && !decode_memory(d, t, i) && !decode_sync(d, t, i) && !decode_matrix(d, t, i)) FAIL("unknown instruction");
      if (!i.fn) FAIL("unknown form");
      if (t.op == "griddepcontrol" && has(t, "wait")) k->uses_pdl = true;
    } catch (Error& e) { FAIL("cannot translate: %s\n  %s\n  in %s, %s:%d", e.what(), t.raw.c_str(), k->pretty.c_str(), m.files[t.file].c_str(), t.line); }
  }
  k->code[texts.size()].flow = EXIT; k->code[texts.size()].fn = nop; k->code[texts.size()].text = "(end)";
  if (k->image.size() > kConstantRoom) FAIL("too many constants in %s", k->pretty.c_str());
  slot = std::move(k);
  return slot.get();
}
void* module_symbol(const std::string& path, const std::string& name, u64* size) {
  Module& m = module_of(path); auto it = m.vars.find(name); if (it == m.vars.end()) return nullptr;
  if (size) *size = it->second.size; return it->second.host;
}
std::vector<std::string> kernel_names(const std::string& path) { std::vector<std::string> r; for (auto& [n, e] : module_of(path).entries) r.push_back(n); return r; }
