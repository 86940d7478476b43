// encode and decode: bitwise what the PyTorch reference gives.
#include "ahead.cuh"
#include "vector.cuh"

namespace dualscale {
namespace {

constexpr int kThreads = 256;
constexpr int kVector = 8;
constexpr int kRowsPerThread = 4;        // a turn
constexpr int kTurnsPerChannelCode = 8;  // codes of a thread's own channels are worth more than one turn

struct Shape {
  int64_t rows, channels, in_stride, vectors;
  bool in_aligned, out_aligned;
};

// The codes of a thread's channels: one, or one a channel.
template <class Family, int kCodes>
struct ChannelCodes {
  Family code[kCodes];

  __device__ ChannelCodes(const float* rows, int width, int64_t channel, int64_t channels) {
#pragma unroll
    for (int i = 0; i < kCodes; ++i) {
      const int64_t row = kCodes == 1 ? 0 : min(channel + i, channels - 1);
      code[i] = Family::load(rows + row * width);
    }
  }
  __device__ __forceinline__ const Family& operator[](int i) const { return code[kCodes == 1 ? 0 : i]; }
};

// In = int8 decodes, Out = int8 encodes. A table that all channels share is searched in shared memory.
template <class Family, class In, class Out, int kCodes>
__global__ void __launch_bounds__(kThreads, 1)
    transcode(const In* in, Out* out, const float* rows, Shape shape) {
  constexpr bool kTable = std::is_same_v<Family, Table>;
  constexpr int kTurns = kCodes == 1 ? 1 : kTurnsPerChannelCode;
  constexpr int kWidth = kTable ? kTableWidth : kKneeWidth;
  __shared__ float table[kTable && kCodes == 1 ? kTableWidth : 1];
  const int64_t item = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t channel = item % shape.vectors * kVector;
  int64_t first = item / shape.vectors * kRowsPerThread * kTurns;
  await_earlier();
  admit_later();
  if constexpr (kTable && kCodes == 1) {
    for (int i = threadIdx.x; i < kTableWidth; i += kThreads) {
      table[i] = rows[i];
    }
    __syncthreads();
    rows = table;
  }
  if (first >= shape.rows) {
    return;
  }
  const int valid = static_cast<int>(min(static_cast<int64_t>(kVector), shape.channels - channel));
  const ChannelCodes<Family, kCodes> codes(rows, kWidth, channel, shape.channels);
  const int64_t end = min(first + kRowsPerThread * kTurns, shape.rows);
#pragma unroll 1
  for (int turn = 0; turn < kTurns; ++turn, first += kRowsPerThread) {
    Raw<In, kVector> raw[kRowsPerThread];
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      if (first + r < end) {
        raw[r] = load_raw<In, kVector>(in + (first + r) * shape.in_stride + channel, shape.in_aligned, valid);
      }
    }
#pragma unroll
    for (int r = 0; r < kRowsPerThread; ++r) {
      if (first + r < end) {
        float x[kVector];
        unpack(raw[r], x);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
          x[i] = std::is_same_v<Out, int8_t> ? codes[i].encode(x[i]) : codes[i].decode(x[i]);
        }
        store_raw(out + (first + r) * shape.channels + channel, pack<Out, kVector>(x), shape.out_aligned,
                  valid);
      }
    }
  }
}

template <class In, class Out>
void launch(const char* op, const Tensor& input, const Tensor& code, Tensor& output) {
  if (input.numel() == 0) {
    return;
  }
  const OnDevice device(input);
  const Rows rows = rows_of(input);
  const bool per_channel = code.size(0) > 1;
  Shape shape{rows.count, rows.channels, rows.stride};
  if (!per_channel && (rows.count == 1 || rows.stride == rows.channels)) {  // one long row: no ragged ends
    shape = {1, rows.count * rows.channels, rows.count * rows.channels};
  }
  // Long single rows are folded, so that a thread still has several vectors in flight.
  const int64_t folded = kVector * kRowsPerThread * kThreads;
  if (!per_channel && shape.rows == 1 && shape.channels % folded == 0) {
    shape.rows = kRowsPerThread;
    shape.channels /= kRowsPerThread;
    shape.in_stride = shape.channels;
  }
  shape.vectors = ceil_div(shape.channels, kVector);
  const auto start = reinterpret_cast<uintptr_t>(rows.tensor.data_ptr());
  shape.in_aligned = start % Raw<In, kVector>::kAlignment == 0 &&
                     (shape.rows == 1 || shape.in_stride * sizeof(In) % Raw<In, kVector>::kAlignment == 0);
  shape.out_aligned = shape.rows == 1 || shape.channels * sizeof(Out) % Raw<Out, kVector>::kAlignment == 0;
  const int64_t items =
      shape.vectors * ceil_div(shape.rows, kRowsPerThread * (per_channel ? kTurnsPerChannelCode : 1));
  const unsigned grid = grid_of(op, ceil_div(items, kThreads));
  const auto* in = static_cast<const In*>(rows.tensor.data_ptr());
  auto* out = static_cast<Out*>(output.data_ptr());
  const auto run = [&](auto kernel) {
    launch_early(kernel, grid, kThreads, 0, input.get_device_index(), device.stream, in, out, floats(code),
                 shape);
  };
  if (is_knee(code)) {
    per_channel ? run(transcode<Knee, In, Out, kVector>) : run(transcode<Knee, In, Out, 1>);
  } else {
    per_channel ? run(transcode<Table, In, Out, kVector>) : run(transcode<Table, In, Out, 1>);
  }
}

Tensor encode(const Tensor& x, const Tensor& code) {
  check_channels({"encode", "x"}, x);
  check_floating({"encode", "x"}, x);
  check_last_stride({"encode", "x"}, x);
  check_code({"encode", "code"}, code, x.size(x.dim() - 1), Codes::kAny, x);
  Tensor codes = torch::stable::new_empty(x, x.sizes(), ScalarType::Char);
  dispatch_floating(x.scalar_type(), [&](auto type) {
    launch<typename decltype(type)::type, int8_t>("encode", x, code, codes);
  });
  return codes;
}

Tensor decode(const Tensor& codes, const Tensor& code, ScalarType dtype) {
  check_channels({"decode", "codes"}, codes);
  check_type({"decode", "codes"}, codes, ScalarType::Char);
  check_last_stride({"decode", "codes"}, codes);
  check_result_type({"decode", "dtype"}, dtype);
  check_code({"decode", "code"}, code, codes.size(codes.dim() - 1), Codes::kAny, codes);
  Tensor values = torch::stable::new_empty(codes, codes.sizes(), dtype);
  dispatch_floating(dtype, [&](auto type) {
    launch<int8_t, typename decltype(type)::type>("decode", codes, code, values);
  });
  return values;
}

}  // namespace
}  // namespace dualscale

STABLE_TORCH_LIBRARY_IMPL(dualscale, CUDA, m) {
  m.impl("encode", TORCH_BOX(&dualscale::encode));
  m.impl("decode", TORCH_BOX(&dualscale::decode));
}
