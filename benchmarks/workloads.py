"""What the kernel benchmark times: sizes of Mamba-1 models, inputs, and what a call cannot avoid moving."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Code, Range
from dualscale_mamba.formats.control import Control
from dualscale_mamba.formats.dual import Dual
from dualscale_mamba.formats.dual_symmetric import DualSymmetric
from dualscale_mamba.formats.single import Single

# (batch, channels, length), as in the published comparisons; 16 states.
SHAPES = ((1, 1536, 2048), (1, 5120, 2048), (8, 5120, 2048), (1, 5120, 16384))
STATES = 16
DECODE_BATCHES = (1, 16, 64, 256)
# A SiLU output: its minimum, an inlier threshold, an outlier.
RANGE = Range(*(torch.tensor([value], dtype=torch.float64) for value in (-0.2785, 1.5, 8.0)))
MODES = {"single": Single(), "control": Control(), "dual": Dual(), "table (dual_symmetric)": DualSymmetric()}


@dataclass
class Work:
    """What one call does: a function of an input set, and what it cannot avoid."""

    kernel: str
    shape: str
    arm: str
    make: Callable[[], tuple[object, ...]]
    call: Callable[..., object]
    bytes: int
    exponentials: int = 0
    operations: int = 0  # additions and multiplications of the tensor cores
    product: str = "fp16"  # their type: fp16 or int8


def normal(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """Standard normal values on the GPU."""
    return torch.randn(*shape, device="cuda").to(dtype)


def codes(*shape: int) -> Tensor:
    """Codes of roughly normal values on the GPU."""
    return (torch.randn(*shape, device="cuda") * 40).clamp(-128, 127).to(torch.int8)


def rows_of(code: Code) -> Tensor:
    """A code's rows on the GPU."""
    return code.rows.cuda()


def plain() -> Tensor:
    """The code of an ordinary site: symmetric, one scale."""
    zero = torch.zeros(1, dtype=torch.float64)
    return rows_of(Single().fit(Range(zero - 4.0, zero + 4.0, zero + 4.0)))


def silu_codes(code: Tensor, *shape: int) -> Tensor:
    """Codes as the SSM input has them."""
    return ops.encode(F.silu(normal(*shape, dtype=torch.float32) * 1.5), code)


def conv_work() -> Iterator[Work]:
    """Convolution over sequences."""
    for batch, channels, length in SHAPES:
        shape, size = f"{batch}, {channels}, {length}", batch * channels * length
        weight, bias, x_code = normal(channels, 4).float(), normal(channels).float(), plain()
        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))

            def call(
                x: Tensor, code: Tensor = code, own: tuple[Tensor, ...] = (x_code, weight, bias)
            ) -> object:
                return ops.causal_conv1d_encode(x, *own, None, code)

            make = lambda b=batch, n=length, c=channels: (codes(b, n, 2 * c)[..., :c],)  # noqa: E731
            yield Work("conv", shape, name, make, call, 2 * size)

        def half(x: Tensor, weight: Tensor = weight, bias: Tensor = bias) -> object:
            return ops.causal_conv1d_encode(x, None, weight, bias, None, None, torch.float16)

        make = lambda b=batch, n=length, c=channels: (normal(b, n, c),)  # noqa: E731
        yield Work("conv", shape, "ours, fp16 to fp16", make, half, 4 * size)
        yield from conv_peers(batch, channels, length)


def conv_peers(batch: int, channels: int, length: int) -> Iterator[Work]:
    """What others do in fp16, in the layout they like best (channels first)."""
    shape, size = f"{batch}, {channels}, {length}", batch * channels * length
    weight, bias = normal(channels, 4), normal(channels)

    def torch_conv(x: Tensor) -> object:
        return F.silu(F.conv1d(x, weight[:, None], bias, padding=3, groups=channels)[..., :length])

    yield Work(
        "conv", shape, "PyTorch fp16", lambda: (normal(batch, channels, length),), torch_conv, 4 * size
    )
    if (peer := optional("causal_conv1d")) is not None:
        run = lambda x: peer.causal_conv1d_fn(x, weight, bias, activation="silu")  # noqa: E731
        yield Work(
            "conv", shape, "causal_conv1d fp16", lambda: (normal(batch, channels, length),), run, 4 * size
        )


