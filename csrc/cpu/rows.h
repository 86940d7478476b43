// Reading and writing one row of an activation, whatever its type and code.
//
// The operators compute on fp32 rows that lie in the first-level cache; types and codes are handled here, one
// switch a row, so that no operator is instantiated once a type. Loops over channels vectorise: channels are
// the last dimension of everything.
#pragma once

#include <cstdint>
#include <cstring>
#include <vector>

#include "checks.h"

namespace dualscale::cpu {

// fp32 values that fit in the first-level cache beside what an operator keeps there.
constexpr int64_t kBlock = 512;

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
  const float* read(int64_t offset, int64_t c, int64_t n, float* scratch) const;

  // n values of a code with two scales; bit i of byte j of `bits` is the selector of channel 8 j + i. c is a
  // multiple of 8.
  const float* read_pair(int64_t offset, int64_t c, int64_t n, const uint8_t* bits, float* scratch) const;

  // The same as `read`, in `to` in any case.
  void copy(int64_t offset, int64_t c, int64_t n, float* to) const {
    const float* const from = read(offset, c, n, to);
    if (from != to) {
      std::memcpy(to, from, static_cast<size_t>(n) * sizeof(float));
    }
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
        code_(code),
        run_ends_(ends_of_runs(code_, code ? code->size(0) : 0)) {}

  void write(const float* in, int64_t offset, int64_t c, int64_t n) const;

  // n codes of two scales, and their selectors as Source::read_pair wants them; those past the last channel
  // are 0.
  void write_pair(const float* in, int64_t offset, int64_t c, int64_t n, uint8_t* bits) const;

 private:
  static std::vector<int64_t> ends_of_runs(const CodeView& code, int64_t channels);

  char* data_;
  ScalarType type_;
  int64_t size_;
  CodeView code_;
  // Of each channel, with a code a channel, the first after it that has another one. Parts of a linear
  // layer's result each have one code, so that runs are long, and within one nothing need be read again.
  std::vector<int64_t> run_ends_;
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

// The values of a parameter, or null.
inline const float* pointer(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr<float>() : nullptr;
}

// A contiguous result of the shape of `like`.
inline Tensor empty_of(const Tensor& like, ScalarType type) {
  return torch::stable::new_empty(like, like.sizes(), type);
}

}  // namespace dualscale::cpu
