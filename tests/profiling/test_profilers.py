"""Bytes are counted once and times are positive and ordered."""

from __future__ import annotations

import time

import pytest
import torch

from dualscale_mamba import ops
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.latency import Latency, timed
from dualscale_mamba.profiling.memory import Memory, stored_tensors


@pytest.fixture
def subject() -> Subject:
    return Subject(load_pretrained("random:tiny").model, torch.device("cpu"), 8.0)


def test_weights_are_counted_once_and_by_part(subject: Subject) -> None:
    metrics = {name: metric.value for name, metric in Memory(batch_sizes=(1, 4))(subject).items()}
    parts = [value for name, value in metrics.items() if name.startswith("memory/weights/")]
    assert sum(parts) == metrics["memory/weights"]
    parameters = sum(p.numel() * 4 for p in subject.model.parameters())  # parameters() names a tied head once
    kept = sum(block.mixer.decay().nbytes for block in subject.model.blocks())  # A, made of A_log once
    assert metrics["memory/weights"] == parameters + kept
    assert metrics["memory/weights/embedding"] == 4096 * 64 * 4
    assert metrics["memory/bits_per_value"] == 8.0


def test_state_grows_with_the_batch_only(subject: Subject) -> None:
    metrics = Memory(batch_sizes=(1, 4))(subject)
    assert metrics["memory/state/batch_4"].value == 4 * metrics["memory/state/batch_1"].value


def test_shared_memory_is_one_tensor() -> None:
    model = torch.nn.Linear(3, 3, bias=False)
    model.register_parameter("again", model.weight)
    assert [name for name, _ in stored_tensors(model)] == ["weight"]


def test_latency_has_ordered_percentiles(subject: Subject) -> None:
    with ops.implementation("reference"):
        metrics = Latency(batch_sizes=(1, 2), prompt_lengths=(4,), prompts=3, tokens=3, warmup=1)(subject)
    assert len(metrics) == 2 * 2 * 3
    for kind in ("ttft", "tpot"):
        low, middle, high = (metrics[f"latency/{kind}/batch_2_prompt_4/p{p}"].value for p in (10, 50, 90))
        assert 0 < low <= middle <= high


def test_warmup_is_not_counted() -> None:
    calls = []

    def work() -> None:
        calls.append(0)
        time.sleep(0.05 if len(calls) == 1 else 0.0)

    spent = timed(work, torch.device("cpu"), warmup=1, repeats=4)
    assert len(calls) == 5
    assert len(spent) == 4
    assert max(spent) < 50
