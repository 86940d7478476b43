"""What layers with a large weight share: the weight in floating point, or as integer codes with scales."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dualscale_mamba.quantization.weights import Grid, QuantizedWeight

CODES = ("weight_codes", "weight_scale", "weight_sum")


class WeightLayer(nn.Module):
    """A weight (rows, columns); while it lies on a grid its floating-point values are not kept.

    Args:
        rows: Output channels, or tokens of an embedding.
        columns: Inputs, or the width of an embedding.
        dtype: Of the weight and of what is computed with it.

    Attributes:
        weight: Floating point ``(rows, columns)``, or empty once quantized; its type stays.
        grid: What the codes mean, or None.
        weight_codes: int8 ``(rows, columns)`` or packed uint8 ``(rows, columns / 2)``, once quantized.
        weight_scale: fp32 ``(rows,)``, or fp16 ``(rows, groups)`` with 4 bits.
        weight_sum: int32 or, with 4 bits, fp32 ``(rows,)``.
    """

    weight: nn.Parameter
    weight_codes: Tensor | None
    weight_scale: Tensor | None
    weight_sum: Tensor | None

    def __init__(self, rows: int, columns: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.rows, self.columns = rows, columns
        self.grid: Grid | None = None
        self.set_float(torch.empty(rows, columns, dtype=dtype))

    @property
    def is_quantized(self) -> bool:
        """Whether the weight is on a grid."""
        return self.grid is not None

    @property
    def bits(self) -> int | None:
        """Of a weight's code; None in floating point."""
        return None if self.grid is None else self.grid.bits

    def set_quantized(self, made: QuantizedWeight) -> None:
        """Take codes in the place of the floating-point weight.

        Raises:
            ValueError: They are of another shape.
            ConfigError: They cannot be packed.
        """
        if made.codes.shape != (self.rows, self.columns):
            raise ValueError(f"codes {tuple(made.codes.shape)} for a weight ({self.rows}, {self.columns})")
        self._hold(made.grid, *made.stored())

    def reserve(self, grid: Grid) -> None:
        """Make room for codes on a grid, so that ``load_state_dict(assign=True)`` can put them there."""
        zeros = torch.zeros(self.rows, self.columns, dtype=torch.int8, device="meta")
        shape = (self.rows,) if grid.bits == 8 else (self.rows, grid.groups(self.columns))
        kind = torch.float32 if grid.bits == 8 else torch.float16
        made = QuantizedWeight(zeros, torch.zeros(shape, dtype=kind, device="meta"), grid)
        self._hold(grid, *(torch.empty_like(t, device=self.weight.device) for t in made.stored()))

    def share(self, other: WeightLayer) -> None:
        """Use the very tensors of another layer's codes."""
        assert other.grid is not None
        self._hold(other.grid, other.weight_codes, other.weight_scale, other.weight_sum)

    def set_float(self, weight: Tensor) -> None:
        """Take a floating-point weight, in the place of codes where there are some."""
        # A parameter stays the very same object: a tied head shares it.
        own = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight, requires_grad=False)
        self.weight = own
        self.grid = None
        for name in CODES:
            self.register_buffer(name, None)

    def quantized(self) -> QuantizedWeight:
        """The codes and scales that the layer holds."""
        assert self.grid is not None
        assert self.weight_codes is not None
        assert self.weight_scale is not None
        return QuantizedWeight.from_stored(self.weight_codes, self.weight_scale, self.grid, self.columns)

    def decoded_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight's values (rows, columns), whatever it is kept as."""
        return self.quantized().decoded(dtype) if self.is_quantized else self.weight.to(dtype)

    def _hold(self, grid: Grid, *stored: Tensor | None) -> None:
        # A new parameter: a tied head may still need the former one.
        self.weight = nn.Parameter(self.weight.new_empty(0), requires_grad=False)
        self.grid = grid
        for name, tensor in zip(CODES, stored, strict=True):
            self.register_buffer(name, tensor)
