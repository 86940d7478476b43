// The CUDA runtime and what of torch's shims concerns CUDA, as the host code of the operators sees them.
#include "core.h"
#include "tensor_map.h"
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <dlfcn.h>
#include <algorithm>

std::vector<std::string> kernel_names(const std::string& path);
void clear_ranges(const std::string& prefix); u64 executed_instructions(); size_t warning_count();
namespace {
struct Library { std::string space; std::vector<std::string> ptx; };
struct Function { std::string name; int library; int max_dynamic = 48 * 1024; int cluster_limit = 8; Kernel* kernel = nullptr; };
std::vector<Library> libraries; int current = -1;
std::unordered_map<const void*, Function> functions; std::unordered_map<const void*, std::pair<std::string, int>> variables;
std::string last_message; cudaError_t last_error = cudaSuccess;
void* torch_handle() { static void* h = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD); return h; }
template <class F> F real(const char* name) { F f = reinterpret_cast<F>(dlsym(torch_handle(), name)); if (!f) { fprintf(stderr, "emu: torch has no %s\n", name); abort(); } return f; }
cudaError_t fail(cudaError_t e, const std::string& m) { last_error = e; last_message = m; return e; }
Kernel* kernel_of(Function& f) {
  if (!f.kernel) { for (auto& p : libraries[f.library].ptx) if ((f.kernel = decode_kernel(p, f.name))) break; if (!f.kernel) FAIL("kernel %s is in no PTX file", f.name.c_str()); }
  return f.kernel;
}
u64 launch_count = 0;
cudaError_t launch(const void* func, dim3 grid, dim3 block, void** args, size_t shared, const cudaLaunchAttribute* attrs, unsigned n) {
  auto it = functions.find(func); if (it == functions.end()) return fail(cudaErrorInvalidDeviceFunction, "emu: launch of an unknown function");
  Function& f = it->second;
  try {
    Launch L; L.kernel = kernel_of(f); Kernel& k = *L.kernel;
    L.grid = {int(grid.x), int(grid.y), int(grid.z)}; L.block = {int(block.x), int(block.y), int(block.z)}; L.dynamic_shared = shared;
    if (k.req_cluster[0]) L.cluster = {k.req_cluster[0], k.req_cluster[1], k.req_cluster[2]};
    for (unsigned i = 0; i < n; ++i) { if (attrs[i].id == cudaLaunchAttributeClusterDimension) L.cluster = {int(attrs[i].val.clusterDim.x), int(attrs[i].val.clusterDim.y), int(attrs[i].val.clusterDim.z)};
      if (attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) L.early = attrs[i].val.programmaticStreamSerializationAllowed; if (attrs[i].id == cudaLaunchAttributeCooperative) L.cooperative = attrs[i].val.cooperative; }
    auto bad = [&](const std::string& m) { return fail(cudaErrorInvalidConfiguration, "emu: launch of " + k.pretty + ": " + m); };
    if (!grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffffu) return bad("grid (" + std::to_string(grid.x) + "," + std::to_string(grid.y) + "," + std::to_string(grid.z) + ")");
    const int threads = L.block.count(); if (threads < 1 || threads > 1024 || block.z > 64) return bad(std::to_string(threads) + " threads");
    if (k.maxntid && threads > k.maxntid) return bad(std::to_string(threads) + " threads exceed __launch_bounds__ of " + std::to_string(k.maxntid));
    if (k.reqntid && threads != k.reqntid) return bad("threads differ from the required " + std::to_string(k.reqntid));
    if (static_cast<int>(shared) > f.max_dynamic) return bad(std::to_string(shared) + " bytes of dynamic shared memory, allowed are " + std::to_string(f.max_dynamic));
    if (k.static_shared + shared > 232448) return bad(std::to_string(k.static_shared + shared) + " bytes of shared memory");
    if (L.cluster.count() > f.cluster_limit) return bad("clusters of " + std::to_string(L.cluster.count()) + " blocks");
    if (L.grid.x % L.cluster.x || L.grid.y % L.cluster.y || L.grid.z % L.cluster.z) return bad("the grid is no multiple of the cluster");
    L.params.assign(k.param_bytes + 16, 0);   // at a multiple of 128, as tensor maps want
    for (size_t p = 0; p < k.params.size(); ++p) memcpy(L.params.data() + k.params[p].offset, args[p], k.params[p].size);
    ++launch_count; const u64 before = executed_instructions();
    if (options.trace) fprintf(stderr, "emu: launch %s grid (%d,%d,%d) block %d cluster %d shared %u+%zu\n", k.pretty.c_str(), L.grid.x, L.grid.y, L.grid.z, threads, L.cluster.count(), k.static_shared, shared);
    run_launch(L);
    if (options.trace) fprintf(stderr, "emu:   %.2f M warp instructions\n", (executed_instructions() - before) * 1e-6);
    return cudaSuccess;
  } catch (Error& e) { return fail(cudaErrorLaunchFailure, std::string("emu: ") + e.what()); }
}
}  // namespace

