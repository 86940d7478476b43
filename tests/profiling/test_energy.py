"""Joules are counted by NVML's counter, and left out where there is none."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from dualscale_mamba import ops
from dualscale_mamba.models.pretrained import load_pretrained
from dualscale_mamba.profiling import energy
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.profiling.energy import Energy, counter_of

CUDA = torch.device("cuda", 0)


class Library(ModuleType):
    """What is used of pynvml; the counter stands at so many millijoules."""

    class NVMLError(Exception):
        """As NVML's."""

    def __init__(self, millijoules: int | None) -> None:
        super().__init__("pynvml")
        self.millijoules, self.asked = millijoules, ""

    def nvmlInit(self) -> None:  # noqa: N802
        """Nothing to do."""

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        """The handle is the name."""
        self.asked = uuid
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:  # noqa: N802
        """As the driver counts."""
        if self.millijoules is None:
            raise Library.NVMLError("not supported")
        return self.millijoules


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="0a1b")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)


def test_the_counter_is_that_of_the_device_and_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(5_500)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    counter = counter_of(CUDA)
    assert counter is not None
    assert counter() == 5.5
    assert library.asked == "GPU-0a1b"


@pytest.mark.parametrize("library", [None, Library(None)], ids=["not installed", "not supported"])
def test_without_a_counter_there_is_no_metric(
    library: Library | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert counter_of(CUDA) is None
    assert "skipped" in caplog.text


def test_joules_are_shared_by_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """A counter that moves by one joule each time it is read."""
    readings = iter(range(100))
    monkeypatch.setattr(energy, "counter_of", lambda device: lambda: float(next(readings)))
    subject = Subject(load_pretrained("random:tiny").model, torch.device("cpu"))
    with ops.implementation("reference"):
        metrics = Energy(batch_sizes=(2,), prompt_lengths=(3,), seconds=0.01)(subject)
    values = {name: metric.value for name, metric in metrics.items()}
    for kind, tokens in (("prefill", 6), ("decode", 2)):
        calls = 1 / (tokens * values[f"energy/{kind}/batch_2_prompt_3/joules_per_token"])
        assert calls == pytest.approx(round(calls))
        assert calls >= 1
        assert 0 < values[f"energy/{kind}/batch_2_prompt_3/watts"] <= 100
