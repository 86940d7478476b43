// Rows of a scan's inputs on their way into shared memory, a few tiles before they are decoded.
#pragma once

#include "four.cuh"
#include "mma.cuh"

namespace dualscale {

// The rows of one array that a block reads: `bytes` of each, in pieces of `piece` bytes, or value by value
// where they do not lie at multiples of four bytes.
struct alignas(16) Stream {
  const uint8_t* from;
  int64_t stride;
  int bytes, piece, width;

  // `column` is the first value of a row, of which `count` exist.
  static __device__ Stream of(const Input& input, int64_t batch, int64_t column, int64_t count) {
    const int width = width_of(input.kind);
    const auto* data = static_cast<const uint8_t*>(input.data);
    if (data == nullptr || count <= 0) {
      return {nullptr, 0, 0, 4, width};
    }
    const uint8_t* from = data + (batch * input.batch_stride + column) * width;
    const int64_t stride = input.row_stride * width;
    const int bytes = static_cast<int>(count) * width;
    const unsigned all = static_cast<unsigned>(reinterpret_cast<uintptr_t>(from)) |
                         static_cast<unsigned>(stride) | static_cast<unsigned>(bytes);
    const int piece = all % 16 == 0 ? 16 : all % 8 == 0 ? 8 : all % 4 == 0 ? 4 : 0;
    return {from, stride, bytes, piece, width};
  }
};

// Copies are counted in groups, one a tile: all but the latest kOpen groups of this thread have arrived.
__device__ __forceinline__ void end_of_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

template <int kOpen>
__device__ __forceinline__ void wait_for_all_but() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kOpen) : "memory");
}

// By one warp: `rows` rows of at most kBytes bytes, in shared memory kRow bytes apart, kTile of them at most.
template <int kTile, int kRow, int kBytes>
struct RowCopy {
  template <int kPiece>
  static __device__ __forceinline__ void by_pieces(const uint8_t* from, int64_t stride, int bytes, int rows,
                                                   uint8_t* to) {
    constexpr int kPieces = kBytes / kPiece;
    constexpr int kTurns = (kTile * kPieces + 31) / 32;
    const int lane = threadIdx.x % 32;
#pragma unroll(kTurns <= 4 ? kTurns : 1)
    for (int turn = 0; turn < kTurns; ++turn) {
      const int row = (turn * 32 + lane) / kPieces, column = (turn * 32 + lane) % kPieces * kPiece;
      if (row < rows && column < bytes) {
        copy_async<kPiece>(to + row * kRow + column, from + row * stride + column);
      }
    }
  }

  template <class T>
  static __device__ __forceinline__ void by_values(const uint8_t* from, int64_t stride, int bytes, int rows,
                                                   uint8_t* to) {
    constexpr int kValues = kBytes / static_cast<int>(sizeof(T));
    const int columns = bytes / static_cast<int>(sizeof(T));
#pragma unroll 1
    for (int i = threadIdx.x % 32; i < rows * kValues; i += 32) {
      const int row = i / kValues, column = i % kValues;
      if (column < columns) {
        reinterpret_cast<T*>(to + row * kRow)[column] =
            reinterpret_cast<const T*>(from + row * stride)[column];
      }
    }
  }

  static __device__ __forceinline__ void run(const Stream& stream, int start, int rows, uint8_t* to) {
    const int64_t stride = stream.stride;
    const uint8_t* from = stream.from + start * stride;
    switch (stream.piece) {
      case 16:
        return by_pieces<16>(from, stride, stream.bytes, rows, to);
      case 8:
        return by_pieces<8>(from, stride, stream.bytes, rows, to);
      case 4:
        return by_pieces<4>(from, stride, stream.bytes, rows, to);
      default:
        return stream.width == 1   ? by_values<uint8_t>(from, stride, stream.bytes, rows, to)
               : stream.width == 2 ? by_values<uint16_t>(from, stride, stream.bytes, rows, to)
                                   : by_values<uint32_t>(from, stride, stream.bytes, rows, to);
    }
  }
};

}  // namespace dualscale
