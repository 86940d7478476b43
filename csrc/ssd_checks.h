// What ssd_scan and ssd_state_update refuse, and the sizes that follow from arguments that are not refused.
//
// Shared by the CPU and CUDA sources, as checks.h.
#pragma once

#include <cmath>

#include "checks.h"

namespace dualscale {

// Of a head (channels, states) at most: its state is kept near the arithmetic.
constexpr int64_t kMaxSsdSize = 256;

// The arguments that a sequence and one token have in common.
struct SsdArguments {
  const char* op;
  const Tensor& x;
  const OptionalTensor& x_code;
  const Tensor& delta;
  const OptionalTensor& delta_code;
  const Tensor& A;
  const Tensor& B;
  const OptionalTensor& B_code;
  const Tensor& C;
  const OptionalTensor& C_code;
  const OptionalTensor& D;
  const OptionalTensor& delta_bias;
  double delta_min, delta_max;
  int64_t groups;
};

// length is 1 for one token; states are those of one channel. Only batch and length may be 0.
struct SsdSizes {
  int64_t batch, length, heads, head_dim, groups, states;

  int64_t channels() const { return heads * head_dim; }
  int64_t heads_of_a_group() const { return heads / groups; }
};

// `parts` divides the channels of an activation into equal parts of 1 to kMaxSsdSize; returns their size.
inline int64_t checked_parts(const Argument& argument, const Tensor& tensor, int64_t parts,
                             const char* of_what) {
  const int64_t channels = tensor.size(tensor.dim() - 1);
  if (channels < 1 || channels % parts != 0) {
    refuse(argument, "has " + std::to_string(channels) + " channels",
           "a multiple of " + std::to_string(parts) + ", the number of " + of_what);
  }
  const int64_t size = channels / parts;
  if (size > kMaxSsdSize) {
    refuse(argument,
           "has " + std::to_string(size) + " channels in each of " + std::to_string(parts) + " " + of_what,
           "1 to " + std::to_string(kMaxSsdSize));
  }
  return size;
}

inline void check_delta_limits(const char* op, double low, double high) {
  if (std::isnan(low)) {
    refuse({op, "delta_min"}, "is NaN", "a number");
  }
  if (std::isnan(high) || high < low) {
    std::ostringstream wrong, allowed;
    wrong << "is " << high;
    allowed << "delta_min (" << low << ") or more";
    refuse({op, "delta_max"}, wrong.str(), allowed.str());
  }
}

// All that a sequence (`dims` 3) and one token (`dims` 2) have in common.
inline SsdSizes checked_ssd(const SsdArguments& in, int64_t dims, ScalarType dtype) {
  const char* op = in.op;
  const Tensor& x = in.x;
  check_dim({op, "x"}, x, dims);
  check_channels({op, "x"}, x);
  check_activation({op, "x"}, x, in.x_code, Codes::kAny, x);
  check_dim({op, "A"}, in.A, 1);
  const int64_t heads = in.A.size(0);
  if (heads < 1) {
    refuse({op, "A"}, "has no heads", "one head or more");
  }
  check_parameter({op, "A"}, in.A, {heads}, x);
  if (in.groups < 1 || heads % in.groups != 0) {
    refuse({op, "groups"}, "is " + std::to_string(in.groups),
           "a divisor of " + std::to_string(heads) + ", the number of heads");
  }
  const auto check = [&](const char* name, const Tensor& tensor, const OptionalTensor& code, int64_t size,
                         Codes allowed) {
    check_beside({op, name}, tensor, x, size);
    check_activation({op, name}, tensor, code, allowed, x);
  };
  check("delta", in.delta, in.delta_code, heads, Codes::kKneeOneRow);
  check("B", in.B, in.B_code, -1, Codes::kAny);
  const int64_t head_dim = checked_parts({op, "x"}, x, heads, "heads");
  const int64_t states = checked_parts({op, "B"}, in.B, in.groups, "groups");
  check("C", in.C, in.C_code, in.groups * states, Codes::kAny);
  check_parameter({op, "D"}, in.D, {heads}, x);
  check_parameter({op, "delta_bias"}, in.delta_bias, {heads}, x);
  check_delta_limits(op, in.delta_min, in.delta_max);
  check_result_type({op, "dtype"}, dtype);
  return {x.size(0), dims == 3 ? x.size(1) : 1, heads, head_dim, in.groups, states};
}

inline void check_ssd_state_type(const Argument& argument, ScalarType type) {
  if (type != ScalarType::Float && type != ScalarType::Half) {
    refuse(argument, std::string("is ") + name_of(type), "float32 or float16");
  }
}

// A state: any strides but the last.
inline void check_ssd_state(const Argument& argument, const Tensor& state, const SsdSizes& sizes,
                            const Tensor& first) {
  check_ssd_state_type(argument, state.scalar_type());
  check_shape(argument, state, {sizes.batch, sizes.heads, sizes.head_dim, sizes.states});
  check_same_device(argument, state, first);
  check_last_stride(argument, state);
}

// All of ssd_scan's arguments.
inline SsdSizes checked_ssd_scan(const SsdArguments& in, const OptionalTensor& initial, int64_t chunk,
                                 ScalarType state_dtype, ScalarType dtype) {
  const SsdSizes sizes = checked_ssd(in, 3, dtype);
  if (initial) {
    check_ssd_state({in.op, "initial"}, *initial, sizes, in.x);
  }
  if (chunk < 1) {
    refuse({in.op, "chunk"}, "is " + std::to_string(chunk), "1 or more");
  }
  check_ssd_state_type({in.op, "state_dtype"}, state_dtype);
  return sizes;
}

// All of ssd_state_update's arguments.
inline SsdSizes checked_ssd_state_update(const SsdArguments& in, const Tensor& state, ScalarType dtype) {
  const SsdSizes sizes = checked_ssd(in, 2, dtype);
  check_ssd_state({in.op, "state"}, state, sizes, in.x);
  return sizes;
}

}  // namespace dualscale
