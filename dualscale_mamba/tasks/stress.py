"""Every format at every threshold on made values, and in what way each breaks; no model is loaded."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import environment, ops
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.data.synthetic import regimes_of
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.stress import COLUMNS, SAME, Outcome, Trials
from dualscale_mamba.report.stress import show_stress, write_stress_figure
from dualscale_mamba.study.files import write_text
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.record import stage as record_stage
from dualscale_mamba.tasks.session import device_of

TABLE = "stress.csv"


def run(config: DictConfig) -> None:
    """Write ``stress.csv``, ``figure.png`` and ``result.json``, and print what holds and what breaks.

    Args:
        config: Composed and validated.

    Raises:
        ConfigError: A format has no codes.
    """
    folder, device = RunFolder.of(config), device_of(str(config.device))
    trials = trials_of(config)
    record_stage("stress")
    with ops.implementation(config.ops):
        outcomes = list(trials.run(device))
    _write_table(folder.path / TABLE, outcomes)
    result = folder.write_result(_result(config, outcomes, str(device)))
    write_stress_figure(folder.path, result, {name: trials.values(name, 1) for name in trials.regimes})
    if not folder.in_multirun:
        show_stress(result, folder.path)


def trials_of(config: DictConfig) -> Trials:
    """What the configuration asks for: by default every file of ``scale_mode`` that has codes."""
    task = config.task
    regimes: Any = OmegaConf.to_container(task.regimes, resolve=True)
    observers: dict[str, Observer] = {f"{p:g} %": Percentile(float(p)) for p in task.percentiles}
    searching = {name: instantiate.named("observer", name, "task.observers") for name in task.observers}
    return Trials(
        regimes=regimes_of(regimes),
        calibrations=list(task.calibrate),
        granularities={
            name: instantiate.named("granularity", name, "task.granularities") for name in task.granularities
        },
        modes=_modes(task.formats),
        observers=observers,
        searching=searching,
        tokens=int(task.tokens),
        channels=int(task.channels),
        seed=int(config.seed),
    )


def _modes(names: Sequence[str] | None) -> dict[str, ScaleMode]:
    made = {}
    for name in instantiate.group_files("scale_mode") if names is None else names:
        mode = instantiate.named("scale_mode", name, "task.formats")
        if not isinstance(mode, Unquantized):
            made[name] = mode
        elif names is not None:
            raise ConfigError("task.formats", name, "formats that have codes")
    return made


def best(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Of each format in each place the observer with the most signal to noise, refused ones last."""
    found: dict[tuple[str, str, str, str], Outcome] = {}
    for one in outcomes:
        key = (one.calibrated, one.granularity, one.format, one.regime)
        before = found.get(key)
        if before is None or (not one.refused, one.sqnr_db) > (not before.refused, before.sqnr_db):
            found[key] = one
    return list(found.values())


def _write_table(path: Path, outcomes: Sequence[Outcome]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS, "breaks"])
    writer.writerows([*astuple(one), "; ".join(one.breaks)] for one in outcomes)
    write_text(path, text.getvalue())


def _result(config: DictConfig, outcomes: Sequence[Outcome], device: str) -> dict[str, Any]:
    chosen = best(outcomes)
    broken: dict[str, int] = {}
    for one in chosen:
        broken[one.format] = broken.get(one.format, 0) + bool(one.breaks)
    worst: Mapping[str, float] = {
        name: min(one.sqnr_db for one in chosen if one.format == name and not one.refused)
        for name in broken
        if any(one.format == name and not one.refused for one in chosen)
    }
    metrics = {f"stress/{name}/breaks": Metric(float(n), "places", "lower") for name, n in broken.items()}
    metrics |= {f"stress/{name}/least_sqnr": Metric(db, "dB", "higher") for name, db in worst.items()}
    return {
        "task": "stress",
        "metrics": metrics,
        "sites": [],
        "site_summary": {},
        "stress": {
            "best": [{**asdict(one), "breaks": one.breaks} for one in chosen],
            "of": len(outcomes),
            "same": SAME,
        },
        "config": OmegaConf.to_container(config, resolve=True),
        "environment": environment.describe(device),
        "hashes": {"kernels": environment.kernel_hash()},
        "seconds": {},
    }
