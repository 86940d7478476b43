"""What a call of an operator cannot avoid: bytes moved, operations, exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from dualscale_mamba.ops.schema import NAMESPACE

# Written whole, never read, though they are inputs.
ONLY_WRITTEN = ("copy_", "fill_", "zero_")
# They read as many bytes of their first argument as they give back.
READS_WHAT_IT_GIVES = ("embedding", "index_select", "gather", "index")
INT8_PRODUCTS = ("linear_w8a8", "linear_w4a8", "mamba_layer_step", "_int_mm")
# Read and written, but no part of what a call is for.
SCRATCH = ("workspace",)
# Operations of one value, where there is no matrix product: what the formulas of schema.py need, roughly.
A_VALUE = {
    "encode": 5,
    "decode": 4,
    "rms_norm_quant": 6,
    "gated_rms_norm_quant": 12,
    "causal_conv1d_encode": 4,
    "causal_conv1d_update": 4,
}
# Of one value and state of a scan: decay, input, sum, output; the exponential is counted apart.
A_STATE = 6


@dataclass(frozen=True)
class Work:
    """Of one call or of several.

    Attributes:
        bytes: Read and written, each tensor once.
        products: Additions and multiplications of matrix products.
        others: All other operations, roughly.
        exponentials: Of the decay of a selective scan.
        is_int8: Whether the products are those of int8 codes.
    """

    bytes: float = 0.0
    products: float = 0.0
    others: float = 0.0
    exponentials: float = 0.0
    is_int8: bool = False

    @property
    def operations(self) -> float:
        """All of them."""
        return self.products + self.others + self.exponentials

    def __add__(self, other: Work) -> Work:
        return Work(
            self.bytes + other.bytes,
            self.products + other.products,
            self.others + other.others,
            self.exponentials + other.exponentials,
            self.is_int8 or other.is_int8,
        )


def work_of(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], result: object) -> Work:
    """The work of one call.

    Args:
        func: The operator.
        args: As it was called.
        kwargs: The same.
        result: What it gave back.
    """
    name = name_of(func)
    named = arguments(func, args, kwargs)
    products = _products(func, name, named, args, kwargs, result)
    scanned = _exponentials(name, named)
    others = 0.0 if products else _others(name, named, result)
    others += A_STATE * scanned
    return Work(_bytes(func, name, named, result), products, others, scanned, name in INT8_PRODUCTS)


def name_of(func: OpOverload) -> str:
    """Name without namespace and overload."""
    return str(func._schema.name).partition("::")[2]


def is_own(func: OpOverload) -> bool:
    """Whether it is one of this package's."""
    return func.namespace == NAMESPACE


def arguments(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, those left out included."""
    schema = func._schema.arguments
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    defaults = {argument.name: argument.default_value for argument in schema if argument.name not in given}
    return {**given, **defaults, **kwargs}


def _tensors(value: object) -> Iterator[Tensor]:
    yield from (each for each in tree_iter(value) if isinstance(each, Tensor))


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _bytes(func: OpOverload, name: str, named: dict[str, Any], result: object) -> float:
    """Each input once, what is changed in place twice, each output once."""
    given = sum(_size(tensor) for tensor in _tensors(result))
    total, inputs = 0, set()
    for index, argument in enumerate(func._schema.arguments):
        if argument.name in SCRATCH:
            continue
        changed = argument.alias_info is not None and argument.alias_info.is_write
        for tensor in _tensors(named.get(argument.name)):
            inputs.add(tensor.data_ptr())
            if name in READS_WHAT_IT_GIVES and index == 0:
                total += given
            elif name in ONLY_WRITTEN and index == 0:
                total += _size(tensor)
            else:
                total += _size(tensor) * (2 if changed else 1)
    return float(total + sum(_size(each) for each in _tensors(result) if each.data_ptr() not in inputs))


def _products(
    func: OpOverload,
    name: str,
    named: dict[str, Any],
    args: Sequence[Any],
    kwargs: dict[str, Any],
    result: object,
) -> float:
    if is_own(func):
        formula = PRODUCTS.get(name)
        return 0.0 if formula is None else float(formula(named))
    if name == "linear":
        return float(2 * named["input"].numel() * named["weight"].shape[0])
    counted = flop_registry.get(func.overloadpacket)
    return 0.0 if counted is None else float(counted(*args, **kwargs, out_val=result))


def _linear(named: dict[str, Any]) -> float:
    """2 M K N; columns of an int4 weight are packed by two."""
    return float(2 * named["x"].numel() * named["weight"].shape[0])


def _layer(named: dict[str, Any]) -> float:
    """in_proj, x_proj, dt_proj and out_proj."""
    batch, width = named["hidden"].shape
    channels, rank = named["A"].shape[0], named["x_proj_weight"].shape[0] - 2 * named["A"].shape[1]
    inputs = 3 * width + named["x_proj_weight"].shape[0] + rank
    return float(2 * batch * channels * inputs)


def _ssd(named: dict[str, Any]) -> float:
    """C B^T of a chunk once a group; its product with x, the chunk's state and the states' output once a head."""
    heads, groups = named["A"].numel(), named["groups"]
    tokens = named["delta"].numel() / heads
    width, states = named["x"].shape[-1] / heads, named["B"].shape[-1] / groups
    chunk = min(named["chunk"], named["x"].shape[1])
    a_head = chunk * width + 4 * width * states  # the causal half of a chunk: chunk/2 x 2 operations
    return float(tokens * (groups * chunk * states + heads * a_head))


def _ssd_step(named: dict[str, Any]) -> float:
    return float(4 * named["state"].numel())


PRODUCTS: dict[str, Callable[[dict[str, Any]], float]] = {
    "linear_w8a8": _linear,
    "linear_w4a8": _linear,
    "linear_w8a16": _linear,
    "linear_w4a16": _linear,
    "mamba_layer_step": _layer,
    "ssd_scan": _ssd,
    "ssd_state_update": _ssd_step,
}


def _exponentials(name: str, named: dict[str, Any]) -> float:
    if name in ("selective_scan", "selective_state_update"):
        return float(named["u"].numel() * named["A"].shape[1])
    return float(named["state"].numel()) if name == "mamba_layer_step" else 0.0


def _others(name: str, named: dict[str, Any], result: object) -> float:
    values = max((tensor.numel() for tensor in _tensors(result)), default=0)
    if name.startswith("causal_conv1d"):
        return float(values * (A_VALUE[name] + 2 * named["weight"].shape[1]))
    if name == "hadamard_quant":
        return float(values * (math.log2(named["x"].shape[-1]) + 2))
    return float(values * A_VALUE.get(name, 1))


def is_free(func: OpOverload) -> bool:
    """Whether it only looks at memory in another way, or only takes it."""
    return bool(func.is_view) or func in (
        torch.ops.aten.empty.memory_format,
        torch.ops.aten.empty_like.default,
        torch.ops.aten.new_empty.default,
    )
