"""Running the chosen profilers."""

from __future__ import annotations

import torch

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.quantization.pipeline import QuantizationReport
from dualscale_mamba.tasks.result import bits_per_value
from dualscale_mamba.tasks.session import Session


def run_profilers(session: Session, report: QuantizationReport) -> dict[str, Metric]:
    """What the profilers measure of the model, and the peak of the device's memory in all of the run."""
    subject = Subject(session.model, session.device, bits_per_value(report))
    metrics: dict[str, Metric] = {}
    peak = max(_peak(session), session.reference.peak if session.reference else 0)
    for name, profiler in instantiate.profilers(session.config).items():
        with session.timed(f"profile/{name}"):
            metrics |= profiler(subject)
        peak = max(peak, _peak(session))  # a profiler of memory sets the counter back
    if session.device.type == "cuda":
        metrics["memory/peak"] = Metric(peak, "bytes", "lower")
    return metrics


def _peak(session: Session) -> int:
    """Most bytes of device memory since the counter was set back."""
    return torch.cuda.max_memory_allocated(session.device) if session.device.type == "cuda" else 0
