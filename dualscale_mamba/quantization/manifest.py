"""The manifest of a quantized checkpoint: ``quantization_config`` in its ``config.json``.

It is read without torch: the command line needs its settings before anything heavy is loaded, and ``inspect`` needs
nothing else. Two digests guard it. That of the configuration covers all of ``config.json`` but itself, and so the
other digest, which covers the tensors.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.quantization.tensor_file import digest_of

QUANT_METHOD = "dualscale_mamba"
FORMAT_VERSION = 1
KEY, DIGEST = "quantization_config", "digest"
CONFIG, WEIGHTS, TOKENIZER, CARD, RESULT = (
    *("config.json", "model.safetensors"),
    *("tokenizer.json", "README.md", "result.json"),
)
FILES = (CONFIG, WEIGHTS, TOKENIZER, CARD, RESULT)
# Parts of a run's configuration that decided the content: a run on the checkpoint has them from here.
SETTINGS = (
    "precision",
    "scale_mode",
    "observer",
    "granularity",
    "rounding",
    "quantize",
    "calibration",
    "state",
)
# Field of quantization_config and its type.
FIELDS: dict[str, type] = {
    "package_version": str, "family": str, "dtype": str, "residual_dtype": str, "state_dtype": str, "tied": bool,
    "rotations": dict, "x_proj_reads": str, "layers": dict, "sites": dict, "settings": dict, "choices": dict,
    "provenance": dict, "tokenizer": str,
}  # fmt: skip


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes:
        folder: Where it lies.
        config: The whole ``config.json``.
    """

    folder: Path
    config: dict[str, Any]

    def __getitem__(self, field: str) -> Any:
        """A field of ``quantization_config``."""
        return self.config[KEY][field]

    @property
    def sizes(self) -> dict[str, Any]:
        """``config.json`` as it was before the model was quantized."""
        return {name: value for name, value in self.config.items() if name != KEY}

    @property
    def states(self) -> list[dict[str, Any]]:
        """How the state of each layer is coded between steps; empty where it is not."""
        return list(self.config[KEY].get("states") or ())

    @property
    def identity(self) -> str:
        """The digest that covers everything, the tensors by their own digest."""
        return str(self[DIGEST]["config"])

    def check_config(self) -> None:
        """Compare ``config.json`` with its digest.

        Raises:
            CheckpointError: It is not what was written.
        """
        if _digest(self.config) != self[DIGEST]["config"]:
            raise CheckpointError(
                f"{self.folder / CONFIG} was changed after it was written: its digest differs; copy or download it"
                " again"
            )

    def check_tensors(self) -> None:
        """Compare the tensors with their digest.

        Raises:
            CheckpointError: They are not what was written.
        """
        path = self.folder / WEIGHTS
        if digest_of(path) != self[DIGEST]["tensors"]:
            raise CheckpointError(
                f"{path} is not what was written: its tensors do not have the digest that {CONFIG} names; copy or"
                " download the folder again"
            )

    def check_tokenizer(self) -> None:
        """Compare the tokenizer with its digest.

        Raises:
            CheckpointError: It is missing or another one.
        """
        path = self.folder / TOKENIZER
        if not path.is_file():
            raise CheckpointError(
                f"{self.folder} has no {TOKENIZER}, which a checkpoint of this package brings along; copy it there"
            )
        if hash_of(path) != self["tokenizer"]:
            raise CheckpointError(f"{path} is not the tokenizer that was saved; copy or download it again")