extern "C" {
// ---- control from Python
int emu_begin_library(const char* space) { libraries.push_back({space, {}}); return current = libraries.size() - 1; }
void emu_add_ptx(const char* path) { libraries[current].ptx.push_back(path); }
// Decodes every kernel of a PTX file; how many could not be. Prints why.
int emu_translate(const char* path) {
  int bad = 0;
  try { for (auto& name : kernel_names(path)) try { decode_kernel(path, name); } catch (Error& e) { ++bad; fprintf(stderr, "%s\n", e.what()); } } catch (Error& e) { ++bad; fprintf(stderr, "%s\n", e.what()); }
  return bad;
}
void emu_end_library() { current = -1; }
const char* emu_open(const char* path) { return dlopen(path, RTLD_LAZY | RTLD_LOCAL) ? nullptr : dlerror(); }
void emu_range(const void* p, u64 bytes, const char* what) { add_range(p, bytes, what); }
void emu_clear() { clear_ranges("tensor"); }
void emu_option(const char* name, s64 v) {
  std::string n = name;
  if (n == "seed") options.seed = v; else if (n == "async") options.async_mode = v; else if (n == "bounds") options.check_bounds = v; else if (n == "uninitialised") options.check_uninitialised = v;
  else if (n == "races") options.check_races = v; else if (n == "resident") options.resident = v; else if (n == "max_instructions") options.max_instructions = v; else if (n == "pdl") options.pdl = v; else if (n == "trace") options.trace = v; else if (n == "spurious") options.spurious = v; else if (n == "diverge") options.diverge = v; else if (n == "sms") options.sms = v;
  else { fprintf(stderr, "emu: unknown option %s\n", name); abort(); }
}
u64 emu_launches() { return launch_count; }
u64 emu_instructions() { return executed_instructions(); }
u64 emu_warnings() { return warning_count(); }

// ---- registration by nvcc's host code
static u64 handles[4096]; static int handle_count = 0;
void** __cudaRegisterFatBinary(void*) { if (current < 0 && getenv("EMU_PTX")) { emu_begin_library("test"); emu_add_ptx(getenv("EMU_PTX")); } handles[handle_count] = current; return reinterpret_cast<void**>(&handles[handle_count++]); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** h, const char* host, char*, const char* device, int, void*, void*, void*, void*, int*) { functions[host] = {device, static_cast<int>(*reinterpret_cast<u64*>(h))}; }
void __cudaRegisterVar(void** h, char* host, char*, const char* device, int, size_t, int, int) { variables[host] = {device, static_cast<int>(*reinterpret_cast<u64*>(h))}; }
void __cudaRegisterManagedVar(void**, void**, char*, const char*, int, size_t, int, int) {}
char __cudaInitModule(void**) { return 0; }
struct Call { dim3 grid, block; size_t shared; void* stream; }; static std::vector<Call> calls;
unsigned __cudaPushCallConfiguration(dim3 g, dim3 b, size_t s, void* st) { calls.push_back({g, b, s, st}); return 0; }
cudaError_t __cudaPopCallConfiguration(dim3* g, dim3* b, size_t* s, void* st) { Call c = calls.back(); calls.pop_back(); *g = c.grid; *b = c.block; *s = c.shared; *static_cast<void**>(st) = c.stream; return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t* k, const void* f) { *k = reinterpret_cast<cudaKernel_t>(const_cast<void*>(f)); return cudaSuccess; }
cudaError_t __cudaLaunchKernel(cudaKernel_t k, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) { return launch(reinterpret_cast<const void*>(k), g, b, a, s, nullptr, 0); }
cudaError_t cudaLaunchKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) { return launch(f, g, b, a, s, nullptr, 0); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* c, const void* f, void** a) { return launch(f, c->gridDim, c->blockDim, a, c->dynamicSmemBytes, c->attrs, c->numAttrs); }
cudaError_t cudaLaunchCooperativeKernel(const void* f, dim3 g, dim3 b, void** a, size_t s, cudaStream_t) { cudaLaunchAttribute x{}; x.id = cudaLaunchAttributeCooperative; x.val.cooperative = 1; return launch(f, g, b, a, s, &x, 1); }

