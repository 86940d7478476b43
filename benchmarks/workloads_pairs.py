"""What the kernel benchmark times of codes with selectors beside them: more arms of Mamba-1's convolution and scan."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from workloads import DECODE_BATCHES, RANGE, STATES, Work, codes, normal, plain

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Range
from dualscale_mamba.formats.dual_mask import DualMask
from dualscale_mamba.formats.dual_sparse import capacity_for
from dualscale_mamba.formats.pair import PairCode, pair_code, pair_rows

SHAPES = ((1, 1536, 2048), (8, 5120, 2048))
CHANNELS = 5120  # of one token
SHARES = {"dual_sparse 0.1 %": 0.001, "dual_sparse 1 %": 0.01, "dual_sparse 5 %": 0.05}


def silu_values(*shape: int) -> Tensor:
    """Values as the SSM input has them."""
    return F.silu(normal(*shape, dtype=torch.float32) * 1.5)


def arms(values: Tensor) -> dict[str, PairCode]:
    """Codes for values of this kind; the thresholds of lists leave the shares that they are named after."""
    made = {"dual_mask": DualMask().fit(RANGE).to("cuda")}
    size = values.abs().flatten().double().cpu()
    for name, share in SHARES.items():
        inner = size.kthvalue(int((1 - share) * size.numel())).values[None]
        rows = pair_rows(Range(-inner, inner, size.max()[None]), 1.25)
        made[name] = pair_code(rows, capacity_for(share)).to("cuda")
    return made


def conv_work() -> Iterator[Work]:
    """Convolution over sequences."""
    for batch, channels, length in SHAPES:
        weight, bias, site = normal(channels, 4).float(), normal(channels).float(), plain()
        sample = ops.causal_conv1d_encode(codes(1, 512, channels), site, weight, bias)
        for name, pair in arms(sample).items():

            def call(
                x: Tensor, pair: PairCode = pair, own: tuple[Tensor, ...] = (site, weight, bias)
            ) -> object:
                side = pair.side_data(x.shape[0], x.shape[1], x.shape[2])
                return ops.causal_conv1d_encode(x, *own, None, pair.rows, torch.float16, *side)

            make = lambda b=batch, n=length, c=channels: (codes(b, n, 2 * c)[..., :c],)  # noqa: E731
            moved = 2 * batch * channels * length + int(pair.side_bytes(batch, length, channels))
            yield Work("conv", f"{batch}, {channels}, {length}", name, make, call, moved)


def coded(pair: PairCode, batch: int, length: int, channels: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Codes, mask and lists of the SSM input."""
    side = pair.side_data(batch, length, channels)
    assert side.mask is not None
    u = ops.encode_pair(silu_values(batch, length, channels), pair.rows, side.mask, side.outliers)
    return u, side.mask, side.outliers


def scan_work() -> Iterator[Work]:
    """Selective scan over sequences."""
    for batch, channels, length in SHAPES:
        size, rank = batch * channels * length, channels // 32
        rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(channels, 1)
        own = (plain(), rate, normal(channels).float(), normal(channels).float() - 4)
        for name, pair in arms(silu_values(1, 512, channels)).items():

            def make(
                pair: PairCode = pair, b: int = batch, n: int = length, c: int = channels, r: int = rank
            ) -> tuple[object, ...]:
                both, wide = codes(b, n, r + 2 * STATES), codes(b, n, 2 * c)
                rest = (both[..., r : r + STATES], both[..., r + STATES :], wide[..., c:])
                return (*coded(pair, b, n, c), codes(b, n, c), *rest)

            def call(
                u: Tensor, mask: Tensor, lists: Tensor | None, delta: Tensor, B: Tensor, C: Tensor, z: Tensor,
                rows: Tensor = pair.rows, own: tuple[Tensor, ...] = own,
            ) -> object:  # fmt: skip
                s, A, D, bias = own
                inputs = (u, rows, delta, s, A, B, s, C, s, D, z, s, bias)
                return ops.selective_scan(*inputs, None, torch.float16, mask, lists)

            moved = 5 * size + 2 * batch * length * STATES + int(pair.side_bytes(batch, length, channels))
            yield Work("scan", f"{batch}, {channels}, {length}", name, make, call, moved, size * STATES)


def update_work() -> Iterator[Work]:
    """One token: scan and convolution."""
    rate = -torch.arange(1, STATES + 1, device="cuda").float().repeat(CHANNELS, 1)
    D, bias, site = normal(CHANNELS).float(), normal(CHANNELS).float(), plain()
    weight = normal(CHANNELS, 4).float()
    for batch in DECODE_BATCHES:
        shape = f"{batch}, {CHANNELS}"
        for name, pair in arms(silu_values(1, 512, CHANNELS)).items():
            beside = int(pair.side_bytes(batch, 1, CHANNELS))

            def make(pair: PairCode = pair, b: int = batch) -> tuple[object, ...]:
                u, mask, lists = coded(pair, b, 1, CHANNELS)
                rest = [codes(b, size) for size in (CHANNELS, STATES, STATES, CHANNELS)]
                return normal(b, CHANNELS, STATES, dtype=torch.float32), u[:, 0], mask, lists, *rest

            def call(
                state: Tensor, u: Tensor, mask: Tensor, lists: Tensor | None, delta: Tensor, B: Tensor, C: Tensor,
                z: Tensor, rows: Tensor = pair.rows,
            ) -> object:  # fmt: skip
                inputs = (u, rows, delta, site, rate, B, site, C, site, D, z, site, bias)
                return ops.selective_state_update(state, *inputs, torch.float16, mask, lists)

            moved = batch * CHANNELS * (8 * STATES + 5) + CHANNELS * 4 * STATES + beside
            yield Work("state update", shape, name, make, call, moved)

            def conv(x: Tensor, state: Tensor, pair: PairCode = pair) -> object:
                side = pair.side_data(x.shape[0], 1, CHANNELS)
                return ops.causal_conv1d_update(x, site, state, weight, bias, pair.rows, torch.float16, *side)

            tokens = lambda b=batch: (codes(b, CHANNELS), codes(b, 3, CHANNELS))  # noqa: E731
            yield Work("conv update", shape, name, tokens, conv, batch * CHANNELS * 8 + beside)


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {
    "conv": conv_work,
    "scan": scan_work,
    "update": update_work,
}
