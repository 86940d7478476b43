// Convolutions whose results are codes of two scales: the kernels of conv_sequence.cuh with their selectors.
#include "conv_sequence.cuh"

namespace dualscale {

void launch_pairs(const SequenceCall& call, const SelectorView& view) {
  dispatch_activation(call.x.scalar_type(), [&](auto input) {
    dispatch_pairs(call.p.code, [&](auto result) {
      dispatch_selectors(view, [&](auto selectors) {
        launch_sequence<typename decltype(input)::type, typename decltype(result)::type>(call, selectors);
      });
    });
  });
}

}  // namespace dualscale
