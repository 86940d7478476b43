"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from dualscale_mamba.report.collect import flattened
from dualscale_mamba.tracking import content
from dualscale_mamba.tracking.base import require, without_harm

FOLDER = "tensorboard"
Plain = bool | int | float | str


@dataclass(frozen=True)
class TensorBoardTracker:
    """Writes ``tensorboard/`` into each run's folder; show a study with ``tensorboard --logdir FOLDER``."""

    def __post_init__(self) -> None:
        require("tensorboard", "tensorboard")

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> Iterator[TensorBoardRun]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        yield TensorBoardRun(run_id)


@dataclass(frozen=True)
class TensorBoardRun:
    """One run's event file.

    Attributes:
        run_id: Its name in the table of hyperparameters.
    """

    run_id: str

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`: numbers, curves over layers, settings, picture."""
        without_harm("TensorBoard", lambda: self._write(result, folder))

    def _write(self, result: Mapping[str, Any], folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        for old in (folder / FOLDER).glob("events.out.tfevents.*"):
            old.unlink()  # TensorBoard would show both
        with SummaryWriter(str(folder / FOLDER)) as writer:  # type: ignore[no-untyped-call]
            add: Any = writer
            for name, value in content.scalars(result).items():
                add.add_scalar(name, value)
            for row in content.layer_rows(result):
                for name, value in row.items():
                    if name != "layer":
                        add.add_scalar(name, value, global_step=int(row["layer"]))
            add.add_text("run", f"{self.run_id}: {result.get('name')}")
            self._settings(add, result)
            if (picture := content.picture(folder)) is not None:
                add.add_image("figure", _pixels(picture), dataformats="HWC")

    def _settings(self, writer: Any, result: Mapping[str, Any]) -> None:
        """The table of hyperparameters, in the same event file: ``add_hparams`` would begin a run of its own."""
        from torch.utils.tensorboard.summary import hparams

        settings = {"id": self.run_id, "arm": result.get("arm"), **result.get("choices", {})}
        settings |= dict(flattened(result["config"]))
        plain = {key: _plain(value) for key, value in settings.items()}
        for summary in hparams(plain, content.metrics(result)):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)


def _plain(value: Any) -> Plain:
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _pixels(path: Path) -> Any:
    """The picture as uint8 (height, width, 3)."""
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
