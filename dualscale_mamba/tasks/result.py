"""What ``result.json`` says of a run: its numbers, with what they may be compared, and what the run has made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from omegaconf import OmegaConf

from dualscale_mamba import environment
from dualscale_mamba.evaluation.base import Metric
from dualscale_mamba.models.config import name_of_dtype
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.quantization.pipeline import QuantizationReport
from dualscale_mamba.quantization.widths import condensed
from dualscale_mamba.sites import SITES, short_name
from dualscale_mamba.tasks.checkpoints import target_of
from dualscale_mamba.tasks.session import Session


def result_of(
    task: str,
    session: Session,
    report: QuantizationReport,
    metrics: Mapping[str, Metric],
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of ``result.json``.

    Args:
        task: Short name of it.
        session: Of the run.
        report: What was quantized.
        metrics: By name.
        evaluation: What each evaluation says of its data and order.
    """
    return {
        "task": task,
        "metrics": metrics,
        "sites": report.sites,
        "site_summary": report.summary,
        "widths": report.widths,
        "states": session.states,
        "config": OmegaConf.to_container(session.config, resolve=True),
        "environment": environment.describe(str(session.device)),
        "hashes": session.hashes,
        "fairness": fairness(session, report, evaluation or {}),
        "seconds": session.seconds,
        "artifacts": artifacts(session),
    }


def bits_per_value(report: QuantizationReport) -> float | None:
    """Mean stored bits of a value over the quantized sites, or None without any."""
    bits = [float(site["bits_per_value"]) for site in report.sites]
    return sum(bits) / len(bits) if bits else None


def state_bits(model: Any) -> float | None:
    """Stored bits of a value of the state between steps, scales and residuals included; None of a foreign model."""
    if not isinstance(model, MambaLM):
        return None
    coding = model.blocks()[0].mixer.state_store.coding
    own = 8.0 * model.state_dtype.itemsize
    return own if coding is None else coding.bits_per_value(model.config.d_state)


def sites_of(report: QuantizationReport, family: str) -> list[str]:
    """Short names of the sites that are int8 in some layer, in the order of the data flow."""
    found = {short_name(str(row["name"])) for row in report.sites}
    return [site for site in SITES[family] if site in found]


def artifacts(session: Session) -> dict[str, str]:
    """Files that the run has used or made and that lie elsewhere: the statistics, where they are kept."""
    calibration, target = session.calibration, target_of(session.config)
    found = {"calibration": None if calibration is None else calibration.path, "checkpoint": target}
    return {kind: str(path.absolute()) for kind, path in found.items() if path is not None}


def fairness(session: Session, report: QuantizationReport, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """What two arms must share for their difference to be due to the code alone.

    Args:
        session: Of the run.
        report: What was quantized.
        evaluation: What each evaluation says of its data and order.
    """
    config, recipe = session.config, session.recipe
    return {
        "bits_per_value": bits_per_value(report),
        "state_bits": state_bits(session.model),
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
        "evaluation": dict(evaluation),
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
