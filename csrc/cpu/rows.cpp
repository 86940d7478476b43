// One switch a row: every type and family of codes is compiled here, once.
#include "cpu/rows.h"

#include <algorithm>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "cpu/vector_math.h"

namespace dualscale::cpu {
namespace {

constexpr int64_t kShortestRun = 8;  // of channels with one code that is worth a loop of its own

void widen(const Half* in, float* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i))));
  }
#endif
  for (; i < n; ++i) {
    out[i] = static_cast<float>(in[i]);
  }
}

void narrow(const float* in, Half* out, int64_t n) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= n; i += 8) {
    const __m128i half =
        _mm256_cvtps_ph(_mm256_loadu_ps(in + i), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), half);
  }
#endif
  for (; i < n; ++i) {
    out[i] = Half(in[i]);
  }
}

void widen(const BFloat16* in, float* out, int64_t n) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(in);
#pragma omp simd simdlen(16)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = float_of(static_cast<uint32_t>(bits[i]) << 16);
  }
}

void narrow(const float* in, BFloat16* out, int64_t n) {
  uint16_t* result = reinterpret_cast<uint16_t*>(out);
#pragma omp simd simdlen(16)
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = bits_of(in[i]);
    const uint32_t nearest_even = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    result[i] = static_cast<uint16_t>(in[i] == in[i] ? nearest_even : 0x7fc0u);
  }
}

// Codes to values for channels [c, c + n). Family is Knee or Table.
template <typename Family>
void decode_row(const int8_t* in, const float* code, int64_t width, bool per_channel, int64_t c, int64_t n,
                float* out) {
  if (per_channel) {
    const float* rows = code + c * width;
#pragma omp simd simdlen(16)
    for (int64_t i = 0; i < n; ++i) {
      out[i] = Family::load(rows + i * width).decode(static_cast<float>(in[i]));
    }
    return;
  }
  const Family family = Family::load(code);
#pragma omp simd simdlen(16)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = family.decode(static_cast<float>(in[i]));
  }
}

template <typename Family>
void encode_run(const float* in, const float* code, int64_t n, int8_t* out) {
  const Family family = Family::load(code);
#pragma omp simd simdlen(16)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<int8_t>(static_cast<int32_t>(family.encode(in[i])));
  }
}

template <typename Family>
void encode_channels(const float* in, const float* rows, int64_t width, int64_t n, int8_t* out) {
#pragma omp simd simdlen(16)
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<int8_t>(static_cast<int32_t>(Family::load(rows + i * width).encode(in[i])));
  }
}

// Values to codes for channels [c, c + n). `run_ends` is empty with one code for all channels.
template <typename Family>
void encode_row(const float* in, const CodeView& code, const std::vector<int64_t>& run_ends, int64_t c,
                int64_t n, int8_t* out) {
  if (run_ends.empty()) {
    encode_run<Family>(in, code.rows, n, out);
    return;
  }
  for (int64_t i = 0; i < n;) {
    const float* const rows = code.rows + (c + i) * code.width;
    int64_t end = std::min(run_ends[c + i] - c, n);
    if (end - i >= kShortestRun) {
      encode_run<Family>(in + i, rows, end - i, out + i);
    } else {
      while (end < n && std::min(run_ends[c + end] - c, n) - end < kShortestRun) {
        end = std::min(run_ends[c + end] - c, n);
      }
      encode_channels<Family>(in + i, rows, code.width, end - i, out + i);
    }
    i = end;
  }
}

}  // namespace

const float* Source::read(int64_t offset, int64_t c, int64_t n, float* scratch) const {
  const char* in = data_ + (offset + c) * size_;
  switch (type_) {
    case ScalarType::Float:
      return reinterpret_cast<const float*>(in);
    case ScalarType::Half:
      widen(reinterpret_cast<const Half*>(in), scratch, n);
      return scratch;
    case ScalarType::BFloat16:
      widen(reinterpret_cast<const BFloat16*>(in), scratch, n);
      return scratch;
    default:
      break;
  }
  const int8_t* codes = reinterpret_cast<const int8_t*>(in);
  if (code_.width == kKneeWidth) {
    decode_row<Knee>(codes, code_.rows, code_.width, code_.per_channel, c, n, scratch);
  } else {
    decode_row<Table>(codes, code_.rows, code_.width, code_.per_channel, c, n, scratch);
  }
  return scratch;
}

const float* Source::read_pair(int64_t offset, int64_t c, int64_t n, const uint8_t* bits,
                               float* scratch) const {
  const int8_t* in = reinterpret_cast<const int8_t*>(data_) + offset + c;
  const float* rows = code_.rows + (code_.per_channel ? c * kPairWidth : 0);
  const int64_t step = code_.per_channel ? kPairWidth : 0;
  for (int64_t i = 0; i < n; ++i) {
    const bool is_outlier = (bits[(c + i) / 8] >> (c + i) % 8 & 1) != 0;
    scratch[i] = Pair::load(rows + i * step).decode(static_cast<float>(in[i]), is_outlier);
  }
  return scratch;
}

std::vector<int64_t> Sink::ends_of_runs(const CodeView& code, int64_t channels) {
  std::vector<int64_t> ends(static_cast<size_t>(code.per_channel ? channels : 0));
  const size_t bytes = static_cast<size_t>(code.width) * sizeof(float);
  for (int64_t c = static_cast<int64_t>(ends.size()) - 1; c >= 0; --c) {
    const float* const row = code.rows + c * code.width;
    const bool goes_on = c + 1 < channels && std::memcmp(row, row + code.width, bytes) == 0;
    ends[c] = goes_on ? ends[c + 1] : c + 1;
  }
  return ends;
}

void Sink::write(const float* in, int64_t offset, int64_t c, int64_t n) const {
  char* out = data_ + (offset + c) * size_;
  switch (type_) {
    case ScalarType::Float:
      std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
      return;
    case ScalarType::Half:
      narrow(in, reinterpret_cast<Half*>(out), n);
      return;
    case ScalarType::BFloat16:
      narrow(in, reinterpret_cast<BFloat16*>(out), n);
      return;
    default:
      break;
  }
  int8_t* codes = reinterpret_cast<int8_t*>(out);
  if (code_.width == kKneeWidth) {
    encode_row<Knee>(in, code_, run_ends_, c, n, codes);
  } else {
    encode_row<Table>(in, code_, run_ends_, c, n, codes);
  }
}

void Sink::write_pair(const float* in, int64_t offset, int64_t c, int64_t n, uint8_t* bits) const {
  int8_t* out = reinterpret_cast<int8_t*>(data_) + offset + c;
  const float* rows = code_.rows + (code_.per_channel ? c * kPairWidth : 0);
  const int64_t step = code_.per_channel ? kPairWidth : 0;
  for (int64_t first = 0; first < n; first += 8) {
    unsigned eight = 0;
    for (int64_t i = first; i < std::min(n, first + 8); ++i) {
      const Pair pair = Pair::load(rows + i * step);
      const bool is_outlier = pair.is_outlier(in[i]);
      out[i] = static_cast<int8_t>(static_cast<int32_t>(pair.encode(in[i], is_outlier)));
      eight |= static_cast<unsigned>(is_outlier) << (i - first);
    }
    bits[(c + first) / 8] = static_cast<uint8_t>(eight);
  }
}

}  // namespace dualscale::cpu
