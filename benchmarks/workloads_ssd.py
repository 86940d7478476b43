"""What the kernel benchmark times of Mamba-2: sizes of mamba2-2.7b, inputs, and what a call cannot avoid moving."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from workloads import DECODE_BATCHES, MODES, RANGE, Work, codes, normal, optional, plain, rows_of

from dualscale_mamba import ops

HEADS, HEAD_DIM, STATES, CHUNK = 80, 64, 128, 256
CHANNELS = HEADS * HEAD_DIM
PARTS = (CHANNELS, STATES, STATES)  # x, B and C lie side by side, as the convolution leaves them
SHAPES = ((8, 2048), (1, 2048))  # batch, length
SCAN_PEER, UPDATE_PEER = "mamba_ssm.ops.triton.ssd_combined", "mamba_ssm.ops.triton.selective_state_update"


@dataclass
class Head:
    """Parameters of a layer's heads."""

    A: Tensor
    D: Tensor
    bias: Tensor

    @classmethod
    def random(cls) -> Head:
        """Decays and steps as trained models begin."""
        return cls(
            -torch.linspace(1, 16, HEADS, device="cuda"),
            torch.ones(HEADS, device="cuda"),
            normal(HEADS, dtype=torch.float32) - 4,
        )


def arms() -> Iterator[tuple[str, tuple[Tensor, Tensor, Tensor]]]:
    """Codes of x, B and C."""
    for name in ("single", "control", "dual"):
        code = rows_of(MODES[name].fit(RANGE))
        yield name, (code, code, code)
    many = rows_of(MODES["dual"].fit(RANGE))
    yield "dual per channel", (many.repeat(CHANNELS, 1), many.repeat(STATES, 1), many.repeat(STATES, 1))


def coded(*shape: int) -> tuple[Tensor, ...]:
    """x, B, C as views of one tensor, and delta."""
    return (*codes(*shape, sum(PARTS)).split(PARTS, dim=-1), codes(*shape, HEADS))


def halves(*shape: int) -> tuple[Tensor, ...]:
    """The same in fp16."""
    return tuple(each.half() / 40 for each in coded(*shape))


def scan_work() -> Iterator[Work]:
    """Sequences."""
    head, site = Head.random(), plain()
    end = (head.D, head.bias, 0.0, inf, 1, None, CHUNK, torch.float32, torch.float16)
    for batch, length in SHAPES:
        shape, tokens = f"{batch}, {length}", batch * length
        state = 4 * batch * CHANNELS * STATES
        moved = tokens * (sum(PARTS) + HEADS + 2 * CHANNELS) + state
        for name, (x_code, B_code, C_code) in arms():

            def call(
                x: Tensor, B: Tensor, C: Tensor, delta: Tensor,
                own: tuple[Tensor, ...] = (x_code, B_code, C_code),
            ) -> object:  # fmt: skip
                return ops.ssd_scan(x, own[0], delta, site, head.A, B, own[1], C, own[2], *end)

            yield Work("ssd scan", shape, name, lambda b=batch, n=length: coded(b, n), call, moved)

        def half(x: Tensor, B: Tensor, C: Tensor, delta: Tensor) -> object:
            return ops.ssd_scan(x, None, delta, None, head.A, B, None, C, None, *end)

        moved += tokens * (sum(PARTS) + HEADS)
        floats: Callable[[], tuple[object, ...]] = lambda b=batch, n=length: halves(b, n)  # noqa: E731
        yield Work("ssd scan", shape, "ours, fp16 to fp16", floats, half, moved)
        if (peer := optional(SCAN_PEER)) is not None:

            def theirs(x: Tensor, B: Tensor, C: Tensor, delta: Tensor, run: object = peer) -> object:
                x = x.unflatten(-1, (HEADS, HEAD_DIM))
                rest = (B.unsqueeze(2), C.unsqueeze(2), CHUNK, head.D, None, head.bias)
                return run.mamba_chunk_scan_combined(  # type: ignore[attr-defined]
                    x, delta, head.A, *rest, dt_softplus=True, return_final_states=True
                )

            yield Work("ssd scan", shape, "mamba_ssm fp16, chunks of 256", floats, theirs, moved)


