"""What a rounding does: from a floating-point weight to codes and scales on a grid."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from dualscale_mamba.quantization.weights import Grid, QuantizedWeight


class Rounding(Protocol):
    """How a weight becomes codes; one for all layers of a model, deterministic."""

    @property
    def needs_inputs(self) -> bool:
        """Whether it wants the second moments of a layer's inputs."""
        ...

    def __call__(self, weight: Tensor, grid: Grid, hessian: Tensor | None = None) -> QuantizedWeight:
        """Round a weight.

        Args:
            weight: ``(N, K)``, floating point.
            grid: Width and groups of the codes.
            hessian: fp32 ``(K, K)``, the sum of x x^T over the calibration tokens, over their number; given where
                ``needs_inputs``.

        Raises:
            ValueError: The rounding needs a hessian and there is none.
        """
        ...


class ScaleRule(Protocol):
    """Where the scale of a group of weights lies, from the weights alone."""

    def scales(self, groups: Tensor, grid: Grid) -> Tensor:
        """Weights (N, groups, width) fp32 -> scales (N, groups) fp32, none zero; of either sign with 4 bits."""
        ...
