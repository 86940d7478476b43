// Which kernel of ssd_scan.cuh runs for which sizes. Each half type is compiled by a source of its own.
#pragma once

#include "ssd_scan.cuh"

namespace dualscale {

constexpr int kBlockOverhead = 1024;  // bytes of shared memory that the system keeps of each block

// A piece is a vector if the tensor's rows begin at one, and with them each group's or head's `size`
// channels.
inline TileInput ssd_tile(const Tensor& tensor, const OptionalTensor& code, int64_t size) {
  const Input in = input_of(tensor, code);
  const int64_t bytes = kPiece * tensor.element_size();
  const bool aligned = size % kPiece == 0 && is_aligned(tensor, std::min<int64_t>(bytes, 16));
  return {in, aligned, aligned && bytes <= 16 ? static_cast<int>(bytes) : 0, 0};
}

template <class T, int kStates, int kWarps, int kSlices, int kBlocks>
void launch_ssd(SsdScan a, const OnDevice& device, int index) {
  using Block = SsdBlock<T, kStates, kWarps, kSlices>;
  int bytes = static_cast<int>(sizeof(typename Block::Shared));
  const int limit = shared_limit(index);
  const int share = (limit + kBlockOverhead) / kBlocks - kBlockOverhead;
  if (bytes > limit) {
    refuse({"ssd_scan", "B"}, "needs " + std::to_string(bytes) + " bytes of shared memory",
           "at most " + std::to_string(limit) + " bytes");
  }
  // What does not fit beside the other blocks is loaded when its turn comes.
  const auto reserve = [&](TileInput& input, int items) {
    const int copies = items * Block::kThreads * input.piece_bytes;
    if (bytes + copies > share) {
      input.piece_bytes = 0;
      return;
    }
    input.raw = bytes;
    bytes += copies;
  };
  reserve(a.x, Block::ChannelTile::kItems);
  reserve(a.B, Block::StateTile::kItems);
  reserve(a.C, Block::StateTile::kItems);
  a.head_blocks = static_cast<int>(ceil_div(a.in.heads_of_a_group(), Block::kHeads));
  a.tiles = static_cast<int>(ceil_div(a.in.head_dim, kHeadTile));
  const auto kernel = ssd_scan<T, kStates, kWarps, kSlices, kBlocks>;
  allow_shared(kernel, bytes);
  const int64_t blocks = a.in.batch * a.in.groups * a.head_blocks * a.tiles;
  kernel<<<grid_of("ssd_scan", blocks), Block::kThreads, bytes, device.stream>>>(a);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T, int kStates>
void launch_ssd_heads(const SsdScan& a, const OnDevice& device, int index) {
  if constexpr (kStates < 256) {
    if (a.in.heads_of_a_group() > 1) {
      return launch_ssd<T, kStates, 8, 1, 2>(a, device, index);
    }
    launch_ssd<T, kStates, 4, 1, 3>(a, device, index);
  } else {
    launch_ssd<T, kStates, 4, 1, 1>(a, device, index);
  }
}

template <class T>
void launch_ssd_states(const SsdScan& a, const OnDevice& device, int index) {
  if (a.in.states <= 16) {
    launch_ssd_heads<T, 16>(a, device, index);
  } else if (a.in.states <= 32) {
    launch_ssd_heads<T, 32>(a, device, index);
  } else if (a.in.states <= 64) {
    launch_ssd_heads<T, 64>(a, device, index);
  } else if (a.in.states <= 128) {
    launch_ssd_heads<T, 128>(a, device, index);
  } else {
    launch_ssd_heads<T, 256>(a, device, index);
  }
}

void run_ssd_scan_float16(const SsdScan& a, const OnDevice& device, int index);
void run_ssd_scan_bfloat16(const SsdScan& a, const OnDevice& device, int index);

}  // namespace dualscale
