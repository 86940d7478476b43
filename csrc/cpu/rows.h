// Reading and writing one row of an activation, whatever its type and code.
//
// The operators compute on fp32 rows that lie in the first-level cache; types and codes are handled here, one
// switch a row, so that no operator is instantiated once a type. Loops over channels vectorise: channels are
// the last dimension of everything.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "checks.h"
#include "cpu/vector_math.h"

namespace dualscale::cpu {

// fp32 values that fit in the first-level cache beside what an operator keeps there.
constexpr int64_t kBlock = 512;

inline void widen(const Half* in, float* out, int64_t n) {
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

inline void narrow(const float* in, Half* out, int64_t n) {
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

inline void widen(const BFloat16* in, float* out, int64_t n) {
  const uint16_t* bits = reinterpret_cast<const uint16_t*>(in);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = float_of(static_cast<uint32_t>(bits[i]) << 16);
  }
}

inline void narrow(const float* in, BFloat16* out, int64_t n) {
  uint16_t* result = reinterpret_cast<uint16_t*>(out);
#pragma omp simd
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
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] = Family::load(rows + i * width).decode(static_cast<float>(in[i]));
    }
    return;
  }
  const Family family = Family::load(code);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = family.decode(static_cast<float>(in[i]));
  }
}

template <typename Family>
void encode_row(const float* in, const float* code, int64_t width, bool per_channel, int64_t c, int64_t n,
                int8_t* out) {
  if (per_channel) {
    const float* rows = code + c * width;
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      out[i] = static_cast<int8_t>(static_cast<int32_t>(Family::load(rows + i * width).encode(in[i])));
    }
    return;
  }
  const Family family = Family::load(code);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    out[i] = static_cast<int8_t>(static_cast<int32_t>(family.encode(in[i])));
  }
}

// A code as the row functions want it; empty when there is none.
struct CodeView {
  const float* rows = nullptr;
  int64_t width = 0;
  bool per_channel = false;

  CodeView() = default;
  explicit CodeView(const OptionalTensor& code) {
    if (code) {
      rows = code->const_data_ptr<float>();
      width = code->size(1);
      per_channel = code->size(0) > 1;
    }
  }
};

// Where an operator reads an activation. Offsets count elements; c is the first channel.
class Source {
 public:
  Source(const Tensor& tensor, const OptionalTensor& code)
      : data_(static_cast<const char*>(tensor.const_data_ptr())),
        type_(tensor.scalar_type()),
        size_(static_cast<int64_t>(tensor.element_size())),
        code_(code) {}

  // n values as fp32: in place when they are fp32 already, otherwise in `scratch`.
  const float* read(int64_t offset, int64_t c, int64_t n, float* scratch) const {
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

 private:
  const char* data_;
  ScalarType type_;
  int64_t size_;
  CodeView code_;
};

// Where an operator writes its result.
class Sink {
 public:
  Sink(Tensor& tensor, const OptionalTensor& code)
      : data_(static_cast<char*>(tensor.mutable_data_ptr())),
        type_(tensor.scalar_type()),
        size_(static_cast<int64_t>(tensor.element_size())),
        code_(code) {}

  void write(const float* in, int64_t offset, int64_t c, int64_t n) const {
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
      encode_row<Knee>(in, code_.rows, code_.width, code_.per_channel, c, n, codes);
    } else {
      encode_row<Table>(in, code_.rows, code_.width, code_.per_channel, c, n, codes);
    }
  }

 private:
  char* data_;
  ScalarType type_;
  int64_t size_;
  CodeView code_;
};

// The offset of each row of a (..., C) tensor with arbitrary outer strides.
class RowOffsets {
 public:
  explicit RowOffsets(const Tensor& tensor) : outer_(tensor.dim() - 1) {
    STD_TORCH_CHECK(outer_ <= kMaxOuter, "an activation has at most ", kMaxOuter + 1, " dimensions");
    rows_ = 1;
    for (int64_t i = 0; i < outer_; ++i) {
      sizes_[i] = tensor.size(i);
      strides_[i] = tensor.stride(i);
      rows_ *= sizes_[i];
    }
  }

  int64_t rows() const { return rows_; }

  int64_t operator()(int64_t row) const {
    int64_t offset = 0;
    for (int64_t i = outer_ - 1; i >= 0; --i) {
      offset += row % sizes_[i] * strides_[i];
      row /= sizes_[i];
    }
    return offset;
  }

 private:
  static constexpr int64_t kMaxOuter = 7;
  int64_t outer_, rows_;
  int64_t sizes_[kMaxOuter], strides_[kMaxOuter];
};

// A contiguous result of the shape of `like`.
inline Tensor empty_of(const Tensor& like, ScalarType type) {
  return torch::stable::new_empty(like, like.sizes(), type);
}

}  // namespace dualscale::cpu
