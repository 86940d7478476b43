"""Post-training quantization, end to end: load, calibrate, convert, evaluate, profile, record."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from dualscale_mamba.configuration import instantiate
from dualscale_mamba.evaluation.base import Context, Metric
from dualscale_mamba.report import show_run, write_figure
from dualscale_mamba.report.collect import DISTRIBUTION
from dualscale_mamba.report.state_curves import CURVES, write_run_curves
from dualscale_mamba.study.files import write_json
from dualscale_mamba.tasks.checkpoints import save
from dualscale_mamba.tasks.distribution import distribution
from dualscale_mamba.tasks.profilers import run_profilers
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.result import result_of
from dualscale_mamba.tasks.session import Session, open_session

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """Metrics so far, and what must be equal in two runs for their metrics to be comparable."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)


def run(config: DictConfig) -> None:
    """Quantize, measure and record one configuration.

    Args:
        config: Composed and validated.
    """
    folder = RunFolder.of(config)
    with (
        open_session(config) as session,
        instantiate.tracker(config).tracking(folder.path, config, str(folder.path.name)) as tracked,
    ):
        report = session.quantize()
        measured = Measured()
        _evaluate(session, folder, measured)
        measured.metrics |= run_profilers(session, report)
        levels = distribution(session.model, session.calibration, session.recipe.carriers, report.sites)
        if levels is not None:
            write_json(folder.path / DISTRIBUTION, levels)
        result = folder.write_result(result_of("ptq", session, report, measured.metrics, measured.facts))
        write_figure(folder.path, result)
        if not folder.in_multirun:  # a study draws them together
            for curves in measured.curves.values():
                write_run_curves(folder.path, str(result["name"]), curves)
        if config.save is not None:
            with session.timed("save"):
                save(session, report, result)
        tracked.log(result, folder.path)
    if not folder.in_multirun:
        show_run(result, folder.path)


def _evaluate(session: Session, folder: RunFolder, measured: Measured) -> None:
    context = Context(
        model=session.model,
        reference=session.reference,
        tokenizer=session.pretrained.tokenizer,
        device=session.device,
        data_root=instantiate.data_root(session.config),
        seed=int(session.config.seed),
    )
    for name, evaluator in instantiate.evaluators(session.config).items():
        with session.timed(f"evaluate/{name}"):
            evaluated = evaluator(context)
        measured.metrics |= evaluated.metrics
        measured.facts[name] = evaluated.facts
        folder.write_items(name, evaluated.items)
        if evaluated.curves:
            measured.curves[name] = evaluated.curves
    if measured.curves:
        write_json(folder.path / CURVES, measured.curves)
