"""The mixer of Mamba-2 against its equations in fp64, with every choice of codes and at every length."""

from __future__ import annotations

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from coded import IDS, channel_code, channel_table, even_table, observed_maxima, plain_code
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.formats.base import Code
from dualscale_mamba.models.cache import LayerCache
from dualscale_mamba.models.config import Mamba2Config
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.mamba2 import Mamba2Mixer
from dualscale_mamba.models.pretrained import Pretrained
from dualscale_mamba.quantization.site import Site

CONFIG = Mamba2Config(d_model=16, n_layer=1, vocab_size=8, d_state=8, head_dim=8, n_groups=2, chunk_size=4)
LIMITS = {"x": 4.0, "B": 3.0, "C": 3.0}
LENGTH = 9


def make(
    dtype: torch.dtype = torch.float32, state_dtype: torch.dtype = torch.float32, **sizes: Any
) -> Mamba2Mixer:
    """A mixer with weights that make every part of it matter."""
    config = Mamba2Config(**{**vars(CONFIG), "norm_group_size": 0, **sizes})
    mixer = Mamba2Mixer(config, dtype, state_dtype)
    random = torch.Generator().manual_seed(3)
    for name, value in mixer.state_dict().items():
        values = torch.randn(value.shape, generator=random)
        if name == "A_log":
            values = values.abs()
        value.copy_(values / math.sqrt(value.shape[-1]) * 2 if value.dim() == 2 else values)
    return mixer


def hidden(length: int = LENGTH, rows: int = 2, seed: int = 4) -> Tensor:
    return torch.randn(rows, length, CONFIG.d_model, generator=torch.Generator().manual_seed(seed))


def as_coded(value: Tensor, site: Site) -> Tensor:
    """What remains of a value after the site."""
    rows = site.output_code()
    return value if rows is None else ops.decode(ops.encode(value, rows), rows)


