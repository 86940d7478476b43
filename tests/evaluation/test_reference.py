"""The unquantized model is asked once for a study; what it said is bitwise what it would say."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from safetensors import SafetensorError
from toy import VOCABULARY, Bigram, Bytes

from dualscale_mamba.configuration import startup
from dualscale_mamba.evaluation.base import Context, Evaluated
from dualscale_mamba.evaluation.divergence import Divergence
from dualscale_mamba.evaluation.reference import Reference, prune
from dualscale_mamba.tasks import ptq, session

BATCHES = 3
TOKEN_BYTES = VOCABULARY * 4


class Counted:
    """A reference over a toy model that counts how often the model is made and asked."""

    def __init__(self, cache: Path | None, facts: tuple[str, ...] = ("weights",), limit: float = 1.0) -> None:
        self.loads = 0
        self.model = Bigram.random(1)
        self.reference = Reference(self.load, cache, limit, TOKEN_BYTES, facts)

    def load(self) -> Any:
        self.loads += 1
        return self.model

    @property
    def asked(self) -> tuple[int, int]:
        return self.loads, self.model.calls

    def evaluated(self, batch_size: int = 2) -> Evaluated:
        divergence = Divergence("generated_heldout", samples=5, length=16, batch_size=batch_size)
        context = Context(Bigram.random(0), self.reference, Bytes(), torch.device("cpu"))  # type: ignore[arg-type]
        return divergence(context)


def files(cache: Path) -> list[Path]:
    return sorted((cache / "reference").glob("*.safetensors"))


def test_second_job_does_not_need_the_model(tmp_path: Path) -> None:
    live, first, second = Counted(None), Counted(tmp_path), Counted(tmp_path)
    results = [counted.evaluated() for counted in (live, first, second)]
    assert results[0] == results[1] == results[2]  # every digit of every item
    assert (live.asked, first.asked, second.asked) == ((1, BATCHES), (1, BATCHES), (0, 0))


def test_other_facts_and_other_batches_are_other_logits(tmp_path: Path) -> None:
    Counted(tmp_path).evaluated()
    for other, batch_size in ((Counted(tmp_path, ("other weights",)), 2), (Counted(tmp_path), 3)):
        other.evaluated(batch_size)
        assert other.loads == 1
    assert len(files(tmp_path)) == 3


def test_larger_than_the_limit_is_not_kept(tmp_path: Path) -> None:
    size = 5 * 16 * TOKEN_BYTES / 2**30
    large = Counted(tmp_path, limit=size * 0.99)
    large.evaluated()
    assert large.asked == (1, BATCHES)
    assert not (tmp_path / "reference").exists()
    Counted(tmp_path, limit=size * 1.01).evaluated()
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-100], lambda data: b"", lambda data: data[:-1] + bytes([data[-1] ^ 1])],
    ids=["cut", "empty", "one bit"],
)
def test_damage_is_seen_and_mended(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    expected = Counted(tmp_path).evaluated()
    (path,) = files(tmp_path)
    path.write_bytes(damage(path.read_bytes()))
    again = Counted(tmp_path)
    assert again.evaluated() == expected
    assert again.loads == 1
    Counted(tmp_path).evaluated()
    last = Counted(tmp_path)
    assert last.evaluated() == expected
    assert last.loads == 0


def test_full_disk_costs_only_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(tensors: object, path: str, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise SafetensorError("No space left on device (os error 28)")

    monkeypatch.setattr("dualscale_mamba.quantization.storage.save_file", full)
    counted = Counted(tmp_path)
    assert counted.evaluated() == Counted(None).evaluated()
    assert counted.asked == (1, BATCHES)
    assert "No space left" in caplog.text
    assert [path.suffix for path in (tmp_path / "reference").iterdir()] == [".lock"]


def test_jobs_at_the_same_time_ask_once(tmp_path: Path) -> None:
    jobs = [Counted(tmp_path) for _ in range(4)]
    begin = threading.Barrier(len(jobs))
    results: list[Evaluated] = []

    def work(job: Counted) -> None:
        begin.wait()
        results.append(job.evaluated())

    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(job.loads for job in jobs) == 1
    assert len(results) == 4
    assert all(result == results[0] for result in results)


def test_what_was_not_read_for_longest_goes_first(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abcd"]
    for age, path in zip((400, 100, 300, 200), paths, strict=True):
        path.write_bytes(b"x" * 10)
        os.utime(path, (time.time() - age, time.time() - age))
    (tmp_path / "a.safetensors.lock").touch()
    old, new = (tmp_path / f".{name}.safetensors.x" for name in ("old", "new"))
    for partial, age in ((old, 7200), (new, 10)):
        partial.touch()
        os.utime(partial, (time.time() - age, time.time() - age))
    prune(tmp_path, 20, paths[2])
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"b.safetensors", "c.safetensors", new.name}


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources of the models that jobs load."""
    seen: list[str] = []
    whole = session.load_model

    def counting(config: Any, device: torch.device) -> Any:
        seen.append(str(config.model.source))
        return whole(config, device)

    monkeypatch.setattr(session, "load_model", counting)
    return seen


@pytest.mark.parametrize("model", ["random_tiny", "random_mamba2_tiny"])
def test_real_jobs_share_their_reference(tmp_path: Path, loads: list[str], model: str) -> None:
    startup.register()
    GlobalHydra.instance().clear()
    metrics, counts = [], []
    for number, limit in enumerate((0, 1, 1)):
        line = ["debug=fast", "ops=reference", f"model={model}", "profiling=[memory]", "name=shared"]
        line += [f"paths.run={tmp_path / str(number)}", f"paths.cache={tmp_path / 'cache'}"]
        with initialize_config_dir(str(startup.CONF), version_base="1.3"):
            config = compose("config", [*line, f"evaluation_cache_gib={limit}"])
        (tmp_path / str(number)).mkdir()
        before = len(loads)
        ptq.run(config)
        counts.append(len(loads) - before)
        result = result_of(tmp_path / str(number))
        metrics.append({name: value for name, value in result["metrics"].items() if "divergence" in name})
    assert counts == [2, 2, 1]
    assert metrics[0] == metrics[1] == metrics[2]
    assert metrics[0]["divergence/generated_heldout/kl"]["value"] > 0


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found
