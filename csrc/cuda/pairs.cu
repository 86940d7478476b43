// encode_pair and decode_pair: bitwise what the PyTorch reference gives.
//
// A block of 128 threads encodes the 32 tokens of sixteen tiles, a segment of eight threads one tile; or it
// decodes one tile.
#include "conv_pairs.cuh"
#include "scan_selectors.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 128;
constexpr int kPass = kThreads / kSegment;  // tokens of a tile that a block covers at once

struct Shape {
  int64_t length, channels, batch_stride, row_stride;
  unsigned token_tiles, channel_tiles, batch;
  bool in_aligned, out_aligned;
};

// Which tile, and which of its channels.
struct Place {
  int64_t batch, token, channel;
  int valid;

  __device__ Place(const Shape& s, unsigned tile) {
    channel =
        static_cast<int64_t>(tile % s.channel_tiles) * kListChannels + threadIdx.x % kSegment * kPairVector;
    token = static_cast<int64_t>(tile / s.channel_tiles % s.token_tiles) * kListTokens;
    batch = tile / s.channel_tiles / s.token_tiles;
    valid = static_cast<int>(min(max(s.channels - channel, int64_t{0}), int64_t{kPairVector}));
  }
};

// The exact codes of a thread's channels.
struct ExactPairs {
  const float* rows;
  int64_t step, first, last;

  __device__ ExactPairs(const CodeView& code, int64_t channel, int64_t channels)
      : rows(code.rows), step(code.per_channel ? kPairWidth : 0), first(channel), last(channels - 1) {}

  __device__ __forceinline__ Pair pair(int i) const { return Pair::load(rows + min(first + i, last) * step); }

  __device__ __forceinline__ Raw<int8_t, kPairVector> result(const float (&x)[kPairVector],
                                                             uint32_t& bits) const {
    float q[kPairVector];
    bits = 0;
#pragma unroll
    for (int i = 0; i < kPairVector; ++i) {
      const Pair own = pair(i);
      const bool is_outlier = own.is_outlier(x[i]);
      q[i] = own.encode(x[i], is_outlier);
      bits |= is_outlier ? 1u << i : 0u;
    }
    return pack<int8_t, kPairVector>(q);
  }
};

template <class T, class Selectors>
__global__ void __launch_bounds__(kThreads)
    encode(const T* x, int8_t* codes, CodeView code, Shape s, Selectors selectors) {
  [[maybe_unused]] __shared__ uint32_t kept[Selectors::kLists ? kTileWords : 1][kThreads];
  const unsigned tile = (blockIdx.x * kThreads + threadIdx.x) / kSegment;
  const unsigned tiles = s.batch * s.token_tiles * s.channel_tiles;
  Place at(s, min(tile, tiles - 1));
  const int left = tile < tiles ? static_cast<int>(min(s.length - at.token, int64_t{kListTokens})) : 0;
  x += at.batch * s.batch_stride + at.token * s.row_stride + at.channel;
  codes += (at.batch * s.length + at.token) * s.channels + at.channel;
  const ExactPairs result(code, at.channel, s.channels);
  SelectorSink<Selectors> sink(selectors, kept, at.batch, at.token, at.channel, s.channels, left);
#pragma unroll 1
  for (int done = 0; done < kListTokens; done += kTokensAtOnce) {
#pragma unroll
    for (int r = 0; r < kTokensAtOnce; ++r) {
      float value[kPairVector] = {};
      const bool exists = done + r < left && at.valid > 0;
      if (exists) {
        unpack(load_raw<T, kPairVector>(x, s.in_aligned, at.valid), value);
      }
      uint32_t bits;
      const Raw<int8_t, kPairVector> own = result.result(value, bits);
      sink.row(codes, own, bits, r, exists, s.out_aligned, at.valid);
      x += s.row_stride;
      codes += s.channels;
    }
    if constexpr (Selectors::kLists) {
      sink.turn();
    }
  }
}

