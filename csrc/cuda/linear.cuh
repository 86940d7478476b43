// What becomes of the sums of a product with quantized weights: the code of x is taken out, scales and bias
// go in, and the result is encoded if it has a code. Shared by the matrix product and the few-rows kernel.
#pragma once

#include "four.cuh"

namespace dualscale {

// Sums are exact integers where a column has one scale, and floating point where its groups have scales of
// their own.
struct Epilogue {
  const float* x_code;  // null: symmetric codes, scale 1; or values
  bool knee;
  const float* row_scale;
  const float* weight_scale;  // one a column; null where the sums have it
  const void* weight_sum;     // of codes, int32, or of decoded weights, fp32; null where x is values
  const float* bias;
  CodeView code;
  Kind kind;
  void* y;
  int64_t columns;
};

// The knee term of x needs sums over max(q - knee, 0), which must fit eight bits: below zero the knee is
// turned round, by max(q - knee, 0) = (q - knee) + max(knee - q, 0).
struct KneeTerm {
  int knee;
  bool turned;
  float gain;

  static __device__ __forceinline__ KneeTerm of(const float* x_code) {
    const Knee code = Knee::load(x_code);
    const float knee = fminf(fmaxf(code.knee, -kCodeSpaceLimit), kCodeSpaceLimit);
    return {__float2int_rn(knee), knee < 0.0f, code.gain};
  }

  // max(q - knee, 0), or max(knee - q, 0), of four codes.
  __device__ __forceinline__ uint32_t excess(uint32_t codes) const {
    const int clamped = min(max(knee, -128), 127);
    const uint32_t four = (clamped & 0xff) * 0x01010101u;
    return turned ? __vsub4(four, __vmins4(codes, four)) : __vsub4(__vmaxs4(codes, four), four);
  }

  // Of a group: the sum and the sum beyond the knee, but for what depends on the weights alone.
  __device__ __forceinline__ float joined(int sum, int beyond) const {
    const float plain = static_cast<float>(sum), over = static_cast<float>(beyond);
    return fmaf(gain, over, turned ? fmaf(gain, plain, plain) : plain);
  }
};

// The parameters of one output column whose sums are integers, ...
template <class Sum>
struct alignas(16) Column {
  float scale, bias, gain;
  int zero_sum;
  int64_t knee_sum;
  bool turned;

  struct Fetched {
    float scale, bias;
    int sum;
  };
  static __device__ __forceinline__ Fetched fetch(const Epilogue& e, int64_t n) {
    n = min(n, e.columns - 1);
    return {e.weight_scale[n], e.bias ? e.bias[n] : 0.0f,
            e.x_code ? static_cast<const int32_t*>(e.weight_sum)[n] : 0};
  }
  static __device__ __forceinline__ Column of(const Epilogue& e, const Fetched& f) {
    Column c{f.scale, f.bias, 0.0f, 0, 0, false};
    if (e.x_code == nullptr) {
      return c;
    }
    const Knee code = Knee::load(e.x_code);
    c.scale *= code.scale;
    c.zero_sum = __float2int_rn(code.zero) * f.sum;
    if (e.knee) {
      const KneeTerm term = KneeTerm::of(e.x_code);
      c.gain = term.gain;
      c.turned = term.turned;
      c.knee_sum = static_cast<int64_t>(term.knee) * f.sum;
    }
    return c;
  }

  template <bool kKnee>
  __device__ __forceinline__ float total(int sum, int beyond) const {
    const float plain = static_cast<float>(sum - zero_sum);
    if constexpr (!kKnee) {
      return plain;
    }
    return fmaf(gain, static_cast<float>(turned ? sum - knee_sum + beyond : beyond), plain);
  }
};

// ... and of one whose sums have the scales of their groups and the knee term already, or are those of
// values.
template <>
struct alignas(16) Column<float> {
  float scale, bias, offset;

  struct Fetched {
    float scale, bias, sum;
  };
  static __device__ __forceinline__ Fetched fetch(const Epilogue& e, int64_t n) {
    n = min(n, e.columns - 1);
    return {e.weight_scale ? e.weight_scale[n] : 1.0f, e.bias ? e.bias[n] : 0.0f,
            e.x_code ? static_cast<const float*>(e.weight_sum)[n] : 0.0f};
  }
  static __device__ __forceinline__ Column of(const Epilogue& e, const Fetched& f) {
    Column c{f.scale, f.bias, 0.0f};
    if (e.x_code == nullptr) {
      return c;
    }
    const Knee code = Knee::load(e.x_code);
    const KneeTerm term = KneeTerm::of(e.x_code);
    const float knee = e.knee && term.turned ? term.gain * static_cast<float>(term.knee) : 0.0f;
    c.scale *= code.scale;
    c.offset = (code.zero + knee) * f.sum;
    return c;
  }

  template <bool kKnee>
  __device__ __forceinline__ float total(float sum, float) const {
    return sum - offset;
  }
};

// The value of an output before it is encoded.
template <bool kKnee, class Sum>
__device__ __forceinline__ float finish(const Epilogue& e, const Column<Sum>& column, Sum sum, Sum beyond,
                                        int64_t row) {
  float y = column.template total<kKnee>(sum, beyond) * column.scale;
  if (e.row_scale != nullptr) {
    y *= e.row_scale[row];
  }
  return y + column.bias;
}

// The code of output column n, where the result has one.
__device__ __forceinline__ Knee output_knee(const Epilogue& e, int64_t n) {
  return Knee::load(e.code.rows + (e.code.per_channel ? min(n, e.columns - 1) * kKneeWidth : 0));
}

struct Product {
  const void* x;
  int64_t x_stride, rows, depth;
  const void* weight;
  const __half* group_scale;  // (columns, groups) of four-bit weights
  int64_t group_size;
  bool aligned;          // whether 16 bytes of x, and of the weights, may be loaded at once
  bool constant_weight;  // whether weights and their scales may be read before earlier kernels are done
};

// Few rows of int8 or of values; any size is right, if slower.
void multiply_few_rows(const char* op, const Product& product, const Epilogue& epilogue, int device,
                       cudaStream_t stream);
void multiply_few_values(const char* op, const Product& product, const Epilogue& epilogue, ScalarType type,
                         int device, cudaStream_t stream);

// Many rows by torch's int8 product, on other chips: columns and depth are multiples of eight.
bool suits_library(const Tensor& x);
void multiply_by_library(const Rows& x, const Product& product, const Tensor& weight,
                         const Epilogue& epilogue, cudaStream_t stream);

// More rows of int8 on a Hopper GPU. `weight` holds int8 codes; `group_scale` fp32 (groups, padded columns),
// or null.
struct ManyRows {
  const int8_t* x;
  int64_t x_stride, rows, depth;
  const int8_t* weight;
  const float* group_scale;
  int64_t group_size, padded_columns;
  bool constant_weight;  // as of Product
};
constexpr int64_t kColumnPadding = 768;  // of group scales: a multiple of the width of every pair of tiles
void multiply_many_rows(const ManyRows& product, const Epilogue& epilogue, int device, cudaStream_t stream);

// The same without group scales, where the weights take long, not the products.
bool suits_some_rows(const ManyRows& product, const Epilogue& epilogue, int device);
void multiply_some_rows(const ManyRows& product, const Epilogue& epilogue, int device, cudaStream_t stream);

}  // namespace dualscale