def update_work() -> Iterator[Work]:
    """One token; states are fp16, as the peer's, or fp32."""
    head, site = Head.random(), plain()
    end = (head.D, head.bias, 0.0, inf, 1, torch.float16)
    for batch in DECODE_BATCHES:
        for kind, size in ((torch.float16, 2), (torch.float32, 4)):
            shape = f"{batch}, fp{8 * size} state"
            moved = batch * CHANNELS * (2 * size * STATES + 3)

            def make(
                inputs: Callable[..., tuple[Tensor, ...]] = coded, b: int = batch, kind: torch.dtype = kind
            ) -> tuple[object, ...]:
                return normal(b, HEADS, HEAD_DIM, STATES, dtype=kind), *inputs(b)

            for name, (x_code, B_code, C_code) in arms():

                def call(
                    state: Tensor, x: Tensor, B: Tensor, C: Tensor, delta: Tensor,
                    own: tuple[Tensor, ...] = (x_code, B_code, C_code),
                ) -> object:  # fmt: skip
                    inputs = (x, own[0], delta, site, head.A, B, own[1], C, own[2])
                    return ops.ssd_state_update(state, *inputs, *end)

                yield Work("ssd update", shape, name, make, call, moved)
            floats: Callable[[], tuple[object, ...]] = lambda m=make: m(halves)  # noqa: E731

            def half(state: Tensor, x: Tensor, B: Tensor, C: Tensor, delta: Tensor) -> object:
                return ops.ssd_state_update(state, x, None, delta, None, head.A, B, None, C, None, *end)

            yield Work("ssd update", shape, "ours, fp16 to fp16", floats, half, moved)
            yield from update_peer(shape, head, floats, moved)


def update_peer(shape: str, head: Head, make: Callable[[], tuple[object, ...]], moved: int) -> Iterator[Work]:
    """mamba_ssm's step; parameters of heads are expanded, which lets it read each once."""
    if (peer := optional(UPDATE_PEER)) is None:
        return
    A = head.A[:, None, None].expand(HEADS, HEAD_DIM, STATES)
    D, bias = (each[:, None].expand(HEADS, HEAD_DIM) for each in (head.D, head.bias))

    def theirs(state: Tensor, x: Tensor, B: Tensor, C: Tensor, delta: Tensor) -> object:
        x, delta = x.unflatten(-1, (HEADS, HEAD_DIM)), delta[..., None].expand(-1, -1, HEAD_DIM)
        return peer.selective_state_update(
            state, x, delta, A, B[:, None], C[:, None], D, dt_bias=bias, dt_softplus=True
        )

    yield Work("ssd update", shape, "mamba_ssm fp16", make, theirs, moved)


def norm_work() -> Iterator[Work]:
    """Gated norm."""
    weight, site = torch.ones(CHANNELS, device="cuda"), plain()
    for rows in (64, 16384):
        size = rows * CHANNELS
        both = lambda r=rows: (normal(r, CHANNELS), codes(r, CHANNELS))  # noqa: E731
        for arm, code, per_token in (("static", site, False), ("per token", None, True)):
            for groups in (1, 8):

                def call(
                    x: Tensor,
                    z: Tensor,
                    code: Tensor | None = code,
                    own: bool = per_token,
                    groups: int = groups,
                ) -> object:
                    return ops.gated_rms_norm_quant(
                        x, z, site, weight, 1e-5, CHANNELS // groups, False, code, own, torch.float16
                    )

                yield Work(
                    "gated norm", f"{rows}, {CHANNELS}", f"{arm}, groups: {groups}", both, call, 4 * size
                )


FAMILIES: dict[str, Callable[[], Iterator[Work]]] = {
    "ssd_scan": scan_work,
    "ssd_update": update_work,
    "gated_norm": norm_work,
}
