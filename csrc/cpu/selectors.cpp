// Lists of outliers to masks and back; codes of two scales to values and back.
#include "cpu/selectors.h"

#include <algorithm>
#include <cstring>

#include "cpu/rows.h"

namespace dualscale::cpu {
namespace {

constexpr int kTileBytes = kListChannels / 8;

// Calls f(tile's first byte in a row, its bytes) for each of its tokens.
template <class F>
void for_rows(const SelectorView& view, int64_t token_tile, int64_t channel_tile, F&& f) {
  const int64_t first = token_tile * kListTokens, last = std::min(first + kListTokens, view.length);
  const int64_t byte = channel_tile * kTileBytes, end = std::min<int64_t>(byte + kTileBytes, view.row_bytes);
  for (int64_t t = first; t < last; ++t) {
    f(t, byte, end);
  }
}

template <class F>
void for_tiles(const SelectorView& view, int64_t batch, F&& f) {
  const int64_t tiles = static_cast<int64_t>(view.list_tokens) * view.list_channels;
  torch::stable::parallel_for(0, batch * tiles, 64, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      f(i / tiles, i % tiles / view.list_channels, i % view.list_channels);
    }
  });
}

size_t bytes_of(const SelectorView& view, int64_t batch) {
  return view.lists == nullptr ? 0 : static_cast<size_t>(batch * view.length * view.row_bytes);
}

}  // namespace

SelectorSource::SelectorSource(const SelectorView& view, int64_t batch)
    : view_(view), made_(bytes_of(view, batch)), bits_(view.lists == nullptr ? view.mask : made_.data()) {
  if (view.lists == nullptr) {
    return;
  }
  for_tiles(view_, batch, [&](int64_t b, int64_t token_tile, int64_t channel_tile) {
    const int16_t* const list = view_.list(b, token_tile, channel_tile);
    const auto at = [&](int64_t t) { return made_.data() + (b * view_.length + t) * view_.row_bytes; };
    if (list[0] > view_.capacity) {
      for_rows(view_, token_tile, channel_tile, [&](int64_t t, int64_t byte, int64_t end) {
        std::memcpy(at(t) + byte, view_.row(b, t) + byte, static_cast<size_t>(end - byte));
      });
      return;
    }
    for (int i = 1; i <= list[0]; ++i) {
      const int64_t t = token_tile * kListTokens + list[i] / kListChannels;
      const int channel = list[i] % kListChannels;
      at(t)[channel_tile * kTileBytes + channel / 8] |= static_cast<uint8_t>(1u << channel % 8);
    }
  });
}

SelectorSink::SelectorSink(const SelectorView& view, int64_t batch)
    : view_(view),
      batch_(batch),
      made_(bytes_of(view, batch)),
      bits_(view.lists == nullptr ? view.mask : made_.data()) {}

void SelectorSink::finish() {
  if (view_.lists != nullptr) {
    for_tiles(view_, batch_,
              [&](int64_t b, int64_t tokens, int64_t channels) { write_list(b, tokens, channels); });
  }
}

void SelectorSink::write_list(int64_t b, int64_t token_tile, int64_t channel_tile) {
  int16_t* const list = view_.list(b, token_tile, channel_tile);
  int count = 0;
  for_rows(view_, token_tile, channel_tile, [&](int64_t t, int64_t byte, int64_t end) {
    const int64_t in_tile = (t - token_tile * kListTokens) * kListChannels;
    for (int64_t i = byte; i < end; ++i) {
      for (unsigned bits = row(b, t)[i]; bits != 0; bits &= bits - 1) {
        if (count++ < view_.capacity) {
          const int64_t channel = (i - byte) * 8 + __builtin_ctz(bits);
          list[count] = static_cast<int16_t>(in_tile + channel);
        }
      }
    }
  });
  list[0] = static_cast<int16_t>(count);
  if (count > view_.capacity) {
    for_rows(view_, token_tile, channel_tile, [&](int64_t t, int64_t byte, int64_t end) {
      std::memcpy(view_.row(b, t) + byte, row(b, t) + byte, static_cast<size_t>(end - byte));
    });
  }
}

namespace {

// Rows of kBlock channels at most; f(b, t, first channel, channels).
template <class F>
void for_blocks(const Tensor& x, F&& f) {
  const int64_t length = x.size(1), channels = x.size(2), blocks = ceil_of(channels, kBlock);
  torch::stable::parallel_for(0, x.size(0) * length * blocks, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t c = i % blocks * kBlock, row = i / blocks;
      f(row / length, row % length, c, std::min(kBlock, channels - c));
    }
  });
}

Tensor encode_pair(const Tensor& x, const Tensor& code, Tensor mask, const OptionalTensor& outliers) {
  const SelectorView view = checked_encode_pair(x, code, mask, outliers);
  Tensor codes = empty_of(x, ScalarType::Char);
  const Source source(x, std::nullopt);
  const Sink sink(codes, code);
  SelectorSink selectors(view, x.size(0));
  const int64_t length = x.size(1), channels = x.size(2);
  for_blocks(x, [&](int64_t b, int64_t t, int64_t c, int64_t n) {
    alignas(64) float scratch[kBlock];
    const float* const values = source.read(b * x.stride(0) + t * x.stride(1), c, n, scratch);
    sink.write_pair(values, (b * length + t) * channels, c, n, selectors.row(b, t));
  });
  selectors.finish();
  return codes;
}

Tensor decode_pair(const Tensor& codes, const Tensor& code, const Tensor& mask,
                   const OptionalTensor& outliers, ScalarType dtype) {
  const SelectorView view = checked_decode_pair(codes, code, mask, outliers, dtype);
  Tensor values = empty_of(codes, dtype);
  const Source source(codes, code);
  const Sink sink(values, std::nullopt);
  const SelectorSource selectors(view, codes.size(0));
  const int64_t length = codes.size(1), channels = codes.size(2);
  for_blocks(codes, [&](int64_t b, int64_t t, int64_t c, int64_t n) {
    alignas(64) float scratch[kBlock];
    const int64_t at = b * codes.stride(0) + t * codes.stride(1);
    sink.write(source.read_pair(at, c, n, selectors.row(b, t), scratch), (b * length + t) * channels, c, n);
  });
  return values;
}

}  // namespace
}  // namespace dualscale::cpu

STABLE_TORCH_LIBRARY_IMPL(dualscale, CPU, m) {
  m.impl("encode_pair", TORCH_BOX(&dualscale::cpu::encode_pair));
  m.impl("decode_pair", TORCH_BOX(&dualscale::cpu::decode_pair));
}
