// Results of the convolution that are codes of two scales, and where their selectors go.
#pragma once

#include "conv_results.cuh"
#include "pairs.cuh"

namespace dualscale {

// Codes and selectors, as KneeResult: another code or selector only next to a tie or the limit.
template <int kCodes>
struct PairResult {
  using Out = int8_t;
  static constexpr bool kFinite = true;
  float inner[kCodes], outer[kCodes], limit[kCodes];

  // `valid` may be below 1: then the last channel's code stands in.
  __device__ PairResult(const CodeView& code, const float*, int64_t channel, int valid) {
#pragma unroll
    for (int i = 0; i < kCodes; ++i) {
      const Pair pair = Pair::load(code.rows + (kCodes == 1 ? 0 : channel + min(i, valid - 1)) * kPairWidth);
      inner[i] = pair.inv_inner;
      outer[i] = pair.inv_outer;
      limit[i] = pair.limit;
    }
  }

  __device__ __forceinline__ SiluFactor factor(int) const { return SiluFactor::plain(); }
  __device__ __forceinline__ bool is_lean() const { return true; }

  // Bit i of `bits` becomes the selector of the i-th channel.
  template <bool kNan>
  __device__ __forceinline__ Raw<int8_t, kConvVector> result(const SiluTerm (&term)[kConvVector],
                                                             uint32_t& bits) const {
    float q[kConvVector];
    bits = 0;
#pragma unroll
    for (int i = 0; i < kConvVector; ++i) {
      const int c = kCodes == 1 ? 0 : i;
      float y = term[i].numerator * term[i].reciprocal;
      if constexpr (kNan) {
        y = y == y ? y : 0.0f;
      }
      const bool is_outlier = fabsf(y) >= limit[c];
      q[i] = fmaxf(y * (is_outlier ? outer[c] : inner[c]), -kPairMax);
      bits |= is_outlier ? 1u << i : 0u;
    }
    return pack_nearest(q);
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

  __device__ __forceinline__ void row(int8_t* out, const Raw<int8_t, kConvVector>& codes, uint32_t bits, int,
                                      bool exists, bool aligned, int valid) {
    if (exists) {
      store_raw(out, codes, aligned, valid);
      *at = static_cast<uint8_t>(bits);
    }
    at += row_bytes;
  }

  __device__ __forceinline__ void turn() const {}

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

  __device__ __forceinline__ void row(int8_t* out, const Raw<int8_t, kConvVector>& codes, uint32_t own, int r,
                                      bool exists, bool aligned, int valid) {
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
