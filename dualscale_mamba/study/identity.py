"""Who a job is: the content hash of everything that decides its result.

The scientific part of the configuration, the checkpoint's files, the calibration and evaluation texts, the kernels and
the Python sources that compute. Where a job saves its model is in it too, for that folder is part of what it makes.
Names, tags, run folders and trackers are not in it. A checkpoint or a set that comes from a hub is known by its name
and revision, because it need not be here yet. The hardware is not in it either: a result says where it was measured,
and a comparison says where that differs.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import dualscale_mamba
from dualscale_mamba import environment
from dualscale_mamba.data.text import FILE_PREFIX
from dualscale_mamba.quantization.manifest import RESULT, is_checkpoint
from dualscale_mamba.study.files import plain

ID_LENGTH = 12
# Top-level keys that say how a job is called, kept, shown or sped up.
LABELS = (
    "arm",
    "evaluation_cache_gib",
    "group",
    "hydra",
    "name",
    "objective",
    "on_error",
    "paths",
    "tags",
    "tracker",
)


def scientific(config: DictConfig) -> dict[str, Any]:
    """The part of a composed configuration that decides the result, resolved, in JSON's types."""
    kept = {str(key): _resolved(config, str(key)) for key in config if key not in LABELS}
    kept["data"] = {key: value for key, value in kept["data"].items() if key != "root"}
    kept["calibration"] = {key: value for key, value in kept["calibration"].items() if key != "cache"}
    kept["device"] = str(kept["device"]).partition(":")[0]
    source = Path(str(kept["model"]["source"])).expanduser()
    if source.is_dir():  # its content counts, not where it lies
        kept["model"] = {**kept["model"], "source": source.name}
    made: dict[str, Any] = _without_folders(plain(kept))
    return made


def _without_folders(value: Any) -> Any:
    """The same, texts of ``file:PATH`` by their names alone."""
    if isinstance(value, dict):
        return {key: _without_folders(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item) for item in value]
    is_file = isinstance(value, str) and value.startswith(FILE_PREFIX)
    return f"{FILE_PREFIX}{Path(value).name}" if is_file else value


def _resolved(config: DictConfig, key: str) -> Any:
    value = config[key]
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def job_id(config: DictConfig) -> str:
    """The identity of a validated configuration: 12 hexadecimal digits.

    Args:
        config: Composed; its files must exist.

    Raises:
        OSError: A file of the checkpoint or of the data cannot be read.
    """
    parts = {
        "config": scientific(config),
        "checkpoint": _checkpoint(str(config.model.source)),
        "data": [content(path) for path in _data_files(config)],
        "kernels": environment.kernel_hash(),
        "numerics": environment.numerics_hash(),
        "package": dualscale_mamba.__version__,
    }
    if "python_docs" in json.dumps(parts["config"]):
        parts["python"] = platform.python_version()
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:ID_LENGTH]


def _data_files(config: DictConfig) -> Iterable[Path]:
    from dualscale_mamba.configuration import instantiate
    from dualscale_mamba.data.text import source_files

    root = instantiate.data_root(config)
    if not is_checkpoint(
        Path(str(config.model.source)).expanduser()
    ):  # one that is quantized is not calibrated again
        yield from source_files(str(config.calibration.source), root)
    for evaluator in instantiate.evaluators(config).values():
        yield from evaluator.files(root)


def _checkpoint(source: str) -> list[str]:
    """Content of the files of a checkpoint on this machine; nothing for one that a name and a seed stand for."""
    from dualscale_mamba.models.pretrained import EMBEDDED, locate

    folder = Path(source).expanduser()
    if source.startswith(EMBEDDED):
        folder = locate(source, None)
    if not folder.is_dir():
        return []
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".bin"))
    kept = [path for path in files if path.name != RESULT]  # what a checkpoint tells of the run that made it
    return [f"{path.name}:{content(path)}" for path in kept]


def content(path: Path) -> str:
    """SHA-256 of a file; read once as long as it does not change."""
    facts = path.stat()
    return _content(path.resolve(), facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _content(path: Path, size: int, changed: int) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
