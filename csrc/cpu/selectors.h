// Selectors of codes with two scales as one mask, whether they are stored so or as lists.
#pragma once

#include <vector>

#include "pairs.h"

namespace dualscale::cpu {

// What to read: the stored mask, or one made of the lists.
class SelectorSource {
 public:
  SelectorSource(const SelectorView& view, int64_t batch);

  // The bytes of a token; null where codes stand alone.
  const uint8_t* row(int64_t b, int64_t t) const {
    return bits_ == nullptr ? nullptr : bits_ + (b * view_.length + t) * view_.row_bytes;
  }

 private:
  SelectorView view_;
  std::vector<uint8_t> made_;
  const uint8_t* bits_;
};

// Where to write: the stored mask, or one of which `finish` makes the lists.
class SelectorSink {
 public:
  SelectorSink(const SelectorView& view, int64_t batch);

  uint8_t* row(int64_t b, int64_t t) {
    return bits_ == nullptr ? nullptr : bits_ + (b * view_.length + t) * view_.row_bytes;
  }

  void finish();

 private:
  void write_list(int64_t b, int64_t token_tile, int64_t channel_tile);

  SelectorView view_;
  int64_t batch_;
  std::vector<uint8_t> made_;
  uint8_t* bits_;
};

}  // namespace dualscale::cpu
