"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): each column's rounding error is made good by the columns after it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.weights import Grid, QuantizedWeight
from dualscale_mamba.rounding.base import ScaleRule
from dualscale_mamba.rounding.mse import MseClip

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024)
LARGEST_DAMPING = 10.0


@dataclass(frozen=True)
class Gptq:
    """Algorithm 1 of the paper, for weights on any grid.

    It lessens ||X (W - Q)^T||^2, the error of the layer's output over the calibration tokens, column after column:
    what rounding does to one column is spread over those that are still floating point (equation 2), by the rows of
    the Cholesky factor of the inverse Hessian (section 4, step 3).

    Args:
        damping: What is added to the Hessian's diagonal, as a share of its mean (section 4, step 3).
        act_order: Take the columns by the size of their inputs, largest first. The scales then come from the weights
            as they were, so that a group stays a run of neighbours in memory.
        block_size: Columns after which the rest of the matrix is updated at once (section 4, step 2).
        scale: Where a group's scale lies. Without ``act_order`` it is asked when the group is reached, and sees the
            weights with the errors before them made good.
    """

    damping: float = 0.01
    act_order: bool = False
    block_size: int = 128
    scale: ScaleRule = field(default_factory=MseClip)

    def __post_init__(self) -> None:
        if not 0.0 < self.damping <= LARGEST_DAMPING:
            raise ConfigError("rounding.damping", self.damping, f"a number above 0 up to {LARGEST_DAMPING:g}")
        if (
            self.block_size not in BLOCK_SIZES
        ):  # a power of two: groups begin where blocks do, or lie inside one
            allowed = f"a power of two in {BLOCK_SIZES[0]} to {BLOCK_SIZES[-1]}"
            raise ConfigError("rounding.block_size", self.block_size, allowed)

    @property
    def needs_inputs(self) -> bool:
        """Always."""
        return True

    def __call__(self, weight: Tensor, grid: Grid, hessian: Tensor | None = None) -> QuantizedWeight:
        """See :class:`~dualscale_mamba.rounding.base.Rounding`.

        Raises:
            ValueError: There is no hessian, its shape is not (K, K), or it is not positive semi-definite and finite.
        """
        inputs = weight.shape[1]
        if hessian is None or tuple(hessian.shape) != (inputs, inputs):
            raise ValueError(f"GPTQ of {inputs} inputs needs their second moments, ({inputs}, {inputs})")
        values = weight.detach().float()
        hessian = _alive(hessian.to(values.device, torch.float32))
        order = torch.arange(inputs, device=values.device)
        if self.act_order:
            order = hessian.diagonal().argsort(descending=True, stable=True)
        factor = inverse_factor(hessian[order][:, order], self.damping)
        columns = Columns(values, order, grid, self.scale, static=self.act_order)
        for start in range(0, inputs, self.block_size):
            _round_block(columns, factor, start, min(start + self.block_size, inputs))
        return columns.result()


class Columns:
    """A weight while its columns are rounded one by one, in their order of work.

    Args:
        weight: fp32 ``(N, K)``.
        order: int64 ``(K,)``, the place in the weight of each column of work.
        grid: Width and groups of the codes.
        rule: Where the scales lie.
        static: Whether all scales come from the weight as it is now; otherwise ``order`` must leave all in place.

    Attributes:
        rest: fp32 ``(K, N)``, a row for each column of work: what is still floating point.
    """

    def __init__(self, weight: Tensor, order: Tensor, grid: Grid, rule: ScaleRule, *, static: bool) -> None:
        self.rest = weight.T[order].contiguous()  # columns as rows: each step works on memory in one piece
        self.grid, self.rule, self.static = grid, rule, static
        inputs = weight.shape[1]
        self.width, self.places = grid.width(inputs), order.tolist()
        self._codes = weight.new_empty(inputs, weight.shape[0], dtype=torch.int8)
        self._scales = weight.new_empty(grid.groups(inputs), weight.shape[0])
        if static:
            self._scales.copy_(self._kept(grid.grouped(weight)))

    def _kept(self, groups: Tensor) -> Tensor:
        """The scales of groups (N, G, width), rounded as they will be kept: fp32 (G, N)."""
        scales = self.rule.scales(groups, self.grid)
        return self.grid.stored_scale(scales).float().reshape(scales.shape).T

    def round(self, index: int) -> Tensor:
        """Choose the codes of column of work ``index``; its values on the grid, fp32 (N,)."""
        place = self.places[index]
        group, first = divmod(place, self.width)
        if first == 0 and not self.static:
            members = self.rest[index : index + self.width].T[:, None]
            self._scales[group] = self._kept(members)[0]
        scale = self._scales[group]
        codes = self.grid.codes(self.rest[index], scale)
        self._codes[place] = codes.to(torch.int8)
        return codes * scale

    def result(self) -> QuantizedWeight:
        """The rounded weight, its columns where they were."""
        kept = self.grid.stored_scale(self._scales.T.contiguous())
        return QuantizedWeight(self._codes.T.contiguous(), kept, self.grid)


def _round_block(columns: Columns, factor: Tensor, start: int, end: int) -> None:
    """Lines 4 to 10 of Algorithm 1: round a block, then update all that comes after it at once."""
    rest = columns.rest
    errors = torch.empty_like(rest[start:end])
    for index in range(start, end):
        row = factor[index]
        error = (rest[index] - columns.round(index)) / row[index]
        rest[index + 1 : end].addr_(row[index + 1 : end], error, alpha=-1.0)
        errors[index - start] = error
    if end < rest.shape[0]:
        rest[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1.0)


def _alive(hessian: Tensor) -> Tensor:
    """A copy in which an input that was never anything but zero counts as an average one that knows no other.

    Such a column is rounded to nearest: calibration says nothing of it, which does not make its weights worthless.

    Raises:
        ValueError: A number is not finite, or every input is dead.
    """
    diagonal = hessian.diagonal()
    if not bool(torch.isfinite(hessian).all()):
        raise ValueError("the second moments of a layer's inputs are not finite; calibrate in float32")
    dead = diagonal <= 0
    if bool(dead.all()):
        raise ValueError("every input of a layer is zero for all calibration tokens")
    made = hessian.masked_fill(dead[:, None] | dead[None], 0.0)
    made.diagonal()[dead] = diagonal[~dead].mean()
    return made


def inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper triangular U with U^T U = (H + damping mean(diag H) 1)^-1 (section 4, step 3).

    With J the reversal of all rows, J H J = L L^T gives H = R R^T with the upper triangular R = J L J, and U is the
    inverse of R: one Cholesky and a triangular solve, without forming the inverse that the paper decomposes.

    Args:
        hessian: fp32 ``(K, K)``, symmetric and positive semi-definite.
        damping: A share of the mean of the diagonal; ten times as much is tried where the decomposition fails.

    Raises:
        ValueError: It fails with all of them.
    """
    mean = hessian.diagonal().mean()
    identity = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    while damping <= LARGEST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex((hessian + damping * mean * identity).flip(0, 1))
        if not bool(failed):
            inverse: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
            return inverse
        damping *= 10.0
    raise ValueError("the second moments of a layer's inputs are not positive semi-definite")