// Each warp makes the selectors of sixteen channels, for all threads of the tile.
template <class T, class Selectors>
__global__ void __launch_bounds__(kThreads)
    decode(const int8_t* codes, T* values, CodeView code, Shape s, Selectors selectors) {
  constexpr int kItems = kListTokens / kPass, kWarpChannels = kListChannels / (kThreads / 32);
  __shared__ uint32_t words[kThreads / 32][kListTokens];
  const Place at(s, blockIdx.x);
  const int warp = threadIdx.x / 32, segment = threadIdx.x % kSegment, row = threadIdx.x / kSegment;
  const int64_t first = at.channel - segment * kPairVector;
  const ScanPlace place{at.batch, first + warp * kWarpChannels, s.channels};
  WarpSelectors<Selectors, kWarpChannels, false> own;
  own.fetch(selectors.view, place, at.token);
  own.spread(selectors.view, place, at.token, words[warp]);
  __syncthreads();
  const ExactPairs pairs(code, at.channel, s.channels);
#pragma unroll
  for (int i = 0; i < kItems; ++i) {
    const int64_t token = at.token + row + i * kPass;
    if (token >= s.length || at.valid <= 0) {
      continue;
    }
    constexpr int kShare = kWarpChannels / kPairVector;  // threads that read one word
    const uint32_t bits = words[segment / kShare][row + i * kPass] >> segment % kShare * kPairVector;
    float q[kPairVector];
    unpack(load_raw<int8_t, kPairVector>(
               codes + at.batch * s.batch_stride + token * s.row_stride + at.channel, s.in_aligned, at.valid),
           q);
#pragma unroll
    for (int j = 0; j < kPairVector; ++j) {
      q[j] = pairs.pair(j).decode(q[j], (bits >> j & 1) != 0);
    }
    store_raw(values + (at.batch * s.length + token) * s.channels + at.channel, pack<T, kPairVector>(q),
              s.out_aligned, at.valid);
  }
}

Shape shape_of_call(const Tensor& in) {
  Shape s{in.size(1), in.size(2), in.stride(0), in.stride(1)};
  s.token_tiles = static_cast<unsigned>(ceil_div(s.length, kListTokens));
  s.channel_tiles = static_cast<unsigned>(ceil_div(s.channels, kListChannels));
  s.batch = static_cast<unsigned>(in.size(0));
  s.out_aligned = s.channels % kPairVector == 0;
  return s;
}

int64_t tiles_of(const Shape& s) { return static_cast<int64_t>(s.token_tiles) * s.channel_tiles * s.batch; }

Tensor encode_pair(const Tensor& x, const Tensor& code, const Tensor& mask, const OptionalTensor& outliers) {
  const SelectorView view = checked_encode_pair(x, code, mask, outliers);
  Tensor codes = torch::stable::new_empty(x, x.sizes(), ScalarType::Char);
  if (x.numel() == 0) {
    return codes;
  }
  const OnDevice device(x);
  Shape s = shape_of_call(x);
  const unsigned grid = grid_of("encode_pair", ceil_div(tiles_of(s), kThreads / kSegment));
  dispatch_floating(x.scalar_type(), [&](auto type) {
    using T = typename decltype(type)::type;
    s.in_aligned = is_aligned(x, Raw<T, kPairVector>::kAlignment);
    dispatch_selectors(view, [&](auto selectors) {
      encode<T><<<grid, kThreads, 0, device.stream>>>(static_cast<const T*>(x.data_ptr()),
                                                      static_cast<int8_t*>(codes.data_ptr()), view_of(code),
                                                      s, selectors);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return codes;
}

Tensor decode_pair(const Tensor& codes, const Tensor& code, const Tensor& mask,
                   const OptionalTensor& outliers, ScalarType dtype) {
  const SelectorView view = checked_decode_pair(codes, code, mask, outliers, dtype);
  Tensor values = torch::stable::new_empty(codes, codes.sizes(), dtype);
  if (codes.numel() == 0) {
    return values;
  }
  const OnDevice device(codes);
  Shape s = shape_of_call(codes);
  s.in_aligned = is_aligned(codes, kPairVector);
  const unsigned grid = grid_of("decode_pair", tiles_of(s));
  dispatch_floating(dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    dispatch_selectors(view, [&](auto selectors) {
      decode<T><<<grid, kThreads, 0, device.stream>>>(static_cast<const int8_t*>(codes.data_ptr()),
                                                      static_cast<T*>(values.data_ptr()), view_of(code), s,
                                                      selectors);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    });
  });
  return values;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("encode_pair", TORCH_BOX(&dualscale::encode_pair));
  m.impl("decode_pair", TORCH_BOX(&dualscale::decode_pair));
}
