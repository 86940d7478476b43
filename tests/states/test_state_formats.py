"""The group ``state``: what it refuses, that it goes through saving, generating and graphs, and what it measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from state_models import FORMATS, SOURCES, encoded, ids, plain, said

from dualscale_mamba import ops
from dualscale_mamba.configuration.startup import CONF
from dualscale_mamba.configuration.validate import problems
from dualscale_mamba.evaluation.base import Context
from dualscale_mamba.evaluation.octaves import Octaves
from dualscale_mamba.evaluation.reference import Reference
from dualscale_mamba.evaluation.state_drift import StateDrift
from dualscale_mamba.models import graphs
from dualscale_mamba.models.capture import Recorded
from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.graphs import GraphedLM
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.tasks import run

Compose = Callable[..., DictConfig]
MISTAKES = {
    "state.rounding=up": "state.rounding=up: allowed is one of nearest, stochastic, error_feedback",
    "state.scale=half": "state.scale=half: allowed is one of static, dynamic",
    "state.residual_bits=2": "state.residual_bits=2: allowed is one of 4, 8",
    "state.headroom=0.5": "state.headroom=0.5: allowed is a number in [1, 16]",
    "state.every=0": "state.every=0: allowed is a whole number above 0",
    "state.seed=-1": "state.seed=-1: allowed is a whole number not below 0",
    "state.mode._target_=dualscale_mamba.formats.dual.Dual": "state.mode=dual: allowed is a format for values of both",
    "state.mode._target_=dualscale_mamba.formats.unquantized.Unquantized": "Use state=unquantized.",
    "model=mamba2_tiny model.state_dtype=float16": "model.state_dtype=float16: allowed is float32 where the state is",
    "task=calibrate": "task=calibrate: allowed is ptq, generate or profile where the state is encoded",
}
SMALL = (
    *("precision=none", "scale_mode=fp16", "tracker=json", "evaluation=[state_drift]", "profiling=[memory]"),
    *(
        "evaluation.state_drift.samples=2",
        "evaluation.state_drift.length=12",
        "profiling.memory.measure=false",
    ),
    *(
        "calibration.samples=2",
        "calibration.length=16",
        "calibration.cache=false",
        "ops=reference",
        "device=cpu",
    ),
    "evaluation_cache_gib=0",
)


@pytest.mark.parametrize("override", MISTAKES)
def test_mistake_is_one_sentence(composed: Compose, override: str) -> None:
    found = problems(composed("state=int8", *override.split()))
    assert len(found) == 1, found
    assert MISTAKES[override] in found[0]


def test_a_simulated_code_cannot_be_stored(composed: Compose) -> None:
    target = "state.mode={_target_: dualscale_mamba.formats.three_segments.ThreeSegments}"
    (found,) = problems(composed("state=int8", f"~{'state.mode'}", f"+{target}"))
    assert "a format of eight bits, which can be stored" in found


@pytest.mark.parametrize("path", sorted((CONF / "state").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_state_goes_with_every_family(composed: Compose, path: Path) -> None:
    for model in ("mamba1_tiny", "mamba2_tiny"):
        for precision in ("none", "w8a8"):
            assert problems(composed(f"state={path.stem}", f"model={model}", f"precision={precision}")) == []


@pytest.fixture(params=["recorded", pytest.param("cuda", marks=pytest.mark.gpu)])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Where graphs are made: of recordings on the CPU, or on a GPU."""
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device on this machine")
        with ops.implementation("compiled"):
            yield "cuda"
        return

    def record(work: Callable[[], torch.Tensor], stream: object, pool: object, prompt: object) -> Recorded:
        work()
        result = torch.full_like(work(), torch.nan)
        return Recorded(lambda: result.copy_(work()), result, lambda: None, pool, prompt)  # type: ignore[arg-type]

    monkeypatch.setattr(graphs, "record", record)
    monkeypatch.setattr(graphs, "new_stream", lambda device: None)
    monkeypatch.setattr(graphs, "why_not", lambda model: None)
    yield "cpu"


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("family", SOURCES)
def test_graphs_keep_the_same_codes(kind: str, family: str, name: str) -> None:
    """Two texts in turn in the static states, one of them behind a replayed prefill."""
    types = {"dtype": torch.float16} if kind == "cuda" else {}
    model = encoded(family, name, kind, **types)
    fast = GraphedLM(model)
    fast.prepare(2, 5)
    prompts = [ids(model, 2, 5, seed) for seed in (1, 2)]
    tokens = ids(model, 2, 4, seed=3)
    expected = [said(model, prompt, tokens) for prompt in prompts]
    caches = [fast.allocate_cache(2) for _ in prompts]
    found = [[fast(p, cache, last_only=True)[:, -1]] for p, cache in zip(prompts, caches, strict=True)]
    for at in range(tokens.shape[1]):
        for own, cache in zip(found, caches, strict=True):
            own.append(fast.step(tokens[:, at], cache))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    own = model.allocate_cache(2)
    model(prompts[1], own, last_only=True)
    for at in range(tokens.shape[1]):
        model.step(tokens[:, at], own)
    kept = fast.states(caches[1])
    for mine, static in zip(own.layers, kept.layers, strict=True):
        assert {n: t.dtype for n, t in mine.tensors().items()} == {
            n: t.dtype for n, t in static.tensors().items()
        }
        pairs = zip(mine.tensors().values(), static.tensors().values(), strict=True)
        assert all(torch.equal(a.view(torch.uint8), b.contiguous().view(torch.uint8)) for a, b in pairs)


