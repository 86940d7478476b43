// encode and decode: the formats themselves, row by row.
#include <algorithm>

#include "checks.h"
#include "cpu/rows.h"

namespace dualscale::cpu {
namespace {

// Values of one task of a thread: small enough to share, large enough to pay for waking the thread.
constexpr int64_t kGrain = 16384;

// All rows of `source` to `sink`, in blocks of channels.
void convert(const Tensor& shape, const Source& source, const Sink& sink) {
  const RowOffsets offsets(shape);
  const int64_t channels = shape.size(shape.dim() - 1);
  const int64_t blocks = (channels + kBlock - 1) / kBlock;
  torch::stable::parallel_for(
      0, offsets.rows() * blocks, kGrain / std::min(channels, kBlock) + 1, [&](int64_t begin, int64_t end) {
        float scratch[kBlock];
        for (int64_t task = begin; task < end; ++task) {
          const int64_t row = task / blocks, c = task % blocks * kBlock, n = std::min(kBlock, channels - c);
          sink.write(source.read(offsets(row), c, n, scratch), row * channels, c, n);
        }
      });
}

Tensor encode(const Tensor& x, const Tensor& code) {
  check_channels({"encode", "x"}, x);
  check_floating({"encode", "x"}, x);
  check_last_stride({"encode", "x"}, x);
  check_code({"encode", "code"}, code, x.size(x.dim() - 1), Codes::kAny, x);
  Tensor codes = empty_of(x, ScalarType::Char);
  convert(x, Source(x, std::nullopt), Sink(codes, code));
  return codes;
}

Tensor decode(const Tensor& codes, const Tensor& code, ScalarType dtype) {
  check_channels({"decode", "codes"}, codes);
  check_type({"decode", "codes"}, codes, ScalarType::Char);
  check_last_stride({"decode", "codes"}, codes);
  check_code({"decode", "code"}, code, codes.size(codes.dim() - 1), Codes::kAny, codes);
  check_result_type({"decode", "dtype"}, dtype);
  Tensor values = empty_of(codes, dtype);
  convert(codes, Source(codes, code), Sink(values, std::nullopt));
  return values;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("encode", TORCH_BOX(&dualscale::cpu::encode));
  m.impl("decode", TORCH_BOX(&dualscale::cpu::decode));
}
