// The Hadamard transform of many rows: which kernel of hadamard_rows.cuh.
#include "hadamard_rows.cuh"

namespace dualscale {
namespace {

int log2_of(int64_t n) {
  int log2 = 0;
  while (int64_t{1} << log2 < n) {
    ++log2;
  }
  return log2;
}

// Calls f(steps of sixteen segments, as a constant).
template <class F>
void dispatch_steps(int64_t segments, F&& f) {
  switch (ceil_div(segments, 16)) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 3:
      return f(std::integral_constant<int, 3>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 5:
      return f(std::integral_constant<int, 5>{});
    default:
      return f(std::integral_constant<int, kMostRowSteps>{});
  }
}

template <class T>
void launch_of_type(const RowTransform& r, int device, cudaStream_t stream) {
  dispatch_steps(r.segments, [&](auto steps) {
    constexpr int kSteps = decltype(steps)::value;
    const int64_t blocks =
        std::min<int64_t>(ceil_div(r.rows, kRowWarps), multiprocessors(device) * kRowBlocks<kSteps>);
    launch_early(transform_rows<T, kSteps>, static_cast<unsigned>(blocks), 32 * kRowWarps, 0, device, stream,
                 r);
  });
}

}  // namespace

bool transforms_rows(const Hadamard& a, int64_t order, int64_t rows, int device) {
  const int64_t segments = a.result.channels / kColumns;
  const bool one_code =
      a.result.code.rows == nullptr || !(a.result.code.per_channel || a.result.code.is_table);
  // With fewer rows a block a row is the sooner done.
  return (a.x.kind == Kind::kHalf || a.x.kind == Kind::kBFloat16) && a.result.channels % kColumns == 0 &&
         segments % order == 0 && segments <= 16 * kMostRowSteps && a.x.aligned &&
         has_whole_vectors(a.result) && one_code && rows >= 4 * multiprocessors(device);
}

void launch_rows(const Hadamard& a, int64_t order, int64_t rows, int device, cudaStream_t stream) {
  RowTransform r{a, rows, static_cast<int>(order), 0, static_cast<int>(a.result.channels / kColumns)};
  r.log2_parts = log2_of(r.segments / order);
  a.x.kind == Kind::kHalf ? launch_of_type<__half>(r, device, stream)
                          : launch_of_type<__nv_bfloat16>(r, device, stream);
}

}  // namespace dualscale
