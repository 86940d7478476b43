"""Every format at every percentile in every layer, from counted values alone; and a proposal for each layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import environment
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.granularity import PerChannel
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.observers.histogram import Histogram
from dualscale_mamba.observers.per_layer import PerLayer
from dualscale_mamba.observers.percentile import Percentile
from dualscale_mamba.quantization.calibration import Calibration, calibration_key
from dualscale_mamba.quantization.fidelity import COLUMNS, Line, Proposal, compare, propose
from dualscale_mamba.quantization.pipeline import prepare_and_calibrate, turn_on
from dualscale_mamba.quantization.positions import along, count_positions
from dualscale_mamba.quantization.sensitivity import Bench, restored
from dualscale_mamba.report.channel_map import write_channels
from dualscale_mamba.report.fidelity import show_fidelity, write_fidelity_figure
from dualscale_mamba.report.levels import write_levels
from dualscale_mamba.report.positions import write_drift
from dualscale_mamba.report.tables import near
from dualscale_mamba.sites import short_name
from dualscale_mamba.study.files import write_text
from dualscale_mamba.tasks.bench import make_bench
from dualscale_mamba.tasks.distribution import rebinned
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.session import Session, open_session

TABLE = "fidelity.csv"
NAME = "proposed"
DEFAULT_PERCENTILE = 99.0
HEADER = """\
# Thresholds and settings of scale_mode={mode} for each layer of {model}, proposed by task=fidelity.
# Objective: {objective}.
# Type: python run.py --config-dir {folder} model={model} scale_mode={mode} observer={name}
"""


def run(config: DictConfig) -> None:
    """Write tables, pictures, ``observer/proposed.yaml`` and ``result.json``, and print what is best.

    ``fidelity.csv`` has every format in every layer, ``channels.csv`` every channel where channels are counted.
    """
    folder = RunFolder.of(config)
    settings = config.task
    with open_session(config) as session:
        modes = {name: _mode(name) for name in settings.formats}
        granularities = {
            name: instantiate.named("granularity", name, "task.granularities")
            for name in settings.granularities
        }
        recipe = session.recipe
        calibration = session.calibrate()
        lines: list[Line] = []
        with session.timed("formats"):
            for name, granularity in granularities.items():
                own = replace(recipe, granularity=granularity)
                counted = calibration if own == recipe else _calibrated(session, own)
                lines += compare(name, _carriers(session, counted), modes, settings.percentiles)
                if isinstance(granularity, PerChannel):
                    _write_channels(session, folder, counted)
        _write_table(folder.path / TABLE, lines)
        content: dict[str, Any] = {"means": means(lines)}
        _write_pictures(session, folder, modes, lines)
        if settings.objective is not None:
            content |= _proposed(session, folder, calibration)
        result = folder.write_result(_result(session, content))
    write_fidelity_figure(folder.path, result)
    if not folder.in_multirun:
        show_fidelity(result, folder.path)


def _mode(name: str) -> ScaleMode:
    mode = instantiate.named("scale_mode", name, "task.formats")
    if isinstance(mode, Unquantized):
        raise ConfigError("task.formats", name, "formats that have codes")
    made: ScaleMode = mode
    return made


def _calibrated(session: Session, recipe: Any) -> Calibration:
    """The counts in another granularity: those of an equal run, or of the model loaded again."""
    batches = session.calibration_batches()
    key = calibration_key([session.hashes["calibration_tokens"], *session.numerics], recipe)
    return prepare_and_calibrate(session.load_again(), batches, recipe, session.cache, key)


def _carriers(session: Session, calibration: Calibration) -> dict[str, tuple[Histogram, float | None]]:
    """Histogram and floor of each site that carries the scale mode."""
    return {
        name: (calibration.histograms[name], site.floor)
        for name, site in session.model.sites().items()
        if session.recipe.carries(name)
    }


def _write_channels(session: Session, folder: RunFolder, calibration: Calibration) -> None:
    """Which channels hold the outliers, by counts of each channel."""
    percentile = _percentile(session)
    found = {}
    for name, (histogram, _) in _carriers(session, calibration).items():
        threshold = histogram.merged().quantile(percentile).expand(histogram.groups)
        shares = histogram.share_above(threshold)
        found[name] = list(zip(shares.tolist(), histogram.absmax.tolist(), strict=True))
    write_channels(folder.path, found, percentile, folder.identity["name"])


def _write_pictures(
    session: Session, folder: RunFolder, modes: Mapping[str, ScaleMode], lines: Sequence[Line]
) -> None:
    """The levels of every format below a histogram, and what changes along the sequence, with one code a tensor."""
    calibration, title = session.calibration, str(folder.identity["name"])
    assert calibration is not None
    counted = {
        name: (histogram.merged() if histogram.groups > 1 else histogram, floor)
        for name, (histogram, floor) in _carriers(session, calibration).items()
    }
    best = _best(lines)
    codes = {
        name: {
            mode: Percentile(best[mode]).fit(histogram, floor, modes[mode]).code
            for mode in best
            if floor is not None or not modes[mode].needs_floor
        }
        for name, (histogram, floor) in counted.items()
    }
    labels = {mode: f"{mode} {percentile:g} %" for mode, percentile in best.items()}
    furthest = max(counted, key=lambda name: float(counted[name][0].absmax.max()))
    centres, share = rebinned(counted[furthest][0])
    levels = {
        mode: (labels[mode], torch.unique(code.levels()[0]).tolist())
        for mode, code in codes[furthest].items()
    }
    write_levels(folder.path, {"site": furthest, "centres": centres, "share": share}, levels, title)
    if not session.config.task.drift:
        return
    percentile = _percentile(session)
    thresholds = {name: histogram.quantile(percentile) for name, (histogram, _) in counted.items()}
    with session.timed("drift"):
        positions = count_positions(session.model, session.calibration_batches(), list(counted))
        stretches = list(along(positions, thresholds, codes))
    write_drift(folder.path, stretches, percentile, labels, title)


def _best(lines: Sequence[Line]) -> dict[str, float]:
    """The percentile of each format with the most signal to noise on average, one code a tensor where there is such."""
    found: dict[str, tuple[float, float]] = {}
    every = means(lines)
    first = next(
        (one["granularity"] for one in every if one["granularity"] == "per_tensor"), every[0]["granularity"]
    )
    for one in every:
        if one["granularity"] == first:
            own = (one["sqnr_db"], one["percentile"])
            found[one["format"]] = max(found.get(one["format"], own), own)
    return {name: percentile for name, (_, percentile) in found.items()}


def _percentile(session: Session) -> float:
    """That of the configured thresholds, or the default where the observer has none."""
    observer = session.recipe.observer
    return observer.percentile if isinstance(observer, Percentile | PerLayer) else DEFAULT_PERCENTILE


def _write_table(path: Path, lines: Sequence[Line]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(astuple(line) for line in lines)
    write_text(path, text.getvalue())


def means(lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Over the layers of each kind of site: one entry for each site, granularity, format and percentile."""
    groups: dict[tuple[str, str, str, float], list[Line]] = {}
    for line in lines:
        key = (short_name(line.site), line.granularity, line.format, line.percentile)
        groups.setdefault(key, []).append(line)
    made = []
    for (site, granularity, name, percentile), own in groups.items():
        mean = {key: sum(getattr(one, key) for one in own) / len(own) for key in COLUMNS[4:]}
        made.append(
            {"site": site, "granularity": granularity, "format": name, "percentile": percentile, **mean}
        )
    return made


