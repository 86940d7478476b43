"""What the kernel benchmark times of linear layers: the projections of mamba-2.8b and its head at every width."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from workloads import RANGE, Work, codes, normal, plain, rows_of

from dualscale_mamba import ops
from dualscale_mamba.formats.dual import Dual

GROUP_SIZE = 128
FEW_ROWS = (1, 2, 4, 8, 16)
SOME_ROWS = (16, 32, 64, 128, 256)
MANY_ROWS = (64, 256, 2048, 16384)
READ_AHEAD_ROWS, AHEAD = 256, ", weights read ahead"  # products of more rows do not do that, ...
READ_AHEAD_VALUES = 8  # ... nor those of values with more than these
# torch._int_mm takes no fewer rows than this; torch._weight_int4pack_mm is made for few and takes minutes for many.
INT_MM_ROWS, INT4PACK_ROWS = 17, 256
# How torch._convert_weight_to_int4pack tiles the inputs: its multiples of 16 must divide them.
INNER_TILES = (8, 4, 2)


@dataclass(frozen=True)
class Layer:
    """A linear layer; the head of a model only ever sees the last token of each sequence."""

    name: str
    depth: int
    columns: int
    largest_rows: int = MANY_ROWS[-1]
    knee: bool = False  # its input is the SSM input

    def work(
        self,
        rows: int,
        arm: str,
        product: str,
        bits: int,
        make: Callable[[], tuple[object, ...]],
        call: Callable[..., object],
        out: int = 2,
    ) -> Work:
        """One arm: a product of this type with weights of ``bits``, results of ``out`` bytes."""
        given = 1 if product == "int8" else 2
        scales = {4: -(-self.depth // GROUP_SIZE) * 2, 8: 4, 16: 0}[bits]
        weights = self.columns * (self.depth * bits // 8 + scales)
        moved = weights + rows * (self.depth * given + self.columns * out)
        operations = 2 * rows * self.depth * self.columns
        shape = f"{rows}, {self.depth}, {self.columns}"
        return Work(self.name, shape, arm, make, call, moved, operations=operations, product=product)


LAYERS = (
    Layer("in_proj", 2560, 10240),
    Layer("x_proj", 5120, 192, knee=True),
    Layer("dt_proj", 160, 5120),
    Layer("out_proj", 5120, 2560),
    Layer("head", 2560, 50280, largest_rows=64),
)


def int8_weights(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scales and sums of rows."""
    weight = codes(layer.columns, layer.depth)
    return weight, filled(0.01, layer.columns), weight.sum(1, dtype=torch.int32)


