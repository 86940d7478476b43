"""Bytes are counted once and times are positive and ordered."""

from __future__ import annotations

import mmap
import time

import pytest
import torch

from dualscale_mamba import ops
from dualscale_mamba.models.generation import generate
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.flush import Flush, last_level_bytes
from dualscale_mamba.profiling.latency import Drive, Latency, timed
from dualscale_mamba.profiling.memory import Memory, stored_tensors
from dualscale_mamba.profiling.process import Watched


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
    assert len(metrics) == 2 * (3 * 3 + 2) + 1
    for kind in ("ttft", "tpot", "ttlt"):
        low, middle, high = (metrics[f"latency/{kind}/batch_2_prompt_4/p{p}"].value for p in (10, 50, 90))
        assert 0 < low <= middle <= high


@pytest.mark.parametrize("cold", [False, True])
def test_throughput_is_that_of_the_medians(subject: Subject, cold: bool) -> None:
    """Of decoding only where caches are cold: else steps are not waited for one by one."""
    with ops.implementation("reference"):
        metrics = Latency(batch_sizes=(2,), prompt_lengths=(4,), prompts=2, tokens=2, warmup=0, cold=cold)(
            subject
        )
    found = {name: metric.value for name, metric in metrics.items()}
    assert found["throughput/decode/batch_2_prompt_4"] > 0
    for kind, what, tokens in (("prefill", "ttft", 8), ("decode", "tpot", 2))[: 1 + cold]:
        milliseconds = found[f"latency/{what}/batch_2_prompt_4/p50"]
        assert found[f"throughput/{kind}/batch_2_prompt_4"] == pytest.approx(1e3 * tokens / milliseconds)


def test_the_last_token_is_that_of_a_generation(subject: Subject) -> None:
    with ops.implementation("reference"), torch.inference_mode():
        drive = Drive(subject.model, 1, 4, subject.device)
        *_, last = generate(subject.model, drive.prompt, max_new_tokens=5, temperature=0.0)
        assert torch.equal(drive.to_the_last(5), last)


def test_steps_are_those_of_a_generation(subject: Subject) -> None:
    with ops.implementation("reference"), torch.inference_mode():
        drive = Drive(subject.model, 1, 4, subject.device)
        drive.fill()
        cache = subject.model.allocate_cache(1)
        subject.model(drive.prompt, cache)
        token = drive.prompt[:, -1]
        for _ in range(3):
            token = subject.model.step(token, cache).argmax(-1)
        assert torch.equal(drive.steps(3), token)


def test_no_graphs_on_the_cpu_and_why(subject: Subject, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "dualscale_mamba")
    with ops.implementation("reference"):
        metrics = Latency(batch_sizes=(1, 2), prompt_lengths=(4,), prompts=1, tokens=1, warmup=0)(subject)
    assert metrics["latency/cuda_graphs"].value == 0.0
    assert [record.message for record in caplog.records if "CUDA graphs" in record.message] == [
        "latency without CUDA graphs: the model lies on cpu"
    ]


def test_a_cold_call_comes_after_its_flush() -> None:
    order: list[str] = []

    class Noted(Flush):
        def __call__(self) -> None:
            super().__call__()
            order.append("flush")

    flush = Noted(torch.device("cpu"))
    timed(lambda: order.append("work"), torch.device("cpu"), 1, 2, flush)
    assert order == ["flush", "work"] * 3


def test_a_flush_writes_more_than_the_cache_holds() -> None:
    cpu = torch.device("cpu")
    assert last_level_bytes(cpu) >= 2**20
    flush = Flush(cpu)
    assert flush._bytes.nbytes == 2 * last_level_bytes(cpu)


def test_memory_of_the_process_at_its_worst() -> None:
    watched = Watched(torch.device("cpu"))
    before = watched.bytes()
    if not before:
        pytest.skip("this system does not tell a process's memory")
    with mmap.mmap(-1, 2**26) as pages:  # made and gone; an allocator might have had them already
        for at in range(0, len(pages), mmap.PAGESIZE):
            pages[at] = 1
    after = watched.bytes()
    assert after["resident_peak"] >= before["resident"] + 2**25  # Linux counts pages loosely
    assert after["resident_peak"] >= after["resident"]


def test_warmup_is_not_counted() -> None:
    calls = []

    def work() -> None:
        calls.append(0)
        time.sleep(0.05 if len(calls) == 1 else 0.0)

    spent = timed(work, torch.device("cpu"), warmup=1, repeats=4)
    assert len(calls) == 5
    assert len(spent) == 4
    assert max(spent) < 50
