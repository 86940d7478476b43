// Results of the convolution that are codes of two scales, and where their selectors go.
#pragma once

#include "conv.cuh"
#include "pairs.cuh"

namespace dualscale {

// Codes by a saturating multiply-add, as KneeResult: the selector is another only next to the limit.
template <int kCodes>
struct PairResult {
  using Out = int8_t;
  static constexpr bool kMutesNan = true;
  float inner[kCodes], outer[kCodes], limit[kCodes];

  // `valid` may be below 1: then the last channel's code stands in.
  __device__ PairResult(const CodeView& code, const float*, int64_t channel, int valid) {
#pragma unroll
    for (int i = 0; i < kCodes; ++i) {
      const Pair pair = Pair::load(code.rows + (kCodes == 1 ? 0 : channel + min(i, valid - 1)) * kPairWidth);
      constexpr float kUnit = -kLn2 / (2.0f * kPairMax);  // of the range, to a fraction of [-127, 127]
      inner[i] = pair.inv_inner * kUnit;
      outer[i] = pair.inv_outer * kUnit;
      limit[i] = pair.limit * (1.0f / kLn2);
    }
  }

  // Bit i of `bits` becomes the selector of the i-th channel.
  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const float (&s)[kConvVector],
                                                             uint32_t& bits) const {
    uint32_t codes[kConvVector];
    bits = 0;
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      const int c = kCodes == 1 ? 0 : i;
      const bool is_outlier = fabsf(s[i]) >= limit[c];
      const float fraction = fma_saturated(s[i], is_outlier ? outer[c] : inner[c], 0.5f);
      codes[i] = __float_as_uint(fmaf(fraction, 2.0f * kPairMax, kIntegerBias - kPairMax));
      bits |= is_outlier ? 1u << i : 0u;
    }
    Raw<int8_t, kConvVector> raw;
    raw.word[0] = pack_bytes(codes[0], codes[1], codes[2], codes[3]);
    raw.word[1] = pack_bytes(codes[4], codes[5], codes[6], codes[7]);
    return raw;
  }
};

// Calls f with the type that makes the result.
template <class F>
void dispatch_pairs(const CodeView& code, F&& f) {
  code.per_channel ? f(Type<PairResult<kConvVector>>{}) : f(Type<PairResult<1>>{});
}

// Where the selectors of a thread's rows go.
template <class Selectors>
struct SelectorSink {
  template <class... Arguments>
  __device__ SelectorSink(const Arguments&...) {}
};

template <>
struct SelectorSink<MaskSelectors> {
  uint8_t* at;
  int row_bytes;

  template <class Kept>
  __device__ SelectorSink(const MaskSelectors& selectors, Kept&, int64_t batch, int64_t token,
                          int64_t channel, int64_t, int)
      : at(selectors.view.row(batch, token) + channel / kConvVector), row_bytes(selectors.view.row_bytes) {}

  template <class Result>
  __device__ __forceinline__ void row(int8_t* out, const Result& result, const float (&y)[kConvVector], int,
                                      bool exists, bool aligned, int valid) {
    if (exists) {
      uint32_t bits;
      store_raw(out, result.result(y, bits), aligned, valid);
      *at = static_cast<uint8_t>(bits);
    }
    at += row_bytes;
  }

  __device__ __forceinline__ void close() const {}
};

template <>
struct SelectorSink<ListSelectors> {
  ListWriter writer;
  int64_t first;
  int left, done = 0;
  uint32_t bits = 0;

  // `left` tokens from `first` on, a multiple of a tile's, exist.
  template <class Kept>
  __device__ SelectorSink(const ListSelectors& selectors, Kept& kept, int64_t batch, int64_t first,
                          int64_t channel, int64_t channels, int left)
      : writer(selectors.view, &kept[0][threadIdx.x], blockDim.x, batch, channel, channels),
        first(first),
        left(left) {
    writer.begin(first);
  }

  template <class Result>
  __device__ __forceinline__ void row(int8_t* out, const Result& result, const float (&y)[kConvVector], int r,
                                      bool exists, bool aligned, int valid) {
    uint32_t own;
    const Raw<int8_t, kConvVector> codes = result.result(y, own);
    if (exists) {
      store_raw(out, codes, aligned, valid);
      bits |= own << (8 * r);
    }
  }

  // Ends a turn of four rows.
  __device__ __forceinline__ void turn() {
    writer.take(bits, done % kListTokens);
    bits = 0;
    done += kTokensAtOnce;
    if (done % kListTokens == 0) {
      writer.end(first + done - kListTokens, min(left - (done - kListTokens), kListTokens));
      if (done < left) {
        writer.begin(first + done);
      }
    }
  }

  // Ends what a turn has begun: a tile of fewer tokens.
  __device__ __forceinline__ void close() {
    writer.take(bits, 0);
    writer.end(first, left);
  }
};

}  // namespace dualscale