def int4_weights(layer: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales, and zeros for the sums of rows, on which no time depends."""
    packed = codes(layer.columns, layer.depth // 2).view(torch.uint8)
    scale = filled(0.01, layer.columns, -(-layer.depth // GROUP_SIZE)).half()
    return packed, scale, filled(0.0, layer.columns)


def filled(value: float, *shape: int) -> Tensor:
    """fp32 on the GPU."""
    return torch.full(shape, value, device="cuda")


def on_codes(layer: Layer, rows: int, ahead: bool) -> Iterator[Work]:
    """linear_w8a8 and linear_w4a8; ``ahead``: their weights may be read while the kernel before runs."""
    suffix = AHEAD if ahead else ""
    site, dual = plain(), rows_of(Dual().fit(RANGE))
    inputs = [("", site, False), *([(" with knee", dual, True)] if layer.knee else [])]
    for end, result, dtype, out in (
        (" to int8", site, torch.float32, 1),
        (" to fp16", None, torch.float16, 2),
    ):
        for how, code, knee in inputs:

            def eight(
                x: Tensor, weight: Tensor, scale: Tensor, total: Tensor,
                own: tuple[Tensor, bool, Tensor | None, torch.dtype] = (code, knee, result, dtype),
            ) -> object:  # fmt: skip
                code, knee, result, dtype = own
                return ops.linear_w8a8(x, code, knee, None, weight, scale, total, None, result, dtype, ahead)

            def four(
                x: Tensor, weight: Tensor, scale: Tensor, total: Tensor,
                own: tuple[Tensor, bool, Tensor | None, torch.dtype] = (code, knee, result, dtype),
            ) -> object:  # fmt: skip
                code, knee, result, dtype = own
                return ops.linear_w4a8(
                    x, code, knee, None, weight, scale, total, GROUP_SIZE, None, result, dtype, ahead
                )

            make = lambda: (codes(rows, layer.depth), *int8_weights(layer))  # noqa: E731
            yield layer.work(rows, f"w8a8{how}{end}{suffix}", "int8", 8, make, eight, out)
            make = lambda: (codes(rows, layer.depth), *int4_weights(layer))  # noqa: E731
            yield layer.work(rows, f"w4a8{how}{end}{suffix}", "int8", 4, make, four, out)


def on_values(layer: Layer, rows: int, ahead: bool) -> Iterator[Work]:
    """linear_w8a16 and linear_w4a16, fp16 to fp16; ``ahead`` as above."""
    suffix = AHEAD if ahead else ""

    def eight(x: Tensor, weight: Tensor, scale: Tensor) -> object:
        return ops.linear_w8a16(x, weight, scale, None, None, torch.float16, ahead)

    def four(x: Tensor, weight: Tensor, scale: Tensor) -> object:
        return ops.linear_w4a16(x, weight, scale, GROUP_SIZE, None, None, torch.float16, ahead)

    make = lambda: (normal(rows, layer.depth), *int8_weights(layer)[:2])  # noqa: E731
    yield layer.work(rows, f"w8a16{suffix}", "fp16", 8, make, eight)
    make = lambda: (normal(rows, layer.depth), *int4_weights(layer)[:2])  # noqa: E731
    yield layer.work(rows, f"w4a16{suffix}", "fp16", 4, make, four)


def half(layer: Layer, rows: int) -> Work:
    """PyTorch's fp16 product, which all others are compared with."""
    make = lambda: (normal(rows, layer.depth), normal(layer.columns, layer.depth))  # noqa: E731
    return layer.work(rows, "PyTorch fp16", "fp16", 16, make, F.linear)


def peers(layer: Layer, rows: int) -> Iterator[Work]:
    """PyTorch's own products of integers, of the shapes that they accept."""
    if rows >= INT_MM_ROWS:

        def bare(x: Tensor, weight: Tensor) -> object:
            return torch._int_mm(x, weight.T)

        make = lambda: (codes(rows, layer.depth), codes(layer.columns, layer.depth))  # noqa: E731
        yield layer.work(rows, "torch._int_mm to int32", "int8", 8, make, bare, 4)
    inner = next((each for each in INNER_TILES if layer.depth % (16 * each) == 0), None)
    group = next((size for size in (GROUP_SIZE, 64, 32) if layer.depth % size == 0), None)
    if rows <= INT4PACK_ROWS and inner and group:

        def pack(inner: int = inner, group: int = group) -> tuple[Tensor, Tensor, Tensor]:
            packed = torch._convert_weight_to_int4pack(int4_weights(layer)[0], inner)
            scales = normal(layer.depth // group, layer.columns, 2, dtype=torch.bfloat16) / 64
            return normal(rows, layer.depth, dtype=torch.bfloat16), packed, scales

        def product(x: Tensor, packed: Tensor, scales: Tensor, group: int = group) -> object:
            return torch._weight_int4pack_mm(x, packed, group, scales)

        arm = f"torch._weight_int4pack_mm bf16, groups of {group}"
        yield layer.work(rows, arm, "fp16", 4, pack, product)


def is_accepted(work: Work) -> bool:
    """Whether PyTorch runs it at all: which shapes and devices its private operators take changes by version."""
    try:
        work.call(*work.make())
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return True


def work_of(rows: tuple[int, ...]) -> Iterator[Work]:
    """All layers and arms; the fp16 product comes first of its row, so that ratios are to it."""
    for layer in LAYERS:
        for count in (each for each in rows if each <= layer.largest_rows):
            yield half(layer, count)
            yield from filter(is_accepted, peers(layer, count))
            for ahead in (False, True) if count <= READ_AHEAD_ROWS else (False,):
                yield from on_codes(layer, count, ahead)
                if not ahead or count <= READ_AHEAD_VALUES:
                    yield from on_values(layer, count, ahead)


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {
    "linear_few": lambda: work_of(FEW_ROWS),
    "linear_some": lambda: work_of(SOME_ROWS),
    "linear_many": lambda: work_of(MANY_ROWS),
}
