// The kernel of causal_conv1d_encode: a thread owns eight adjacent channels and walks a chunk of the
// sequence. A row comes into the registers a turn of four before it is used, and leaves behind what it adds
// to the sums of the next three outputs, so that no window of inputs is kept.
#pragma once

#include "conv_pairs.cuh"
#include "residency.cuh"

namespace dualscale {

struct Sequence {
  int64_t length, batch_stride, row_stride, initial_batch_stride, initial_row_stride;
  unsigned vectors, chunks, batch;
  int chunk;  // rows of a thread, a multiple of kTurn
  bool x_aligned, initial_aligned, out_aligned;
};

// Blocks a multiprocessor for which a thread's registers are counted.
template <class T, class Result, class Selectors>
constexpr int conv_blocks() {
  const int fewer = (sizeof(Result) > 64 ? 2 : 0) + (sizeof(T) > 2 ? 1 : 0) +
                    (std::is_same_v<Result, TableResult> || Selectors::kLists ? 1 : 0);
  return resident_blocks(kConvBlocks - std::min(fewer, 2));
}

// Rows of a thread: as many as fill the chip a whole number of times, so that no part of it waits for the
// last blocks, and each as long as that allows, since what comes before a thread's first row costs as much as
// some five rows.
inline int chunk_of(int64_t length, int64_t columns, int64_t places) {
  const int64_t times = ceil_div(columns * length, places * kMostRows);
  const int64_t chunks = std::max<int64_t>(places * times / columns, 1);
  const int64_t rows = ceil_div(ceil_div(length, chunks), kTurn) * kTurn;
  return static_cast<int>(std::max<int64_t>(rows, kLeastRows));
}

// kFast: four taps, whole vectors, aligned rows and parameters; then whole turns run without a branch, so
// that the chains of all their elements overlap. All other turns know how many rows are left.
//
// With lists (Selectors) a segment of eight threads has 64 channels, whether they exist or not, and a chunk
// whole tiles; all 32 threads of a warp take the same turns to the end, those beyond the batch with no row.
template <class T, class Result, bool kFast, class Selectors = NoSelectors>
__global__ void __launch_bounds__(kConvThreads, (conv_blocks<T, Result, Selectors>()))
    convolve(const T* x, const T* initial, typename Result::Out* out, ConvParameters p, Sequence s,
             Selectors selectors) {
  __shared__ float table[std::is_same_v<Result, TableResult> ? kTableWidth : 1];
  const unsigned item = blockIdx.x * kConvThreads + threadIdx.x;
  const int64_t channel = static_cast<int64_t>(item % s.vectors) * kConvVector;
  const int valid =
      kFast ? kConvVector : static_cast<int>(min(static_cast<int64_t>(kConvVector), p.channels - channel));
  if (item < s.vectors) {
    prefetch_parameters(p, channel, valid);
  }
  await_earlier();
  admit_later();
  load_shared_table<Result>(p.code, table);
  // Threads beyond the batch have no row, and go along where others wait for them.
  const int64_t first = static_cast<int64_t>(item / s.vectors % s.chunks) * s.chunk;
  const int64_t wanted = item / s.vectors / s.chunks;
  const int64_t batch = min(wanted, static_cast<int64_t>(s.batch) - 1);
  const int left =
      wanted < s.batch ? static_cast<int>(min(static_cast<int64_t>(s.chunk), s.length - first)) : 0;
  const bool x_aligned = kFast || s.x_aligned, out_aligned = kFast || s.out_aligned;
  const T* row = x + batch * s.batch_stride + first * s.row_stride + channel;
  out += (batch * s.length + first) * p.channels + channel;

  // The rows before the chunk, of which the first in this count is needed for four taps alone: of the
  // sequence, of the initial state, or none.
  static_assert(kTurn >= kMaxTaps - 1, "all chunks but the first have them in the sequence");
  const T* before = row - (kMaxTaps - 1) * s.row_stride;
  int64_t before_stride = s.row_stride;
  int missing = 0;
  if (first == 0) {
    missing = initial == nullptr ? kMaxTaps - 1 : kMaxTaps - p.taps;
    before_stride = s.initial_row_stride;
    before = initial + batch * s.initial_batch_stride + channel - (kMaxTaps - p.taps) * before_stride;
  }
  // All that is read first is on its way before the first use.
  Raw<T, kConvVector> next[kTurn], earlier[kMaxTaps - 1];
  const auto fetch = [&](int rows) {
#pragma unroll
    for (int r = 0; r < kTurn; ++r) {
      if (r < rows) {
        next[r] = load_raw<T, kConvVector>(row, x_aligned, valid);
      }
      row += s.row_stride;
    }
  };
  fetch(left);
#pragma unroll
  for (int k = 0; k < kMaxTaps - 1; ++k) {
    if (k >= missing) {
      earlier[k] = load_raw<T, kConvVector>(before + k * before_stride,
                                            kFast || (s.x_aligned && s.initial_aligned), valid);
    }
  }
  __shared__ WeightExchange exchange[kFast ? kConvThreads / 32 : 1];
  const Convolution<T, kFast> conv(p, channel, valid, Result::kFinite,
                                   &exchange[kFast ? threadIdx.x / 32 : 0]);
  const Result result(p.code, table, channel, valid);
  ConvSums sums = conv.start();
  const auto feed_earlier = [&](int from) {
#pragma unroll
    for (int k = 0; k < kMaxTaps - 1; ++k) {
      if (k >= from) {
        float value[kConvVector], unused[kConvVector];
        conv.template values<false>(earlier[k], value);
        conv.feed(sums, value, unused);
      }
    }
  };
  if (missing == 0) {  // without branches between the rows, sums that no output needs are left out
    feed_earlier(0);
  } else if (!kFast) {
    feed_earlier(missing);
  }

  [[maybe_unused]] __shared__ uint32_t kept[Selectors::kLists ? kTileWords : 1][kConvThreads];
  [[maybe_unused]] SelectorSink<Selectors> sink(selectors, kept, batch, first, channel, p.channels, left);
  // Row r of a turn, which makes room for the row that is to have its place.
  const auto finish = [&](auto lean, int r, bool exists, bool has_next) {
    constexpr bool kLean = decltype(lean)::value;
    float value[kConvVector], sum[kConvVector];
    SiluTerm term[kConvVector];
    conv.template values<kLean>(next[r], value);
    if (has_next) {
      next[r] = load_raw<T, kConvVector>(row, x_aligned, valid);
    }
    row += s.row_stride;
    conv.feed(sums, value, sum);
    silu_terms<kPairsReciprocals<T, Result>>(sum, result, term);
    if constexpr (Selectors::kPairs) {
      uint32_t bits;
      const auto codes = result.template result<kMayBeNan<T>>(term, bits);
      sink.row(out, codes, bits, r, exists, out_aligned, valid);
    } else if (exists) {
      store_raw(out, result.template result<kLean, kMayBeNan<T>>(term), out_aligned, valid);
    }
    out += p.channels;
  };
  int done = 0;
  if (kFast && conv.is_straight && result.is_lean()) {
    int whole = left - left % kTurn;
    if constexpr (Selectors::kLists) {
      whole = __all_sync(0xffffffffu, left == s.chunk) ? left : 0;
    }
    for (; done < whole; done += kTurn) {
      const bool has_next = done + kTurn < whole;
#pragma unroll
      for (int r = 0; r < kTurn; ++r) {
        finish(std::true_type{}, r, true, has_next);
      }
      if constexpr (Selectors::kPairs) {
        sink.turn();
      }
    }
    if (0 < done && done < left) {  // a turn of fewer rows, which has not been fetched
      row -= kTurn * s.row_stride;  // back to where the turn begins
      fetch(left - done);
    }
  }
  for (const int end = Selectors::kLists ? s.chunk : left; done < end; done += kTurn) {
#pragma unroll
    for (int r = 0; r < kTurn; ++r) {
      finish(std::false_type{}, r, done + r < left, done + kTurn + r < left);
    }
    if constexpr (Selectors::kPairs) {
      sink.turn();
    }
  }
}

constexpr const char* kConvName = "causal_conv1d_encode";

// All that a launch of it needs, once the type of the result is known.
struct SequenceCall {
  const Tensor& x;
  const OptionalTensor& initial;
  Tensor& out;
  const ConvParameters& p;
  Sequence s;
  cudaStream_t stream;
};

template <class T, class Result, class Selectors>
void launch_sequence(const SequenceCall& call, const Selectors& selectors) {
  const ConvParameters& p = call.p;
  Sequence s = call.s;
  const int device = call.x.get_device_index();
  const int64_t places =
      static_cast<int64_t>(multiprocessors(device)) * conv_blocks<T, Result, Selectors>() * kConvThreads;
  s.chunk = chunk_of(s.length, static_cast<int64_t>(s.vectors) * s.batch, places);
  if (Selectors::kLists) {  // whole tiles
    s.vectors = static_cast<unsigned>(ceil_div(s.vectors, kSegment) * kSegment);
    s.chunk = static_cast<int>(ceil_div(s.chunk, kListTokens)) * kListTokens;
  }
  s.chunks = static_cast<unsigned>(ceil_div(s.length, s.chunk));
  const int64_t items = static_cast<int64_t>(s.vectors) * s.chunks * s.batch;
  if (items > std::numeric_limits<int32_t>::max()) {
    refuse({kConvName, "x"}, "has shape " + shape_of(call.x), "at most 2^31 pieces of 8 channels and 8 rows");
  }
  s.x_aligned = is_aligned(call.x, Raw<T, kConvVector>::kAlignment);
  s.initial_aligned = is_aligned(call.initial, Raw<T, kConvVector>::kAlignment);
  s.out_aligned = p.channels % kConvVector == 0;
  const bool fast = p.taps == kMaxTaps && p.aligned && s.x_aligned && s.initial_aligned && s.out_aligned &&
                    s.vectors * static_cast<int64_t>(kConvVector) == p.channels;
  const auto kernel = fast ? convolve<T, Result, true, Selectors> : convolve<T, Result, false, Selectors>;
  launch_early(kernel, grid_of(kConvName, ceil_div(items, kConvThreads)), kConvThreads, 0, device,
               call.stream, static_cast<const T*>(call.x.data_ptr()), data<T>(call.initial),
               static_cast<typename Result::Out*>(call.out.data_ptr()), p, s, selectors);
}

// In conv_pairs.cu.
void launch_pairs(const SequenceCall& call, const SelectorView& view);

}  // namespace dualscale
