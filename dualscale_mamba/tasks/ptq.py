"""Post-training quantization, end to end: load, calibrate, convert, evaluate, profile, record."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba import environment
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.evaluation.base import Context, Metric
from dualscale_mamba.models.config import name_of_dtype
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.profiling.base import Subject
from dualscale_mamba.quantization.pipeline import QuantizationReport
from dualscale_mamba.quantization.widths import condensed
from dualscale_mamba.report import show_run, write_figure
from dualscale_mamba.report.collect import DISTRIBUTION
from dualscale_mamba.sites import SITES, short_name
from dualscale_mamba.study.files import write_json
from dualscale_mamba.tasks.checkpoints import save, target_of
from dualscale_mamba.tasks.distribution import distribution
from dualscale_mamba.tasks.record import RunFolder
from dualscale_mamba.tasks.session import Session, open_session

logger = logging.getLogger(__name__)


@dataclass
class Measured:
    """Metrics so far, and what must be equal in two runs for their metrics to be comparable."""

    metrics: dict[str, Metric] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


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
        _profile(session, report, measured)
        levels = distribution(session.model, session.calibration, session.recipe.carriers, report.sites)
        if levels is not None:
            write_json(folder.path / DISTRIBUTION, levels)
        result = folder.write_result(_result(session, report, measured))
        write_figure(folder.path, result)
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


def _profile(session: Session, report: QuantizationReport, measured: Measured) -> None:
    subject = Subject(session.model, session.device, bits_per_value(report))
    peak = max(_peak(session), session.reference.peak if session.reference else 0)
    for name, profiler in instantiate.profilers(session.config).items():
        with session.timed(f"profile/{name}"):
            measured.metrics |= profiler(subject)
        peak = max(peak, _peak(session))  # a profiler of memory sets the counter back
    if session.device.type == "cuda":
        measured.metrics["memory/peak"] = Metric(peak, "bytes", "lower")


def _peak(session: Session) -> int:
    """Most bytes of device memory since the counter was set back."""
    return torch.cuda.max_memory_allocated(session.device) if session.device.type == "cuda" else 0


def bits_per_value(report: QuantizationReport) -> float | None:
    """Mean stored bits of a value over the quantized sites, or None without any."""
    bits = [float(site["bits_per_value"]) for site in report.sites]
    return sum(bits) / len(bits) if bits else None


def _result(session: Session, report: QuantizationReport, measured: Measured) -> dict[str, Any]:
    config = session.config
    return {
        "task": "ptq",
        "metrics": measured.metrics,
        "sites": report.sites,
        "site_summary": report.summary,
        "widths": report.widths,
        "config": OmegaConf.to_container(config, resolve=True),
        "environment": environment.describe(str(session.device)),
        "hashes": session.hashes,
        "fairness": fairness(session, report, measured),
        "seconds": session.seconds,
        "artifacts": artifacts(session),
    }


def sites_of(report: QuantizationReport, family: str) -> list[str]:
    """Short names of the sites that are int8 in some layer, in the order of the data flow."""
    found = {short_name(str(row["name"])) for row in report.sites}
    return [site for site in SITES[family] if site in found]


def artifacts(session: Session) -> dict[str, str]:
    """Files that the run has used or made and that lie elsewhere: the statistics, where they are kept."""
    calibration, target = session.calibration, target_of(session.config)
    found = {"calibration": None if calibration is None else calibration.path, "checkpoint": target}
    return {kind: str(path.absolute()) for kind, path in found.items() if path is not None}


def fairness(session: Session, report: QuantizationReport, measured: Measured) -> dict[str, Any]:
    """What two arms must share for their difference to be due to the code alone."""
    config, recipe = session.config, session.recipe
    return {
        "bits_per_value": bits_per_value(report),
        "weights_bits": None if report.weights_bits is None else round(report.weights_bits, 4),
        "widths": condensed(report.widths),
        "rounding": repr(recipe.rounding) if recipe.quantizes_weights else "none",
        "sites": sites_of(report, recipe.family),
        "implementation": config.model.implementation,
        "ops": config.ops,
        "kernels": session.hashes["kernels"],
        "weights": session.hashes["weights"],
        "device": str(session.device),
        "dtype": name_of_dtype(session.model.dtype),
        "residual_dtype": name_of_dtype(session.model.residual_dtype),
        "calibration": {
            k: config.calibration[k] for k in ("source", "samples", "length", "batch_size", "seed")
        },
        "calibration_tokens": session.hashes.get("calibration_tokens"),
        "evaluation": measured.facts,
        "x_proj_reads": recipe.x_proj_reads,
        "x_proj_product": x_proj_product(session),
        "linear_input_scale": recipe.linear_input_scale,
        "rotate": recipe.rotate,
        "rotate_residual": recipe.rotate_residual,
        "threads": torch.get_num_threads(),
        "seed": config.seed,
    }


def x_proj_product(session: Session) -> str:
    """How x_proj multiplies: ``integer`` (int8 codes of the closed form) or ``decoded`` (values, in floating point).

    ``some integer`` where its layers differ. Empty for Mamba-2, which has no x_proj.
    """
    if not isinstance(session.model, MambaLM):
        return "decoded" if session.recipe.family == "mamba1" else ""
    mixers = [block.mixer for block in session.model.blocks()]
    found = {m.x_proj.multiplies_codes(m.ssm_input.code) for m in mixers if isinstance(m, MambaMixer)}
    words = {frozenset({True}): "integer", frozenset({False}): "decoded", frozenset(): ""}
    return words.get(frozenset(found), "some integer")