def optional(name: str) -> object | None:
    """A package if it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def scan_work() -> Iterator[Work]:
    """Selective scan over sequences."""
    for batch, channels, length in SHAPES:
        shape, size = f"{batch}, {channels}, {length}", batch * channels * length
        rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)
        D, bias, site = normal(channels).float(), normal(channels).float() - 4, plain()
        rank = channels // 32
        states = 2 * batch * length * STATES

        def make(
            code: Tensor, b: int = batch, n: int = length, c: int = channels, r: int = rank
        ) -> tuple[object, ...]:
            both, wide = codes(b, n, r + 2 * STATES), codes(b, n, 2 * c)
            return (
                silu_codes(code, b, n, c),
                codes(b, n, c),
                both[..., r : r + STATES],
                both[..., r + STATES :],
                wide[..., c:],
            )

        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))

            def call(
                u: Tensor, delta: Tensor, B: Tensor, C: Tensor, z: Tensor,
                code: Tensor = code, own: tuple[Tensor, ...] = (site, rate, D, bias),
            ) -> object:  # fmt: skip
                s, A, D, bias = own
                return ops.selective_scan(
                    u, code, delta, s, A, B, s, C, s, D, z, s, bias, None, torch.float16
                )

            sets = lambda code=code, make=make: make(code)  # noqa: E731
            yield Work("scan", shape, name, sets, call, 5 * size + states, size * STATES)

        def half(*x: Tensor, own: tuple[Tensor, ...] = (rate, D, bias)) -> object:
            u, delta, B, C, z = x
            A, D, bias = own
            none = None
            return ops.selective_scan(
                u, none, delta, none, A, B, none, C, none, D, z, none, bias, none, torch.float16
            )

        floats = lambda code=code, make=make: tuple(each.half() / 40 for each in make(code))  # noqa: E731
        yield Work("scan", shape, "ours, fp16 to fp16", floats, half, 8 * size + 2 * states, size * STATES)
        if (peer := optional("mamba_ssm.ops.selective_scan_interface")) is not None:
            first = lambda m=floats: tuple(each.transpose(1, 2).contiguous() for each in m())  # noqa: E731

            def theirs(*x: Tensor, own: tuple[Tensor, ...] = (rate, D, bias)) -> object:
                u, delta, B, C, z = x
                return peer.selective_scan_fn(u, delta, own[0], B, C, own[1], z, own[2], True)

            yield Work("scan", shape, "mamba_ssm fp16", first, theirs, 8 * size + 2 * states, size * STATES)


def update_work() -> Iterator[Work]:
    """One token: scan and convolution."""
    channels = 5120
    rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)
    D, bias, site = normal(channels).float(), normal(channels).float(), plain()
    weight = normal(channels, 4).float()
    arms = {name: rows_of(MODES[name].fit(RANGE)) for name in ("single", "control", "dual")}
    for batch in DECODE_BATCHES:

        def make(b: int = batch) -> tuple[object, ...]:
            tokens = [codes(b, size) for size in (channels, channels, STATES, STATES, channels)]
            return normal(b, channels, STATES, dtype=torch.float32), *tokens

        moved = batch * channels * (8 * STATES + 5) + channels * 4 * STATES
        for name, code in arms.items():

            def call(
                state: Tensor,
                u: Tensor,
                delta: Tensor,
                B: Tensor,
                C: Tensor,
                z: Tensor,
                code: Tensor = code,
            ) -> object:
                inputs = (u, code, delta, site, rate, B, site, C, site, D, z, site, bias)
                return ops.selective_state_update(state, *inputs, torch.float16)

            yield Work("state update", f"{batch}, {channels}", name, make, call, moved)

        pair = lambda b=batch: (codes(b, channels), codes(b, 3, channels))  # noqa: E731
        for name, code in arms.items():

            def conv(x: Tensor, state: Tensor, code: Tensor = code) -> object:
                return ops.causal_conv1d_update(x, site, state, weight, bias, code)

            yield Work("conv update", f"{batch}, {channels}", name, pair, conv, batch * channels * 8)


def row_work() -> Iterator[Work]:
    """Element-wise operators, norm and Hadamard transform."""
    for rows, channels in ((2048, 1536), (16384, 5120)):
        shape, size = f"{rows}, {channels}", rows * channels
        values = lambda r=rows, c=channels: (normal(r, c),)  # noqa: E731
        for name, mode in MODES.items():
            code = rows_of(mode.fit(RANGE))
            yield Work("encode", shape, name, values, lambda x, k=code: ops.encode(x, k), 3 * size)
            coded = lambda r=rows, c=channels: (codes(r, c),)  # noqa: E731
            yield Work(
                "decode", shape, name, coded, lambda q, k=code: ops.decode(q, k, torch.float16), 3 * size
            )
        many = rows_of(Dual().fit(RANGE)).repeat(channels, 1)
        yield Work("encode", shape, "dual per channel", values, lambda x, k=many: ops.encode(x, k), 3 * size)
        yield from norm_work(rows, channels)


def norm_work(rows: int, channels: int) -> Iterator[Work]:
    """Norm (fp32 residual stream) and Hadamard transform."""
    shape, size, site = f"{rows}, {channels}", rows * channels, plain()
    weight = torch.ones(channels, device="cuda")
    order = 12 if channels % 3 == 0 else 20
    base = torch.where(normal(order, order) > 0, 1.0, -1.0)
    both = lambda: (normal(rows, channels), normal(rows, channels, dtype=torch.float32))  # noqa: E731
    for arm, code, per_token in (("static", site, False), ("per token", None, True)):

        def norm(x: Tensor, residual: Tensor, code: Tensor | None = code, own: bool = per_token) -> object:
            return ops.rms_norm_quant(x, residual, weight, 1e-5, code, own, torch.float32, torch.float16)

        def rotate(x: Tensor, code: Tensor | None = code, own: bool = per_token) -> object:
            return ops.hadamard_quant(x, base, code, own, torch.float16)

        yield Work("norm", shape, arm, both, norm, 11 * size)
        yield Work("hadamard", shape, arm, lambda: (normal(rows, channels),), rotate, 3 * size)


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {
    "conv": conv_work,
    "scan": scan_work,
    "update": update_work,
    "rows": row_work,
}