def true_mixer(mixer: Mamba2Mixer, inputs: Tensor, group_size: int = 0) -> Tensor:
    """Section 7 of the paper token by token in fp64, rounded to codes at x, B and C."""
    E, GN, _ = mixer.conv_widths
    (H, P, N), G = mixer.state_shape, mixer.n_groups
    state = {name: value.double() for name, value in mixer.state_dict().items()}
    z, xbc, dt = (inputs.double() @ state["in_proj.weight"].T).split([E, E + 2 * GN, H], dim=-1)
    width = state["conv1d.weight"].shape[1]
    padded = F.pad(xbc, (0, 0, width - 1, 0)).transpose(1, 2)
    convolved = F.silu(
        F.conv1d(padded, state["conv1d.weight"][:, None], state["conv1d.bias"], groups=E + 2 * GN)
    )
    parts = convolved.transpose(1, 2).float().split([E, GN, GN], dim=-1)
    sites = (mixer.x, mixer.B, mixer.C)
    x, B, C = (as_coded(part, site).double() for part, site in zip(parts, sites, strict=True))
    delta = F.softplus(dt + state["dt_bias"]).clamp(*mixer.delta_limits)
    h, outputs = x.new_zeros(x.shape[0], H, P, N), []
    for t in range(x.shape[1]):
        x_t = x[:, t].unflatten(-1, (H, P))
        B_t, C_t = (v[:, t].unflatten(-1, (G, N)).repeat_interleave(H // G, dim=1) for v in (B, C))
        decay = torch.exp(-delta[:, t] * state["A_log"].exp())
        h = decay[..., None, None] * h + (delta[:, t, :, None] * x_t)[..., None] * B_t[:, :, None]
        outputs.append((torch.einsum("bhpn,bhn->bhp", h, C_t) + state["D"][:, None] * x_t).flatten(1))
    y, gate, size = torch.stack(outputs, dim=1), F.silu(z), group_size or E // G
    y = y if mixer.norm.norm_before_gate else y * gate
    groups = y.unflatten(-1, (-1, size))
    y = (groups * torch.rsqrt(groups.square().mean(-1, keepdim=True) + mixer.norm.eps)).flatten(-2)
    y = y * state["norm.weight"] * (gate if mixer.norm.norm_before_gate else 1.0)
    return (y @ state["out_proj.weight"].T).float()


def stepped(mixer: Mamba2Mixer, inputs: Tensor, cache: LayerCache) -> Tensor:
    return torch.stack([mixer(inputs[:, t], cache) for t in range(inputs.shape[1])], dim=1)


def code_of(kind: str, name: str, channels: int) -> Code | None:
    limit = LIMITS[name]
    return {
        "off": lambda: None,
        "knee": lambda: plain_code(limit / 400, ratio=6.0, zero=-100.0, knee=50.0),
        "knees": lambda: channel_code(limit, channels),
        "table": lambda: even_table(limit),
        "tables": lambda: channel_table(limit, channels),
    }[kind]()


def give_codes(mixer: Mamba2Mixer, kinds: tuple[str, ...]) -> None:
    for name, kind, channels in zip(LIMITS, kinds, mixer.conv_widths, strict=True):
        getattr(mixer, name).set_code(code_of(kind, name, channels))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {"n_groups": 1},
        {"n_groups": 4, "head_dim": 4},
        {"norm_before_gate": True},
        {"norm_group_size": 8},
        {"delta_min": 0.4, "delta_max": 0.9},
        {"head_dim": 32, "n_groups": 1, "chunk_size": 256},
        {"d_conv": 2, "expand": 1, "d_state": 5},
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["reference", "compiled"])
def test_equations(sizes: dict[str, Any], implementation: str) -> None:
    mixer, inputs = make(**sizes), hidden()
    expected, cache = true_mixer(mixer, inputs, sizes.get("norm_group_size", 0)), mixer.allocate_state(2)
    assert mixer.norm.norm_before_gate == sizes.get("norm_before_gate", False)
    with ops.implementation(implementation):
        torch.testing.assert_close(mixer(inputs), expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(stepped(mixer, inputs, cache), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["reference", "compiled"])
def test_trained_model_in_fp64(tiny2: Pretrained, implementation: str) -> None:
    """Closer than the golden outputs, which were made with TF32."""
    with ops.implementation(implementation):
        logits = tiny2.model(IDS)
    exact = copy.deepcopy(tiny2.model)
    assert isinstance(exact, MambaLM)
    for block in exact.blocks():
        mixer = block.mixer
        assert isinstance(mixer, Mamba2Mixer)
        mixer.forward = lambda inputs, _state, mixer=mixer: true_mixer(mixer, inputs)  # type: ignore[method-assign]
    torch.testing.assert_close(logits, exact(IDS), atol=5e-5, rtol=0)


def test_limits_of_delta_bind() -> None:
    free, bound = make(), make(delta_min=0.4, delta_max=0.9)
    assert (free(hidden()) - bound(hidden())).abs().max() > 0.01


@pytest.mark.parametrize("x", ["off", "knee", "knees", "table", "tables"])
@pytest.mark.parametrize("implementation", ["reference", "compiled"])
def test_every_mixture_of_codes_for_x_b_c(x: str, implementation: str) -> None:
    mixer, inputs = make(), hidden()
    for B, C in product(["off", "knee", "knees", "table", "tables"], repeat=2):
        give_codes(mixer, (x, B, C))
        expected, cache = true_mixer(mixer, inputs), mixer.allocate_state(2)
        with ops.implementation(implementation):
            parts = [mixer(inputs[:, :5], cache), stepped(mixer, inputs[:, 5:], cache)]
        # A value at the border of two codes may fall to either side: single outputs may differ by a step of theirs.
        error = (torch.cat(parts, dim=1) - expected).abs()
        assert error.mean() < 1e-3, (x, B, C)
        assert error.max() < 0.15, (x, B, C)


@pytest.mark.parametrize(
    ("kinds", "calls"),
    [
        (("off", "off", "off"), 1),
        (("knees", "knee", "knee"), 1),
        (("table", "tables", "table"), 1),
        (("knee", "off", "off"), 2),
        (("knee", "knees", "table"), 2),
        (("knee", "off", "knee"), 3),
    ],
)
def test_one_convolution_a_run_and_no_copies(
    kinds: tuple[str, ...], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixer, seen = make(), {"conv": [], "scan": []}  # type: ignore[var-annotated]
    convolve, scan = ops.causal_conv1d_encode, ops.ssd_scan

    def watched_conv(x: Tensor, *rest: Any) -> Tensor:
        y = convolve(x, *rest)
        seen["conv"].append((x, y))
        return y

    def watched_scan(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        seen["scan"].append((x, rest[4], rest[6]))
        return scan(x, *rest)

    monkeypatch.setattr(ops, "causal_conv1d_encode", watched_conv)
    monkeypatch.setattr(ops, "ssd_scan", watched_scan)
    give_codes(mixer, kinds)
    mixer(hidden())
    assert len(seen["conv"]) == calls
    inputs, outputs = ({v.untyped_storage().data_ptr() for v in vs} for vs in zip(*seen["conv"], strict=True))
    assert len(inputs) == 1  # each reads its channels of in_proj's result
    assert {v.untyped_storage().data_ptr() for v in seen["scan"][0]} == outputs
    codes = [site.output_code() for site in (mixer.x, mixer.B, mixer.C)]
    kept = mixer._runs(codes, list)
    assert len(kept) == calls  # and joined once, not in every call


def test_a_new_code_is_used_at_once() -> None:
    mixer, inputs = make(), hidden()
    give_codes(mixer, ("knee", "knee", "knee"))
    mixer(inputs)
    give_codes(mixer, ("knee", "knees", "knee"))
    assert (mixer(inputs) - true_mixer(mixer, inputs)).abs().mean() < 1e-3


@pytest.mark.parametrize("name", ["in_proj_input", "z", "conv_input", "dt", "out_proj_input"])
@pytest.mark.parametrize("kind", ["knee", "knees", "table", "tables"])
def test_every_family_of_codes_at_the_other_sites(tiny2: Pretrained, name: str, kind: str) -> None:
    model = copy.deepcopy(tiny2.model)
    assert isinstance(model, MambaLM)
    limit = observed_maxima(model)[f"layers.1.mixer.{name}"]
    mixer = model.blocks()[1].mixer
    widths = dict(zip(("z", "conv_input", "dt"), mixer.widths, strict=True))
    channels = widths.get(name) or {"in_proj_input": 256, "out_proj_input": 512}[name]
    code = {
        "knee": plain_code(limit / 127),
        "knees": channel_code(limit, channels),
        "table": even_table(limit),
        "tables": channel_table(limit, channels),
    }[kind]
    getattr(mixer, name).set_code(code)
    before, whole, cache = tiny2.model(IDS), model(IDS), model.allocate_cache(2)
    assert 0 < (before.softmax(-1) - whole.softmax(-1)).abs().sum(-1).mean() < 0.1
    parts = [model(IDS[:, :7], cache)] + [
        model.step(IDS[:, t], cache)[:, None] for t in range(7, IDS.shape[1])
    ]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-2, rtol=0)


def test_norm_emits_codes_where_nothing_rotates(monkeypatch: pytest.MonkeyPatch) -> None:
    mixer, inputs = make(), hidden()
    expected = true_mixer(mixer, inputs)

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("the norm shall encode")

    monkeypatch.setattr(ops, "encode", refuse)
    for code, per_token in ((plain_code(0.06), False), (plain_code(1.0), True)):
        mixer.out_proj_input.set_code(code, per_token=per_token)
        assert (mixer(inputs) - expected).abs().mean() < 0.1


SWEEPS = [("reference", torch.float32), ("compiled", torch.float32), ("compiled", torch.float16)]


@pytest.mark.parametrize(("implementation", "dtype"), SWEEPS)
def test_every_length(device: torch.device, implementation: str, dtype: torch.dtype) -> None:
    """Chunks end anywhere: a prefill of each length gives the same values, and a state that goes on the same way."""
    longest, tolerance = 600, 2e-4 if dtype == torch.float32 else 2e-2
    mixer = make(dtype, d_state=4, chunk_size=64).to(device)
    inputs = hidden(longest + 1, rows=1).to(device, dtype)
    with ops.implementation(implementation):
        whole = mixer(inputs)
        for length in range(1, longest + 1):
            cache = mixer.allocate_state(1)
            start = max(length - 3, 0)
            part = mixer(inputs[:, :length], cache)
            torch.testing.assert_close(
                part[:, start:], whole[:, start:length], atol=tolerance, rtol=tolerance
            )
            following = mixer(inputs[:, length], cache)
            torch.testing.assert_close(following, whole[:, length], atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("implementation", ["reference", "compiled"])
def test_a_half_precision_state_stays_close(tiny2: Pretrained, implementation: str) -> None:
    exact = tiny2.model
    assert isinstance(exact, MambaLM)
    model = MambaLM(exact.config, state_dtype=torch.float16)
    model.load_state_dict(exact.state_dict())
    with ops.implementation(implementation):
        whole, cache = exact(IDS), model.allocate_cache(2)
        assert {state.ssm.dtype for state in cache.layers} == {torch.float16}
        assert {state.ssm.shape for state in cache.layers} == {(2, 16, 32, 64)}
        parts = [model(IDS[:, :9], cache)] + [
            model.step(IDS[:, t], cache)[:, None] for t in range(9, IDS.shape[1])
        ]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-2, rtol=0)
    assert not torch.equal(torch.cat(parts, dim=1), whole)
