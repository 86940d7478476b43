// Weights as they are stored, made into what a product of many rows reads.
#pragma once

#include "launch.cuh"

namespace dualscale {

// int8 codes (columns, depth) from packed four-bit ones.
Tensor unpacked_codes(const Tensor& weight, cudaStream_t stream);

// fp32 (groups, padded columns) from fp16 (columns, groups): neighbouring columns become neighbours in
// memory.
Tensor transposed_scales(const Tensor& scale, int64_t padded_columns, cudaStream_t stream);

// Values (columns, depth) of type `type` from int8 codes with a scale a column, or packed ones with scales of
// groups.
Tensor decoded_weight(const Tensor& weight, const Tensor& scale, int64_t group_size, ScalarType type,
                      cudaStream_t stream);

}  // namespace dualscale