// ---- runtime
cudaError_t cudaFuncSetAttribute(const void* f, cudaFuncAttribute a, int v) {
  auto it = functions.find(f); if (it == functions.end()) return fail(cudaErrorInvalidDeviceFunction, "emu: cudaFuncSetAttribute of an unknown function");
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) { if (v > 232448) return fail(cudaErrorInvalidValue, "emu: dynamic shared memory of " + std::to_string(v)); it->second.max_dynamic = v; }
  if (a == cudaFuncAttributeNonPortableClusterSizeAllowed) it->second.cluster_limit = v ? 16 : 8;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void* f) {
  auto it = functions.find(f); if (it == functions.end()) return fail(cudaErrorInvalidDeviceFunction, "emu: unknown function");
  try { Kernel* k = kernel_of(it->second); *a = {}; a->sharedSizeBytes = k->static_shared; a->localSizeBytes = k->local_bytes; a->maxThreadsPerBlock = k->maxntid ? k->maxntid : 1024; a->numRegs = 64; a->ptxVersion = a->binaryVersion = 90; a->maxDynamicSharedSizeBytes = it->second.max_dynamic; } catch (Error& e) { return fail(cudaErrorLaunchFailure, e.what()); }
  return cudaSuccess;
}
static int resident_blocks_of(const void* f, int threads, size_t shared) {
  auto it = functions.find(f); u32 fixed = 1024; int registers = 2048; try { if (it != functions.end()) { Kernel* k = kernel_of(it->second); fixed = k->dynamic_at; } } catch (Error&) {}
  int per = std::min({registers / ((threads + 31) / 32 * 32), int(233472 / (fixed + shared)), 32}); return per;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n, const void* f, int t, size_t s) { *n = resident_blocks_of(f, t, s); return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n, const void* f, int t, size_t s, unsigned) { *n = resident_blocks_of(f, t, s); return cudaSuccess; }
