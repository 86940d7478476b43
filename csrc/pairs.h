// Where the selectors of codes with two scales lie, for host and device: the same text as
// dualscale_mamba/formats/pair.py, and what operators refuse of them.
//
// mask      uint8 (batch, length, ceil(channels / 8)): bit i of byte j is that of channel 8 j + i.
// outliers  int16 (batch, ceil(length / 32), ceil(channels / 64), 1 + capacity): how many outliers a tile of
// 32
//           tokens and 64 channels has, then their indices 64 * token + channel in it, ascending. Where there
//           are more than the capacity, the tile's bits stand in the mask, which is otherwise left alone.
#pragma once

#include <algorithm>

#include "checks.h"

namespace dualscale {

constexpr int kListTokens = 32;
constexpr int kListChannels = 64;

// Both as kernels take them. `mask` is null where codes stand alone, `lists` where the mask holds all.
struct SelectorView {
  uint8_t* mask = nullptr;
  int16_t* lists = nullptr;
  int64_t length = 0;
  int row_bytes = 0;    // of the mask
  int list_tokens = 0;  // tiles along a sequence
  int list_channels = 0;
  int capacity = 0;

  DUALSCALE_HOST_DEVICE uint8_t* row(int64_t batch, int64_t token) const {
    return mask + (batch * length + token) * row_bytes;
  }

  // The list of a tile; the first element is the number of its outliers.
  DUALSCALE_HOST_DEVICE int16_t* list(int64_t batch, int64_t token_tile, int64_t channel_tile) const {
    const int64_t tile = (batch * list_tokens + token_tile) * list_channels + channel_tile;
    return lists + tile * (1 + capacity);
  }
};

inline int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The selectors of an activation (batch, length, channels), or of one token with length 1. They are given
// exactly where the code is a pair.
inline SelectorView checked_selectors(const char* op, const char* mask_name, const char* lists_name,
                                      const OptionalTensor& code, const OptionalTensor& mask,
                                      const OptionalTensor& lists, int64_t length, int64_t channels,
                                      const Tensor& first) {
  if (!is_pair(code)) {
    if (mask || lists) {
      refuse({op, mask ? mask_name : lists_name}, "is given", "none: the code is not a pair");
    }
    return {};
  }
  if (!mask) {
    refuse({op, mask_name}, "is missing", "uint8 (batch, length, bytes) with a code of 5 columns");
  }
  SelectorView view;
  view.length = length;
  view.row_bytes = static_cast<int>(ceil_of(channels, 8));
  check_type({op, mask_name}, *mask, ScalarType::Byte);
  check_shape({op, mask_name}, *mask, {first.size(0), length, view.row_bytes});
  const auto check = [&](const char* name, const Tensor& tensor) {
    check_same_device({op, name}, tensor, first);
    if (!tensor.is_contiguous()) {
      refuse({op, name}, "is not contiguous", "contiguous memory");
    }
  };
  check(mask_name, *mask);
  view.mask = static_cast<uint8_t*>(mask->data_ptr());
  if (lists) {
    view.list_tokens = static_cast<int>(ceil_of(length, kListTokens));
    view.list_channels = static_cast<int>(ceil_of(channels, kListChannels));
    check_type({op, lists_name}, *lists, ScalarType::Short);
    check_dim({op, lists_name}, *lists, 4);
    check_shape({op, lists_name}, *lists,
                {first.size(0), view.list_tokens, view.list_channels, std::max<int64_t>(lists->size(3), 1)});
    check(lists_name, *lists);
    view.capacity = static_cast<int>(lists->size(3)) - 1;
    view.lists = static_cast<int16_t*>(lists->data_ptr());
  }
  return view;
}

inline void check_pair(const Argument& argument, const Tensor& code, int64_t channels, const Tensor& first) {
  check_code(argument, code, channels, Codes::kAnyOrPair, first);
  if (!is_pair(code)) {
    refuse(argument, "has shape " + shape_of(code), std::to_string(kPairWidth) + " columns");
  }
}

// All of encode_pair's arguments.
inline SelectorView checked_encode_pair(const Tensor& x, const Tensor& code, const Tensor& mask,
                                        const OptionalTensor& lists) {
  const char* op = "encode_pair";
  check_dim({op, "x"}, x, 3);
  check_channels({op, "x"}, x);
  check_floating({op, "x"}, x);
  check_last_stride({op, "x"}, x);
  check_pair({op, "code"}, code, x.size(2), x);
  return checked_selectors(op, "mask", "outliers", code, mask, lists, x.size(1), x.size(2), x);
}

// All of decode_pair's arguments.
inline SelectorView checked_decode_pair(const Tensor& codes, const Tensor& code, const Tensor& mask,
                                        const OptionalTensor& lists, ScalarType dtype) {
  const char* op = "decode_pair";
  check_dim({op, "codes"}, codes, 3);
  check_channels({op, "codes"}, codes);
  check_type({op, "codes"}, codes, ScalarType::Char);
  check_last_stride({op, "codes"}, codes);
  check_pair({op, "code"}, code, codes.size(2), codes);
  check_result_type({op, "dtype"}, dtype);
  return checked_selectors(op, "mask", "outliers", code, mask, lists, codes.size(1), codes.size(2), codes);
}

}  // namespace dualscale
