// Few rows of int8 codes.
#include "few_rows.cuh"

namespace dualscale {

void multiply_few_rows(const char* op, const Product& p, const Epilogue& e, int device, cudaStream_t stream) {
  if (p.group_scale != nullptr) {
    e.knee ? launch_few_rows<int8_t, 4, true>(op, p, e, device, stream)
           : launch_few_rows<int8_t, 4, false>(op, p, e, device, stream);
  } else {
    e.knee ? launch_few_rows<int8_t, 8, true>(op, p, e, device, stream)
           : launch_few_rows<int8_t, 8, false>(op, p, e, device, stream);
  }
}

}  // namespace dualscale