cudaError_t cudaOccupancyMaxActiveClusters(int* n, const void* f, const cudaLaunchConfig_t* c) { int size = 1; for (unsigned i = 0; i < c->numAttrs; ++i) if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) size = c->attrs[i].val.clusterDim.x * c->attrs[i].val.clusterDim.y * c->attrs[i].val.clusterDim.z; *n = resident_blocks_of(f, c->blockDim.x * c->blockDim.y * c->blockDim.z, c->dynamicSmemBytes) * options.sms / size; return cudaSuccess; }
cudaError_t cudaOccupancyMaxPotentialClusterSize(int* n, const void*, const cudaLaunchConfig_t*) { *n = 8; return cudaSuccess; }
cudaError_t cudaDeviceGetAttribute(int* v, cudaDeviceAttr a, int) {
  switch (a) {
    case cudaDevAttrMultiProcessorCount: *v = options.sms; break; case cudaDevAttrComputeCapabilityMajor: *v = 9; break; case cudaDevAttrComputeCapabilityMinor: *v = 0; break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *v = 232448; break; case cudaDevAttrMaxSharedMemoryPerBlock: *v = 49152; break; case cudaDevAttrMaxSharedMemoryPerMultiprocessor: *v = 233472; break; case cudaDevAttrReservedSharedMemoryPerBlock: *v = 1024; break;
    case cudaDevAttrL2CacheSize: *v = 50 << 20; break; case cudaDevAttrWarpSize: *v = 32; break; case cudaDevAttrMaxThreadsPerBlock: *v = 1024; break; case cudaDevAttrMaxThreadsPerMultiProcessor: *v = 2048; break; case cudaDevAttrMaxRegistersPerBlock: case cudaDevAttrMaxRegistersPerMultiprocessor: *v = 65536; break;
    case cudaDevAttrMaxBlocksPerMultiprocessor: *v = 32; break; case cudaDevAttrCooperativeLaunch: *v = 1; break; case cudaDevAttrClusterLaunch: *v = 1; break; case cudaDevAttrClockRate: *v = 1980000; break; case cudaDevAttrMemoryPoolsSupported: *v = 1; break;
    case cudaDevAttrMaxGridDimX: *v = 0x7fffffff; break; case cudaDevAttrMaxGridDimY: case cudaDevAttrMaxGridDimZ: *v = 65535; break; case cudaDevAttrMaxPersistingL2CacheSize: *v = 31 << 20; break;
    default: return fail(cudaErrorInvalidValue, "emu: device attribute " + std::to_string(a) + " is not known to the emulator");
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int) { *p = {}; strcpy(p->name, "emulated H200"); p->major = 9; p->multiProcessorCount = options.sms; p->sharedMemPerBlockOptin = 232448; p->sharedMemPerBlock = 49152; p->sharedMemPerMultiprocessor = 233472; p->l2CacheSize = 50 << 20; p->warpSize = 32; p->maxThreadsPerBlock = 1024; p->regsPerBlock = 65536; p->maxThreadsPerMultiProcessor = 2048; return cudaSuccess; }
cudaError_t cudaGetDevice(int* d) { *d = 0; return cudaSuccess; }
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* n) { *n = 1; return cudaSuccess; }
cudaError_t cudaGetLastError() { cudaError_t e = last_error; last_error = cudaSuccess; return e; }
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorString(cudaError_t) { return last_message.c_str(); }
const char* cudaGetErrorName(cudaError_t) { return "cudaError"; }
cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* s) { *s = cudaStreamCaptureStatusNone; return cudaSuccess; }
cudaError_t cudaMemsetAsync(void* p, int v, size_t n, cudaStream_t) { memset(p, v, n); return cudaSuccess; }
cudaError_t cudaMemset(void* p, int v, size_t n) { memset(p, v, n); return cudaSuccess; }
cudaError_t cudaMemset2DAsync(void* p, size_t pitch, int v, size_t w, size_t h, cudaStream_t) { for (size_t k = 0; k < h; ++k) memset(static_cast<char*>(p) + k * pitch, v, w); return cudaSuccess; }
cudaError_t cudaMemcpyAsync(void* d, const void* s, size_t n, cudaMemcpyKind, cudaStream_t) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemcpy(void* d, const void* s, size_t n, cudaMemcpyKind) { memcpy(d, s, n); return cudaSuccess; }
cudaError_t cudaMemcpy2DAsync(void* d, size_t dp, const void* s, size_t sp, size_t w, size_t h, cudaMemcpyKind, cudaStream_t) { for (size_t k = 0; k < h; ++k) memcpy(static_cast<char*>(d) + k * dp, static_cast<const char*>(s) + k * sp, w); return cudaSuccess; }
cudaError_t cudaMalloc(void** p, size_t n) { *p = aligned_alloc(512, (std::max<size_t>(n, 1) + 511) / 512 * 512); memset(*p, 0xff, n); add_range(*p, n, "cudaMalloc"); return cudaSuccess; }
cudaError_t cudaFree(void* p) { if (p) { remove_range(p); free(p); } return cudaSuccess; }
cudaError_t cudaMallocAsync(void** p, size_t n, cudaStream_t) { return cudaMalloc(p, n); }
cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
cudaError_t cudaMallocHost(void** p, size_t n) { return cudaMalloc(p, n); }
cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
static void* variable_at(const void* host, size_t* size) { auto it = variables.find(host); if (it == variables.end()) return nullptr; for (auto& p : libraries[it->second.second].ptx) { u64 n; if (void* v = module_symbol(p, it->second.first, &n)) { if (size) *size = n; return v; } } return nullptr; }
cudaError_t cudaGetSymbolAddress(void** p, const void* s) { *p = variable_at(s, nullptr); return *p ? cudaSuccess : fail(cudaErrorInvalidSymbol, "emu: symbol"); }
cudaError_t cudaMemcpyToSymbolAsync(const void* s, const void* from, size_t n, size_t o, cudaMemcpyKind, cudaStream_t) { void* p = variable_at(s, nullptr); if (!p) return fail(cudaErrorInvalidSymbol, "emu: symbol"); memcpy(static_cast<char*>(p) + o, from, n); return cudaSuccess; }
cudaError_t cudaMemcpyToSymbol(const void* s, const void* from, size_t n, size_t o, cudaMemcpyKind k) { return cudaMemcpyToSymbolAsync(s, from, n, o, k, nullptr); }
static CUresult encode_tiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank, void* base, const cuuint64_t* sizes, const cuuint64_t* strides, const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave inter, CUtensorMapSwizzle swizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill fill_) {
  auto bad = [](const char* m) { fprintf(stderr, "emu: cuTensorMapEncodeTiled: %s\n", m); return CUDA_ERROR_INVALID_VALUE; };
  TensorMap t{}; t.magic = TensorMap::kMagic; t.rank = rank; t.type = type; t.swizzle = swizzle; t.interleave = inter; t.base = reinterpret_cast<u64>(base);
  if (reinterpret_cast<u64>(map) % 64) return bad("the map is not aligned to 64 bytes"); if (rank < 1 || rank > 5) return bad("rank"); if (type > 12) return bad("type"); if (t.base % 16) return bad("the tensor is not aligned to 16 bytes"); if (inter) return bad("interleave is not modelled"); if (swizzle > 3) return bad("swizzle is not modelled"); if (fill_) return bad("NaN fill is not modelled");
  for (cuuint32_t k = 0; k < rank; ++k) { t.sizes[k] = sizes[k]; t.box[k] = box[k]; t.steps[k] = steps[k]; if (!sizes[k] || sizes[k] > (1ull << 32)) return bad("size"); if (!box[k] || box[k] > 256) return bad("box"); if (steps[k] != 1) return bad("element strides other than 1 are not modelled"); }
  for (cuuint32_t k = 0; k + 1 < rank; ++k) { t.strides[k] = strides[k]; if (strides[k] % 16 || strides[k] >= (1ull << 40)) return bad("a stride is no multiple of 16 bytes"); if (k == 0 && strides[0] < sizes[0] * t.width()) return bad("stride is smaller than a row"); }
  const u32 line = box[0] * t.width(); if (line % 16) return bad("the box's inner dimension is no multiple of 16 bytes"); const u32 most[] = {1u << 30, 32, 64, 128}; if (line > most[swizzle]) return bad("the box's inner dimension exceeds the swizzle");
  memset(map, 0, sizeof *map); memcpy(map, &t, sizeof t); return CUDA_SUCCESS;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* r) {
  *f = nullptr; if (!strcmp(name, "cuTensorMapEncodeTiled")) *f = reinterpret_cast<void*>(&encode_tiled);
  if (r) *r = *f ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound; return *f ? cudaSuccess : fail(cudaErrorSymbolNotFound, std::string("emu: driver function ") + name);
}
cudaError_t cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long fl, cudaDriverEntryPointQueryResult* r) { return cudaGetDriverEntryPointByVersion(name, f, 12000, fl, r); }
CUresult cuTensorMapEncodeTiled(CUtensorMap* a, CUtensorMapDataType b, cuuint32_t c, void* d, const cuuint64_t* e, const cuuint64_t* f, const cuuint32_t* g, const cuuint32_t* h, CUtensorMapInterleave i, CUtensorMapSwizzle j, CUtensorMapL2promotion k, CUtensorMapFloatOOBfill l) { return encode_tiled(a, b, c, d, e, f, g, h, i, j, k, l); }

