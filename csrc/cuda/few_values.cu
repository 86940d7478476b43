// Few rows of floating-point values.
#include "few_rows.cuh"

namespace dualscale {

void multiply_few_values(const char* op, const Product& p, const Epilogue& e, ScalarType type, int device,
                         cudaStream_t stream) {
  dispatch_floating(type, [&](auto t) {
    using X = typename decltype(t)::type;
    if constexpr (!std::is_same_v<X, float>) {  // fp32 has no such product on the tensor cores
      p.group_scale != nullptr ? launch_few_rows<X, 4, false>(op, p, e, device, stream)
                               : launch_few_rows<X, 8, false>(op, p, e, device, stream);
    }
  });
}

}  // namespace dualscale
