"""A session and a folder: saving the model that it has quantized, and running one that was saved."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.configuration.checkpoints import contradictions
from dualscale_mamba.environment import numerics_hash
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.models.config import DTYPES
from dualscale_mamba.models.config_json import config_to_json
from dualscale_mamba.models.pretrained import Pretrained, load_pretrained
from dualscale_mamba.models.weights import read_json
from dualscale_mamba.quantization.checkpoint import report_rows
from dualscale_mamba.quantization.checkpoint_folder import Origin, write_checkpoint
from dualscale_mamba.quantization.manifest import CONFIG, SETTINGS, TOKENIZER, WEIGHTS, Manifest
from dualscale_mamba.quantization.pipeline import QuantizationReport, summary_of
from dualscale_mamba.quantization.weight_pass import bits_per_weight

if TYPE_CHECKING:
    from dualscale_mamba.tasks.session import Session

logger = logging.getLogger(__name__)


def saved_report(model: Any, manifest: Manifest) -> QuantizationReport:
    """What was chosen when the model of a checkpoint was quantized."""
    rows = report_rows(manifest)
    widths = {name: str(facts["width"]) for name, facts in manifest["layers"].items()}
    return QuantizationReport(rows, summary_of(rows), widths, bits_per_weight(model))


def check_settings(config: DictConfig, manifest: Manifest) -> None:
    """Refuse a configuration that says otherwise than the checkpoint, which only now is here: it came from a hub.

    Raises:
        ConfigError: Naming the folder that it was fetched to.
    """
    plain = {str(key): _plain(config[key]) for key in ("model", *SETTINGS) if key in config}
    for error in contradictions(plain, manifest):
        hint = f"It lies in {manifest.folder} now: model={manifest.folder} takes its settings."
        raise ConfigError(error.key, error.value, error.allowed, hint)


def load_original(manifest: Manifest, place: str | None, device: torch.device) -> Pretrained:
    """The unquantized model that a checkpoint was made from.

    Args:
        manifest: Of the checkpoint.
        place: Where it is, if not where the checkpoint says.
        device: Where it shall lie.

    Raises:
        CheckpointError: It is not there, or is another one.
    """
    origin = manifest["provenance"]
    source = str(place or origin["source"])
    wanted = f"{manifest.folder} was made from {origin['source']}, with which an evaluation compares"
    hint = "give model.reference=FOLDER with that model, or leave divergence out of evaluation"
    try:
        again = load_pretrained(
            source,
            revision=None if place else origin["revision"],
            dtype=DTYPES[manifest["dtype"]],
            residual_dtype=DTYPES[manifest["residual_dtype"]],
            state_dtype=DTYPES[manifest["state_dtype"]],
            device=device,
            seed=int(origin["seed"]),
            family=manifest["family"],
        )
    except (CheckpointError, ConfigError) as error:
        raise CheckpointError(f"{wanted}; it cannot be loaded ({error}): {hint}") from error
    if again.manifest is not None or again.weights_hash != origin["weights"]:
        raise CheckpointError(f"{wanted}; {source} holds other weights than those: {hint}")
    return again


def save(session: Session, report: QuantizationReport, result: Mapping[str, Any]) -> None:
    """Write the session's model to the folder that ``save`` names.

    Args:
        session: Its model is converted.
        report: What was chosen.
        result: Content of the run's ``result.json``.

    Raises:
        OSError: The disk is full or the folder may not be written.
    """
    target = target_of(session.config)
    assert target is not None
    origin = _origin(session, result)
    write_checkpoint(target, session.model, report.widths, list(report.sites), origin, result)
    size = (target / WEIGHTS).stat().st_size
    logger.info("saved %s, %.1f MB; python run.py model=%s reads it again", target, size / 1e6, target)


def target_of(config: DictConfig) -> Path | None:
    """Where the model shall be saved, or None."""
    return None if config.save is None else Path(str(config.save)).expanduser()


def _origin(session: Session, result: Mapping[str, Any]) -> Origin:
    config, pretrained = session.config, session.pretrained
    folder = pretrained.folder
    given = folder is not None and (folder / TOKENIZER).is_file()
    tokenizer = pretrained.tokenizer.content.encode()
    groups = (*SETTINGS, "model")
    return Origin(
        sizes=read_json(folder / CONFIG) if folder is not None else config_to_json(pretrained.config),
        tokenizer=(folder / TOKENIZER).read_bytes() if folder is not None and given else tokenizer,
        settings={name: _plain(config[name]) for name in SETTINGS if name in config},
        choices={group: name for group, name in result.get("choices", {}).items() if group in groups},
        provenance={
            "source": str(config.model.source),
            "revision": config.model.revision,
            "seed": int(config.seed),
            "weights": session.hashes["weights"],
            "calibration_tokens": session.hashes.get("calibration_tokens"),
            "kernels": session.hashes["kernels"],
            "numerics": numerics_hash(),
            "device": session.device.type,
            "ops": str(config.ops),
            "torch": torch.__version__,
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        },
    )


def _plain(node: Any) -> Any:
    return OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