def _proposed(session: Session, folder: RunFolder, calibration: Calibration) -> dict[str, Any]:
    """The proposals, written as an observer, and what they do to the whole."""
    settings, percentile = session.config.task, _percentile(session)
    session.reference = session.make_reference()
    with session.timed("proposals"):
        bench, _ = make_bench(session, calibration)
        found = propose(bench, settings.objective, settings.percentiles, settings.candidates, percentile)
    sites = {one.site: dict(one.settings) for one in found}
    _write_observer(folder.path, session.config, sites, percentile)
    content: dict[str, Any] = {"proposals": [asdict(one) for one in found], "percentile": percentile}
    if settings.verify:
        with session.timed("verify"):
            content["checked"] = _checked(bench, found, percentile)
    return content


def _checked(bench: Bench, found: Sequence[Proposal], percentile: float) -> dict[str, float]:
    """Divergence of the whole when the sites that carry the scale mode, and no others, are quantized."""
    rivals: dict[str, Observer] = {
        "configured": Percentile(percentile),
        "proposed": PerLayer({one.site: one.settings for one in found}, percentile),
    }
    kl = {}
    for name, observer in rivals.items():
        recipe = replace(
            bench.recipe, observer=observer, activation_bits=8, sites=bench.recipe.carrier_names, layers={}
        )
        with restored(bench.model):
            turn_on(bench.model, bench.calibration, recipe)
            kl[name] = bench.divergence()
    return kl


def _write_observer(
    folder: Path, config: DictConfig, sites: Mapping[str, Mapping[str, Any]], percentile: float
) -> None:
    content = {
        "_target_": f"{PerLayer.__module__}.{PerLayer.__name__}",
        "percentile": percentile,
        "sites": {name: dict(settings) for name, settings in sites.items()},
    }
    mode = str(config.scale_mode["_target_"]).rpartition(".")[0].rpartition(".")[2]
    head = HEADER.format(
        mode=mode, model=config.model.name, objective=config.task.objective, folder=near(folder), name=NAME
    )
    path = folder / "observer" / f"{NAME}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, head + OmegaConf.to_yaml(OmegaConf.create(content)))


def _result(session: Session, content: Mapping[str, Any]) -> dict[str, Any]:
    checked = content.get("checked", {})
    return {
        "task": "fidelity",
        "metrics": {
            f"fidelity/{name}/kl": Metric(value, "nats/token", "lower") for name, value in checked.items()
        },
        "sites": [],
        "site_summary": {},
        "fidelity": content,
        "config": OmegaConf.to_container(session.config, resolve=True),
        "environment": environment.describe(str(session.device)),
        "hashes": session.hashes,
        "seconds": session.seconds,
    }
