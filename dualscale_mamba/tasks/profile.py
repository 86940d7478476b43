"""Where a quantized model's time and memory go: latencies, every operator against its floor, bytes, energy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.models.graphs import graphed
from dualscale_mamba.profiling import ceilings
from dualscale_mamba.profiling.latency import Drive
from dualscale_mamba.profiling.operators import Breakdown, break_down, roles_of
from dualscale_mamba.profiling.process import Watched
from dualscale_mamba.progress import bar
from dualscale_mamba.report.operators import show_operators, write_operator_figure
from dualscale_mamba.tasks.profilers import run_profilers
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.result import result_of
from dualscale_mamba.tasks.session import Session, open_session


def run(config: DictConfig) -> None:
    """Quantize, run the chosen profilers and break prefills and steps down into operators.

    Writes ``result.json`` and ``figure.png``, logs them, and prints the tables. No text is evaluated.

    Args:
        config: Composed and validated.
    """
    folder = RunFolder.of(config)
    with (
        open_session(config) as session,
        instantiate.tracker(config).tracking(folder.path, config, str(folder.path.name)) as tracked,
    ):
        report = session.quantize()
        memory = Watched(session.device)
        operators = _phases(session)
        held = {f"memory/{name}": Metric(size, "bytes", "lower") for name, size in memory.bytes().items()}
        metrics = run_profilers(session, report) | _metrics(operators["phases"]) | held
        result = folder.write_result(
            {**result_of("profile", session, report, metrics), "operators": operators}
        )
        write_operator_figure(folder.path, result)
        tracked.log(result, folder.path)
    if not folder.in_multirun:
        show_operators(result, folder.path)


def _phases(session: Session) -> dict[str, Any]:
    """Each prefill and each step of the configured sizes, the device's ceilings, and whether graphs were replayed."""
    settings = session.config.task
    with session.timed("ceilings"):
        rates = ceilings.measure(session.device, session.model.dtype)
    model, reason = graphed(session.model, settings.cuda_graphs)
    found = []
    with session.timed("operators"):
        for name, batch, length in bar(list(_sizes(session)), "operators", "size"):
            work, whole = _call(session, session.model, name, batch, length), None
            if model is not session.model:
                whole = _call(session, model, name, batch, length)
            broken = break_down(
                work, roles_of(session.model), rates, session.device, settings.repeats, settings.warmup, whole
            )
            found.append({"phase": name, "batch": batch, "length": length, **_plain(broken)})
    graphs = {"used": reason is None, "reason": reason}
    return {"ceilings": asdict(rates), "phases": found, "cuda_graphs": graphs}


def _sizes(session: Session) -> Iterator[tuple[str, int, int]]:
    """Prefills of every size, then a step of every batch."""
    settings = session.config.task
    for batch in settings.batch_sizes:
        for length in settings.prompt_lengths:
            yield "prefill", batch, length
    for batch in settings.batch_sizes:
        yield "decode", batch, 1


def _call(session: Session, model: Any, phase: str, batch: int, length: int) -> Callable[[], object]:
    """A prefill, or a step behind a prompt of the first length."""
    if phase == "prefill":
        return Drive(model, batch, length, session.device).prefill
    drive = Drive(model, batch, session.config.task.prompt_lengths[0], session.device)
    with torch.inference_mode():
        drive.fill()
    return drive.step


def _plain(broken: Breakdown) -> dict[str, Any]:
    operators = [
        {
            "name": each.name,
            "calls": each.calls,
            "milliseconds": each.milliseconds,
            "floor": each.floor,
            "bound": each.bound,
            **asdict(each.work),
        }
        for each in broken.operators
    ]
    return {"milliseconds": broken.milliseconds, "rest": broken.rest, "operators": operators}


def _metrics(phases: list[dict[str, Any]]) -> dict[str, Metric]:
    """Of each phase the share of its time that the operators' floors would take."""
    return {
        f"roofline/{each['phase']}/batch_{each['batch']}_length_{each['length']}": Metric(
            sum(one["floor"] for one in each["operators"]) / each["milliseconds"], "share", "higher"
        )
        for each in phases
    }
