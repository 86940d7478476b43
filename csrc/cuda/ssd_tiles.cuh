// Activations as tiles of a half type in shared memory, decoded on the way, for the tensor cores.
//
// A thread brings eight neighbouring channels of every few rows: it copies them as they lie in memory while
// the tensor cores work on the chunk before, and decodes them when their turn comes, so no thread waits for
// another's copies. Its channels stay the same, so the parameters of their codes stay in registers.
//
// A knee code is decoded in half-precision pairs, six instructions for two values. Its scale is split into a
// power of two, by which codes are multiplied exactly, and a rest in [1, 2), which is left to be applied in
// fp32 after the products: so the fine part of a code is exact, and the coarse part is rounded twice.
#pragma once

#include "four.cuh"
#include "mma.cuh"

namespace dualscale {

constexpr int kPiece = 8;   // neighbouring channels of a thread
constexpr int kChunk = 64;  // tokens of a tile

struct TileInput {
  Input in;
  bool aligned;     // a piece is loaded as a vector
  int piece_bytes;  // of a piece that is copied ahead; 0 for tensors that are loaded when their turn comes
  int raw;          // where the copies land, in bytes from the start of shared memory
};

// Parameters of a column's code: pairs of columns are neighbours, so that four pairs are one vector.
template <int kColumns>
struct __align__(16) TileCode {
  __half scale[kColumns];      // 2^e
  __half origin[kColumns];     // what brings a biased code to (q - zero) 2^e
  __half knee[kColumns];       // what brings a biased code to q - knee
  __half gain_high[kColumns];  // the knee's gain times 2^e in two parts, as it has a bit more than a half
  __half gain_low[kColumns];
  __half after[kColumns];  // a last factor, where `scaled_after` is set
  float rest[kColumns];    // the scale over 2^e
};

// The thread's index, read anew: what follows from it then does not occupy registers between its uses, of
// which the loop over chunks has none to spare.
__device__ __forceinline__ unsigned thread_now() {
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

constexpr float kHalfByteBias = 1152.0f;  // 2^10 + 128

// Fills column c. `row` is null where there is no code or no such channel.
template <int kColumns>
__device__ __forceinline__ void set_code(TileCode<kColumns>& code, int c, const float* row) {
  Knee knee{};
  if (row != nullptr) {
    knee = Knee::load(row);
  }
  // A scale below the smallest half stands for a channel that is always zero.
  const bool alive = knee.scale >= 0x1p-24f;
  const float power = alive ? exp2f(fminf(floorf(log2f(knee.scale)), 5.0f)) : 0.0f;
  const __half high = __float2half_rn(knee.gain * power);
  code.scale[c] = __float2half_rn(power);
  code.origin[c] = __float2half_rn(-(kHalfByteBias + knee.zero) * power);
  code.knee[c] = __float2half_rn(-(kHalfByteBias + knee.knee));
  code.gain_high[c] = high;
  code.gain_low[c] = __float2half_rn(knee.gain * power - __half2float(high));
  code.rest[c] = alive ? knee.scale / power : 1.0f;
}

template <class T, int kThreads, int kColumns>
struct Tile {
  static constexpr int kStride =
      kColumns + 8;  // an odd number of 16 bytes, so that rows meet different banks
  static constexpr int kPieces = kColumns / kPiece;
  static constexpr int kPass = kThreads / kPieces;  // rows that the block covers at once
  static constexpr int kItems = kPass < kChunk ? kChunk / kPass : 1;
  static constexpr Kind kOwnKind = std::is_same_v<T, __half> ? Kind::kHalf : Kind::kBFloat16;
  using Code = TileCode<kColumns>;

  // A thread's part of the tile: its first row, its columns and how many of them exist.
  struct Part {
    const TileInput& input;
    const char* first;  // where its piece of its first row lies
    char* copies;       // where its copies land
    int row, column, channel, valid;

    // `origin` is the first row of the tile; `channel` counts as the code of the input does.
    __device__ __forceinline__ Part(const TileInput& tile_input, int64_t origin, unsigned thread,
                                    int first_channel, int valid_channels, char* shared)
        : input(tile_input),
          row(thread / kPieces),
          column(thread % kPieces * kPiece),
          channel(first_channel),
          valid(valid_channels) {
      const Kind kind = input.in.kind;
      const int64_t offset = origin + row * input.in.row_stride + channel;
      first = static_cast<const char*>(input.in.data) + (kind == Kind::kCodes   ? offset
                                                         : kind == Kind::kFloat ? 4 * offset
                                                                                : 2 * offset);
      copies = shared + input.raw + thread * input.piece_bytes;
    }

    template <class S>
    __device__ __forceinline__ Raw<S, kPiece> take(int i, int valid) const {
      if (input.piece_bytes != 0 && valid == kPiece) {
        const char* raw = copies + i * kThreads * static_cast<int>(sizeof(S)) * kPiece;
        return load_raw<S, kPiece>(reinterpret_cast<const S*>(raw), true, kPiece);
      }
      const S* from = reinterpret_cast<const S*>(first) + i * kPass * input.in.row_stride;
      return load_raw<S, kPiece>(from, input.aligned, valid);
    }
  };

  // Starts the copies of a chunk of which `rows` rows exist.
  static __device__ __forceinline__ void fetch(const Part& part, int rows) {
    const int bytes = part.input.piece_bytes;
    if (bytes == 0 || part.valid < kPiece) {
      return;
    }
    if (bytes == 8) {
      fetch_pieces<8>(part, rows);
    } else {
      fetch_pieces<16>(part, rows);
    }
  }

  // Writes the tile. Columns that do not exist become zero; rows from `rows` on become zero or, where any
  // byte stands for a finite number, anything.
  static __device__ __forceinline__ void decode(const Part& part, const Code& code, bool scaled_after,
                                                int rows, T* tile) {
    const Kind kind = part.input.in.kind;
    if (kind == kOwnKind && !scaled_after) {
      copy(part, rows, tile);
    } else if (kind != Kind::kCodes || part.input.in.code.is_table) {
      decode_other(part, code, scaled_after, rows, tile);
    } else if (part.input.piece_bytes != 0) {
      decode_knee<true>(part, code, scaled_after, rows, tile);
    } else {
      decode_knee<false>(part, code, scaled_after, rows, tile);
    }
  }

 private:
  template <int kBytes>
  static __device__ __forceinline__ void fetch_pieces(const Part& part, int rows) {
    const int64_t pass = kPass * part.input.in.row_stride * (kBytes / kPiece);
    const char* from = part.first;
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      if (part.row + i * kPass < rows) {
        copy_async<kBytes>(part.copies + i * kThreads * kBytes, from);
      }
      from += pass;
    }
  }

  template <class F>
  static __device__ __forceinline__ void for_each_row(const Part& part, int rows, T* tile, F&& value) {
    T* to = tile + part.row * kStride + part.column;
#pragma unroll 1
    for (int i = 0; i < kItems; ++i) {
      const int r = part.row + i * kPass;
      if (kPass > kChunk && r >= kChunk) {
        break;
      }
      uint32_t word[4] = {};
      if (r < rows && part.valid > 0) {
        value(i, word);
      }
      *reinterpret_cast<uint4*>(to + i * kPass * kStride) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }

  // Values that are of the tile's type already.
  static __device__ __forceinline__ void copy(const Part& part, int rows, T* tile) {
    T* to = tile + part.row * kStride + part.column;
#pragma unroll 4
    for (int i = 0; i < kItems; ++i) {
      if (kPass > kChunk && part.row >= kChunk) {
        break;
      }
      const auto raw = part.template take<T>(i, part.row + i * kPass < rows ? part.valid : 0);
      *reinterpret_cast<uint4*>(to + i * kPass * kStride) =
          make_uint4(raw.word[0], raw.word[1], raw.word[2], raw.word[3]);
    }
  }

  // Tables and other floating point.
  static __device__ __forceinline__ void decode_other(const Part& part, const Code& code, bool scaled_after,
                                                      int rows, T* tile) {
    const Input& in = part.input.in;
    for_each_row(part, rows, tile, [&](int i, uint32_t (&word)[4]) {
      float x[kPiece];
      if (in.kind == Kind::kCodes) {
        const auto raw = part.template take<int8_t>(i, part.valid);
#pragma unroll
        for (int j = 0; j < kPiece; ++j) {
          const int64_t row = in.code.per_channel ? part.channel + min(j, part.valid - 1) : 0;
          x[j] = __ldg(in.code.rows + row * kTableWidth + raw.get(j) + 128);
        }
      } else if (in.kind == Kind::kFloat) {
        unpack(part.template take<float>(i, part.valid), x);
      } else if (in.kind == Kind::kHalf) {
        unpack(part.template take<__half>(i, part.valid), x);
      } else {
        unpack(part.template take<__nv_bfloat16>(i, part.valid), x);
      }
#pragma unroll
      for (int j = 0; j < kPiece; ++j) {
        x[j] = j < part.valid ? x[j] : 0.0f;
        x[j] *= scaled_after ? __half2float(code.after[part.column + j]) : 1.0f;
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        word[j] = pack_pair<T>(x[2 * j], x[2 * j + 1]);
      }
    });
  }

  // Four pairs of parameters.
  static __device__ __forceinline__ void read(const __half* from, __half2 (&to)[4]) {
    const uint4 four = *reinterpret_cast<const uint4*>(from);
    memcpy(to, &four, sizeof(four));
  }

  // kCopied: the codes were copied ahead.
  template <bool kCopied>
  static __device__ __forceinline__ void decode_knee(const Part& part, const Code& code, bool scaled_after,
                                                     int rows, T* tile) {
    __half2 scale[4], origin[4], knee[4], high[4], low[4];
    read(code.scale + part.column, scale);
    read(code.origin + part.column, origin);
    read(code.knee + part.column, knee);
    read(code.gain_high + part.column, high);
    read(code.gain_low + part.column, low);
    const __half2 one = __float2half2_rn(1.0f);
    T* to = tile + part.row * kStride + part.column;
#pragma unroll(kCopied ? 2 : 1)
    for (int i = 0; i < kItems; ++i) {
      if (kPass > kChunk && part.row >= kChunk) {
        break;
      }
      uint2 raw;
      if constexpr (kCopied) {
        raw = *reinterpret_cast<const uint2*>(part.copies + i * kThreads * kPiece);
      } else {
        const int valid = part.row + i * kPass < rows ? part.valid : 0;
        const auto taken = part.template take<int8_t>(i, valid);
        raw = make_uint2(taken.word[0], taken.word[1]);
      }
      raw.x ^= 0x80808080u;
      raw.y ^= 0x80808080u;
      __half2 value[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // columns that do not exist have parameters of zero
        const uint32_t bits = __byte_perm(j < 2 ? raw.x : raw.y, 0x64646464u, j % 2 == 0 ? 0x4140 : 0x4342);
        __half2 biased;
        memcpy(&biased, &bits, 4);
        const __half2 beyond = __hfma2_relu(biased, one, knee[j]);
        value[j] = __hfma2(high[j], beyond, __hfma2(low[j], beyond, __hfma2(biased, scale[j], origin[j])));
      }
      if (scaled_after) {
        __half2 after[4];
        read(code.after + part.column, after);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          value[j] = __hmul2(value[j], after[j]);
        }
      }
      uint32_t word[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (std::is_same_v<T, __half>) {
          memcpy(&word[j], &value[j], 4);
        } else {
          word[j] = pack_pair<T>(__low2float(value[j]), __high2float(value[j]));
        }
      }
      *reinterpret_cast<uint4*>(to + i * kPass * kStride) = make_uint4(word[0], word[1], word[2], word[3]);
    }
  }
};

}  // namespace dualscale
