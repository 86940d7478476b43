"""The folder of a quantized checkpoint, written so that it is there as a whole or not at all."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file

import dualscale_mamba
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.quantization.checkpoint import description, tensors_of
from dualscale_mamba.quantization.manifest import (
    CARD,
    CONFIG,
    FORMAT_VERSION,
    KEY,
    QUANT_METHOD,
    RESULT,
    TOKENIZER,
    WEIGHTS,
    Manifest,
    check_target,
    hash_of,
    sealed,
)
from dualscale_mamba.quantization.model_card import card
from dualscale_mamba.quantization.tensor_file import digest_of
from dualscale_mamba.study.files import plain


@dataclass(frozen=True)
class Origin:
    """What a checkpoint says about where it comes from.

    Attributes:
        sizes: ``config.json`` of the source.
        tokenizer: Content of its ``tokenizer.json``.
        settings: Parts of the configuration that decided the content, by name.
        choices: Chosen file of each configuration group.
        provenance: Source, revision, hashes and date.
    """

    sizes: Mapping[str, Any]
    tokenizer: bytes
    settings: Mapping[str, Any]
    choices: Mapping[str, Any]
    provenance: Mapping[str, Any]


def write_checkpoint(
    target: Path,
    model: MambaLM,
    widths: Mapping[str, str],
    rows: list[dict[str, Any]],
    origin: Origin,
    result: Mapping[str, Any],
) -> Manifest:
    """Write a converted model.

    Args:
        target: A folder that :func:`check_target` accepts.
        model: Converted.
        widths: Word for the width of each layer.
        rows: What was chosen at each site.
        origin: Where it comes from.
        result: Content of the run's ``result.json``.

    Returns:
        What the folder says about itself.

    Raises:
        ConfigError: Something has come to lie there meanwhile.
        OSError: The disk is full or the folder may not be written; nothing is left of it.
    """
    with _replacing(target) as folder:
        (folder / TOKENIZER).write_bytes(origin.tokenizer)
        save_file(tensors_of(model), folder / WEIGHTS)
        quantization = {
            "quant_method": QUANT_METHOD,
            "format_version": FORMAT_VERSION,
            "package_version": dualscale_mamba.__version__,
            **description(model, widths, rows, bool(origin.settings["precision"].get("rotate_residual"))),
            "settings": origin.settings,
            "choices": origin.choices,
            "provenance": origin.provenance,
            "tokenizer": hash_of(folder / TOKENIZER),
        }
        config = plain({**origin.sizes, KEY: quantization})
        made = Manifest(target, sealed(config, digest_of(folder / WEIGHTS)))
        (folder / CONFIG).write_text(json.dumps(made.config, indent=1, allow_nan=False), encoding="utf-8")
        (folder / RESULT).write_text(json.dumps(plain(result), indent=1, allow_nan=False), encoding="utf-8")
        (folder / CARD).write_text(card(made, result), encoding="utf-8")
    return made


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A new folder beside ``target`` that takes its place at the end, or vanishes."""
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    former = made.with_name(f"{made.name}.former")
    try:
        made.chmod(0o755)
        yield made
        for path in made.iterdir():
            path.chmod(0o644)
        check_target(target)
        if target.exists():
            target.rename(former)
        made.rename(target)
    except BaseException as error:
        shutil.rmtree(made, ignore_errors=True)
        if former.exists() and not target.exists():
            former.rename(target)
        if isinstance(error, SafetensorError):
            raise OSError(f"{target} cannot be written ({error})") from error
        raise
    shutil.rmtree(former, ignore_errors=True)