@pytest.mark.parametrize("family", SOURCES)
def test_it_generates(family: str) -> None:
    model = encoded(family, "int8_stochastic")
    made = [torch.stack(list(generate(model, ids(model, 2, 4), max_new_tokens=4))) for _ in range(2)]
    assert torch.equal(*made)
    assert made[0].shape == (4, 2)


PROGRAM = """
import sys
import torch
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from state_models import ids, said
from dualscale_mamba import ops
from dualscale_mamba.models.pretrained import load_pretrained
with ops.implementation("reference"):
    model = load_pretrained(sys.argv[2]).model
    print(float(torch.stack(said(model, ids(model, 2, 6), ids(model, 2, 3, 1))).double().abs().sum()).hex())
    print(model.blocks()[1].mixer.state_store.facts())
"""


@pytest.mark.parametrize(("model", "state"), [("mamba1_tiny", "int8_dual"), ("mamba2_tiny", "fp8_e5m2")])
def test_a_checkpoint_keeps_its_states(composed: Compose, tmp_path: Path, model: str, state: str) -> None:
    """Saved by a run, read by another process: the same logits by steps, and the same settings from the folder."""
    target = tmp_path / "saved"
    config = composed(*SMALL, f"model={model}", f"state={state}", f"save={target}", "state.scale=static")
    run(config)
    loaded = load_pretrained(str(target)).model
    own = float(torch.stack(said(loaded, ids(loaded, 2, 6), ids(loaded, 2, 3, 1))).double().abs().sum()).hex()
    line = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(target)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == own
    store = loaded.blocks()[1].mixer.state_store
    assert str(store.facts()) == done.stdout.splitlines()[1]
    assert store.coding is not None
    assert store.scale is not None
    assert (store.layer, store.coding.scale, len(store.scale)) == (1, "static", store.scale.shape[0])
    again = composed(f"model={target}")
    assert again.state == config.state
    assert problems(again) == []
    (refused,) = problems(composed(f"model={target}", "state.scale=dynamic"))
    assert "state.scale=dynamic: allowed is static" in refused


def test_a_run_measures_and_records(composed: Compose, tmp_path: Path) -> None:
    run(composed(*SMALL, "state=int8_stochastic"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    metrics = {name: each["value"] for name, each in result["metrics"].items()}
    name = "divergence/generated_heldout_steps"
    assert metrics[f"{name}/kl"] > 0
    assert metrics[f"{name}/state_bits"] == result["fairness"]["state_bits"] == 9.0
    assert {f"{name}/{key}" for key in ("kl_last", "kl_slope", "state_error_last", "top1_agreement")} <= set(
        metrics
    )
    assert [row["name"] for row in result["states"]] == [f"layers.{at}.mixer.state" for at in range(6)]
    rows = [json.loads(x) for x in (tmp_path / "run" / "items_state_drift.jsonl").read_text().splitlines()]
    assert [row["window"] for row in rows] == [0, 1]
    assert all(len(row["kl_octaves"]) == len(Octaves(12, 8).ends) for row in rows)
    for file in ("curves.json", "state_drift.png", "state_drift.html"):
        assert (tmp_path / "run" / file).stat().st_size > 100
    assert "http-equiv" not in (tmp_path / "run" / "state_drift.html").read_text()[:2000]


@pytest.mark.parametrize("family", SOURCES)
def test_values_do_not_drift(family: str) -> None:
    """Two equal models agree bitwise at every step; an encoded one does not."""
    tokenizer = load_pretrained(SOURCES[family]).tokenizer
    drift = StateDrift("generated_heldout", samples=2, length=10, batch_size=2)

    def measured(model: object) -> dict[str, float]:
        reference = Reference.live(plain(family))
        context = Context(model, reference, tokenizer, torch.device("cpu"))  # type: ignore[arg-type]
        found = drift(context).metrics
        return {key.rpartition("/")[2]: metric.value for key, metric in found.items()}

    none = measured(plain(family))
    assert none["kl"] == none["kl_last"] == none["state_error_last"] == none["kl_slope"] == 0.0
    assert none["top1_agreement"] == 1.0
    some = measured(encoded(family, "fp8_e5m2_stochastic"))
    assert some["kl"] > 0
    assert 0.001 < some["state_error_last"] < 1


@pytest.mark.parametrize("length", [2, 3, 16, 17, 100, 1024])
def test_octaves_cover_every_position(length: int) -> None:
    octaves = Octaves(length, looks=3)
    assert sum(octaves.sizes) == octaves.ends[-1] == length
    assert all(size > 0 for size in octaves.sizes)
    assert list(octaves.looks) == sorted(set(octaves.looks))
    assert set(range(length)) >= set(octaves.looks)
    assert {end - 1 for end in octaves.ends} <= set(octaves.looks)
    assert octaves.of_positions(torch.ones(length, 2)).shape == (len(octaves.ends), 2)


def test_slope_is_the_exponent() -> None:
    octaves = Octaves(1024, looks=1)
    assert octaves.slope([end**0.5 for end in octaves.ends]) == pytest.approx(0.5)
    assert octaves.slope([0.0] * len(octaves.ends)) == 0.0
