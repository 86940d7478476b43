"""Choose a width for each layer: sensitivities, an integer program, a precision that can be run."""

from __future__ import annotations

import logging
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import environment
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.evaluation.windows import Windows
from dualscale_mamba.profiling.memory import is_tied
from dualscale_mamba.quantization.allocation import Allocated, allocate
from dualscale_mamba.quantization.layer_costs import Cost, Decision, Sizes, Stopwatch
from dualscale_mamba.quantization.sensitivity import (
    SITES_ALONE,
    Bench,
    Found,
    Trial,
    measure,
    trials,
)
from dualscale_mamba.report.allocation import show_allocation, write_allocation_figure
from dualscale_mamba.study.files import read_json, write_json
from dualscale_mamba.tasks.allocation_check import check, uniform_widths
from dualscale_mamba.tasks.bench import make_bench
from dualscale_mamba.tasks.precision_file import write_precision
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.session import Session, open_session

SENSITIVITY = "sensitivity.json"
VERSION = "1"
# What a latency is relative to.
BASELINE = "w8a8"

logger = logging.getLogger(__name__)


def run(config: DictConfig) -> None:
    """Write ``sensitivity.json``, ``precision/allocated.yaml``, ``figure.png`` and ``result.json``, and print them."""
    folder = RunFolder.of(config)
    with open_session(config) as session:
        session.reference = session.make_reference()
        calibration = session.calibrate()
        bench, windows = make_bench(session, calibration)
        settings = config.task
        wanted = trials(session.model, settings.widths, settings.outer, settings.unit)
        with session.timed("sensitivity"):
            found = measured(session, bench, wanted, windows)
        write_json(folder.path / SENSITIVITY, {"kl": found, "windows": windows.facts})
        decision = Decision(
            wanted, found, Sizes(session.model, session.recipe.weights), is_tied(session.model)
        )
        with session.timed("allocate"):
            chosen = choose(config, decision)
        write_precision(folder.path, config, chosen.widths)
        content = summary(decision, chosen, found)
        if settings.verify:
            with session.timed("verify"):
                rivals = {
                    "allocated": chosen.widths,
                    **uniform_widths(session.model, settings.widths, decision.layers),
                }
                content["checked"] = check(session, bench, decision, rivals)
        result = folder.write_result(_result(session, content))
    write_allocation_figure(folder.path, result)
    if not folder.in_multirun:
        show_allocation(result, folder.path)


def measured(session: Session, bench: Bench, wanted: list[Trial], windows: Windows) -> Found:
    """All divergences; those of a run that was killed, or of another budget, are read again."""
    recipe = bench.recipe
    parts = [
        VERSION,
        *session.numerics,
        torch.__version__,
        bench.calibration.key,
        windows.facts["tokens_hash"],
    ]
    parts += [session.config.task.unit, repr(replace(recipe, layers={})), str(windows.facts["batch_size"])]
    key = sha256("\n".join(parts).encode()).hexdigest()[:24]
    path = Path(session.config.paths.cache).expanduser() / "sensitivity" / f"{key}.json"
    known = read_json(path) or {}
    if known:
        logger.info("going on from %s", path)
    return measure(bench, wanted, known, lambda found: _keep(path, found))


def _keep(path: Path, found: Found) -> None:
    try:
        write_json(path, found)
    except OSError as error:
        logger.warning("%s cannot be written (%s); a killed run begins again", path, error)


def choose(config: DictConfig, decision: Decision) -> Allocated:
    """The best widths within the configured budget.

    Raises:
        ConfigError: No choice is within it.
    """
    budget, sizes = config.task.budget, decision.sizes
    if budget.latency is not None:
        cost: Cost = sizes.moved if config.task.latency == "bytes" else Stopwatch(sizes)
        whole = sum(cost(layer, decision.widest(layer, BASELINE)) for layer in decision.layers)
        options = decision.options(cost, scale=whole, stored_once=False)
        return allocate(options, float(budget.latency), "task.budget.latency")
    if budget.bytes is not None:
        return allocate(decision.options(sizes.bytes), float(budget.bytes), "task.budget.bytes")
    options = decision.options(sizes.bits, scale=decision.weights)
    return allocate(options, float(budget.bits), "task.budget.bits")


def summary(decision: Decision, chosen: Allocated, found: Found) -> dict[str, Any]:
    """What the result says of the choice: widths, and what is predicted of the whole."""
    sites = found[SITES_ALONE]["w16a16"]
    return {
        "widths": chosen.widths,
        "sensitivity": found,
        "predicted_kl": chosen.kl + sites,
        "layers_kl": chosen.kl,
        "sites_kl": sites,
        "cost": chosen.cost,
        "bits": decision.total(chosen.widths, decision.sizes.bits) / decision.weights,
        "bytes": decision.total(chosen.widths, decision.sizes.bytes),
    }


def _result(session: Session, content: dict[str, Any]) -> dict[str, Any]:
    units = {"kl": "nats/token", "bits": "bits", "bytes": "bytes"}
    metrics = {
        f"allocation/{name}": Metric(content[name], units[name.rpartition("_")[2]], "lower")
        for name in ("predicted_kl", "bits", "bytes")
    }
    own = content.get("checked", {}).get("allocated", {})
    metrics |= {
        f"allocation/{name}": Metric(value, "nats/token", "lower")
        for name, value in own.get("kl", {}).items()
    }
    return {
        "task": "allocate",
        "metrics": metrics,
        "sites": [],
        "site_summary": {},
        "allocation": content,
        "config": OmegaConf.to_container(session.config, resolve=True),
        "environment": environment.describe(str(session.device)),
        "hashes": session.hashes,
        "seconds": session.seconds,
    }
