"""What one W&B run is told of a job."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualscale_mamba.report.collect import flattened
from dualscale_mamba.study.identity import content as content_hash
from dualscale_mamba.tracking import content
from dualscale_mamba.tracking.base import without_harm

FAIRNESS_COLUMNS = ("fact", "value")
# What of a configuration says how a checkpoint was quantized.
QUANTIZATION = ("precision", "scale_mode", "observer", "granularity", "quantize")
BYTES_PER_MB = 1e6

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WandbRun:
    """One run of W&B.

    Attributes:
        run: ``wandb.sdk.wandb_run.Run``.
        artifact_mb: Larger artifacts are left out.
    """

    run: Any
    artifact_mb: float = 50.0

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`."""
        without_harm("W&B", lambda: self.send(result, folder))

    def send(self, result: Mapping[str, Any], folder: Path) -> None:
        """Summary, curves over the layers, tables, picture and artifacts.

        Raises:
            Exception: Whatever the client raises, without a common base.
        """
        self.run.tags = tuple(dict.fromkeys([*(self.run.tags or ()), content.hardware(result)[:64]]))
        self.run.config.update(content.provenance(result), allow_val_change=True)
        self.run.summary.update(content.scalars(result))
        self._send_layers(result)
        self._send_media(result, folder)
        for artifact in self._artifacts(result, folder):
            self.run.log_artifact(artifact)

    def _send_layers(self, result: Mapping[str, Any]) -> None:
        """Curves are history, with the layer on their axis; the summary does not repeat the last layer."""
        if getattr(self.run, "resumed", False) and self.run.starting_step:
            return  # this job was logged before: its curves are there, and history only grows
        self.run.define_metric("layer", hidden=True, summary="none")
        self.run.define_metric("layer/*", step_metric="layer", summary="none")
        for row in content.layer_rows(result):
            self.run.log(row)

    def _send_media(self, result: Mapping[str, Any], folder: Path) -> None:
        import wandb

        facts = [[key, str(value)] for key, value in flattened(result["fairness"])]
        media = {
            "sites": _table(*content.site_table(result)),
            "tasks": _table(content.TASK_COLUMNS, content.task_rows(result)),
            "fairness": _table(FAIRNESS_COLUMNS, facts),
            "operators": _table(*content.operator_table(result)),
        }
        found: dict[str, Any] = {name: table for name, table in media.items() if table is not None}
        picture = content.picture(folder)
        if picture is not None:
            found["figure"] = wandb.Image(str(picture))
        if found:
            self.run.log(found)

    def _artifacts(self, result: Mapping[str, Any], folder: Path) -> list[Any]:
        statistics = content.artifact(result, "calibration")
        checkpoint = content.artifact(result, "checkpoint")
        made = []
        if statistics is not None and self._fits([statistics]):
            facts = {"statistics": statistics.stem, **result["config"]["calibration"]}
            # Named by content: all runs of a study point to the same one.
            made.append(
                _artifact(f"calibration-{content_hash(statistics)[:12]}", "calibration", [statistics], facts)
            )
        items = content.items(folder)
        if items and self._fits(items):
            made.append(_artifact(f"items-{self.run.id}", "items", items, {}))
        if checkpoint is not None and self._fits([checkpoint]):
            facts = {key: result["config"][key] for key in QUANTIZATION} | {"hashes": result["hashes"]}
            name = f"{result['config']['model']['name']}-quantized"
            made.append(_artifact(name, "quantized-model", [checkpoint], facts))
        return made

    def _fits(self, paths: Sequence[Path]) -> bool:
        files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
        size = sum(file.stat().st_size for file in files) / BYTES_PER_MB
        if size > self.artifact_mb:
            text = "%s is no artifact of the W&B run: %.0f MB, tracker.artifact_mb=%g"
            logger.info(text, paths[0], size, self.artifact_mb)
        return size <= self.artifact_mb


def _table(columns: Sequence[str], rows: list[list[Any]]) -> Any:
    """A W&B table, or None without rows."""
    import wandb

    return wandb.Table(columns=list(columns), data=rows) if rows else None


def _artifact(name: str, kind: str, paths: Sequence[Path], facts: dict[str, Any]) -> Any:
    """The files themselves are read when they are sent: a copy of each in the user's home would pile up."""
    import wandb

    made = wandb.Artifact(name, type=kind, metadata=facts)
    for path in paths:
        add = made.add_dir if path.is_dir() else made.add_file
        add(str(path), policy="immutable", skip_cache=True)
    return made