def hash_of(path: Path) -> str:
    """SHA-256 of a small file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def sealed(config: Mapping[str, Any], tensors: str) -> dict[str, Any]:
    """``config.json`` with its digests.

    Args:
        config: With ``quantization_config``, in JSON's types.
        tensors: Digest of the weight file.
    """
    made = copy.deepcopy(dict(config))
    made[KEY][DIGEST] = {"tensors": tensors}
    made[KEY][DIGEST]["config"] = _digest(made)
    return made


def _digest(config: Mapping[str, Any]) -> str:
    own = config[KEY]
    digests = {name: value for name, value in own[DIGEST].items() if name != "config"}
    whole = {**config, KEY: {**own, DIGEST: digests}}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder holds a checkpoint of this package, of any version, intact or not."""
    try:
        found = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return bool(found[KEY]["quant_method"] == QUANT_METHOD)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_target(target: Path) -> None:
    """Refuse a place where a checkpoint may not be written.

    Raises:
        ConfigError: Something else is there, or the folder cannot be made.
    """
    if target.is_dir():
        here = sorted(path.name for path in target.iterdir())
        strangers = [name for name in here if name not in FILES]
        if here and (strangers or not is_checkpoint(target)):
            what = f"holds {', '.join((strangers or here)[:4])}"
            _refuse(target, f"a new or empty folder, or an older checkpoint of this package; this one {what}")
    elif target.exists() or target.is_symlink():
        _refuse(target, "a folder, not a file")
    above = next(folder for folder in target.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        _refuse(target, f"a place where you may write, and {above} is none")


def _refuse(target: Path, allowed: str) -> None:
    raise ConfigError("save", target, allowed)


def manifest_at(folder: Path) -> Manifest | None:
    """The manifest of a folder; None where its weights are not quantized, or where there is no ``config.json``.

    Raises:
        CheckpointError: As :func:`read_manifest`.
    """
    path = folder / CONFIG
    try:
        facts = path.stat()
    except OSError:
        return None
    return _kept(folder, facts.st_mtime_ns, facts.st_size)


@lru_cache(maxsize=16)
def _kept(folder: Path, changed: int, size: int) -> Manifest | None:
    found = read_config(folder)
    return read_manifest(folder, found) if KEY in found else None


def read_config(folder: Path) -> dict[str, Any]:
    """The content of ``config.json``.

    Raises:
        CheckpointError: It is missing or no JSON object.
    """
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} has no {CONFIG}; give the folder of a checkpoint") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is no JSON file that can be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return found


def read_manifest(folder: Path, config: Mapping[str, Any], compare: bool = True) -> Manifest:
    """The manifest in a ``config.json``, of this version and as it was written.

    Args:
        folder: Of the checkpoint.
        config: Content of its ``config.json``, with a ``quantization_config``.
        compare: Whether to compare it with its digest.

    Raises:
        CheckpointError: Another package or another version has written it, or it was changed afterwards.
    """
    where, own = str(folder / CONFIG), config[KEY]
    method = own.get("quant_method") if isinstance(own, dict) else None
    if method != QUANT_METHOD:
        raise CheckpointError(
            f"{where}: the checkpoint is quantized already, by {method or 'an unknown method'}, which this package"
            " cannot read; give the original weights"
        )
    _check_version(own, where)
    digests = own.get(DIGEST)
    if not isinstance(digests, dict) or not all(
        isinstance(digests.get(n), str) for n in ("config", "tensors")
    ):
        raise CheckpointError(
            f"{where} has no digest, so nothing says that it is intact; save the model again"
        )
    wrong = [name for name, kind in FIELDS.items() if not isinstance(own.get(name), kind)]
    if wrong:
        raise CheckpointError(
            f"{where}: quantization_config has no {', '.join(wrong)} as version {FORMAT_VERSION} of the format"
            " wants them; copy or download it again"
        )
    made = Manifest(folder, dict(config))
    if compare:
        made.check_config()
    return made


def _check_version(own: Mapping[str, Any], where: str) -> None:
    version = own.get("format_version")
    if version == FORMAT_VERSION:
        return
    written = f"{where}: the checkpoint has format_version {version}, written by dualscale_mamba"
    written += f" {own.get('package_version', 'of an unknown version')}"
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        raise CheckpointError(f"{written}; this package reads {FORMAT_VERSION}: install a newer one")
    raise CheckpointError(
        f"{written}; this package reads {FORMAT_VERSION} alone: save it again from the source"
    )