// ---- torch
int32_t aoti_torch_get_current_cuda_stream(int32_t, void** s) { *s = nullptr; return 0; }
int32_t aoti_torch_create_device_guard(int32_t, void** g) { *g = new char; return 0; }
int32_t aoti_torch_delete_device_guard(void* g) { delete static_cast<char*>(g); return 0; }
int32_t aoti_torch_device_guard_set_index(void*, int32_t) { return 0; }
int32_t aoti_torch_get_current_device_index(int32_t* d) { *d = 0; return 0; }
int32_t aoti_torch_get_device_index(void*, int32_t* d) { *d = 0; return 0; }
int32_t torch_c10_cuda_check_msg(int32_t err, const char* file, const char* function, uint32_t line, bool, char** m) {
  if (!err) { *m = nullptr; return 0; }
  std::string t = last_message + "\n  (CUDA error " + std::to_string(err) + " seen by " + function + ", " + file + ":" + std::to_string(line) + ")"; last_error = cudaSuccess; *m = strdup(t.c_str()); return 0;
}
void torch_c10_cuda_free_error_msg(char* m) { free(m); }
int32_t aoti_torch_library_init_impl(const char* ns, const char* key, const char* file, uint32_t line, void** lib) {
  std::string space = current >= 0 ? libraries[current].space : ns; char* keep = strdup(space.c_str());
  return real<int32_t (*)(const char*, const char*, const char*, uint32_t, void**)>("aoti_torch_library_init_impl")(keep, "CPU", file, line, lib); (void)key;
}
static std::unordered_map<void*, void*> made;   // handles of tensors that operators made: a workspace may outlive its call
int32_t aoti_torch_delete_tensor_object(void* t) {
  auto it = made.find(t); if (it != made.end()) { remove_range(it->second); made.erase(it); }
  static auto f = real<int32_t (*)(void*)>("aoti_torch_delete_tensor_object"); return f(t);
}
// New tensors: known to the bounds check, and full of NaN (0xff) where torch leaves them undefined.
int32_t torch_call_dispatcher(const char* name, const char* overload, u64* stack, u64 version) {
  int32_t r = real<int32_t (*)(const char*, const char*, u64*, u64)>("torch_call_dispatcher")(name, overload, stack, version);
  static const std::set<std::string> makers = {"aten::new_empty", "aten::empty_like", "aten::empty", "aten::new_zeros", "aten::zeros_like", "aten::full", "aten::full_like", "aten::new_full", "aten::clone", "aten::contiguous", "aten::_int_mm", "aten::matmul", "aten::zeros", "aten::new_ones", "aten::to", "aten::cat", "aten::pad", "aten::constant_pad_nd", "aten::_to_copy", "aten::empty_strided", "aten::new_empty_strided"};
  if (r || !makers.count(name)) return r;
  void* t = reinterpret_cast<void*>(stack[0]); void* p = nullptr; s64 n = 0, size = 0; int32_t type = 0;
  real<int32_t (*)(void*, void**)>("aoti_torch_get_data_ptr")(t, &p); real<int32_t (*)(void*, s64*)>("aoti_torch_get_storage_size")(t, &size); (void)n; (void)type;
  if (p && size) { made[t] = p; add_range(p, size, std::string("what the operator made by ") + name); if (strstr(name, "empty")) memset(p, 0xff, size); }
  return r;
}
}
