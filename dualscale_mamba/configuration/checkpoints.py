"""Rules of a configuration whose model is a quantized checkpoint, or that shall save one."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.utils import get_class

from dualscale_mamba.configuration.folders import MODEL, TYPES
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.quantization.manifest import Manifest, check_target, is_checkpoint, manifest_at

# Keys of a setting that do not decide what a model becomes.
WITHOUT_EFFECT = {"calibration": ("cache",)}
SAVES = "dualscale_mamba.tasks.ptq.run"
# Tasks that need the unquantized model, and the evaluation that does.
ON_SOURCES = tuple(f"dualscale_mamba.tasks.{name}.run" for name in ("calibrate", "allocate", "fidelity"))
COMPARES = "dualscale_mamba.evaluation.divergence.Divergence"
MADE_HERE = ("embedded:", "random:")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def quantized(plain: Mapping[str, Any]) -> Manifest | None:
    """The manifest of the model's source, where that is a quantized checkpoint on this machine.

    Args:
        plain: A resolved configuration.

    Raises:
        CheckpointError: It is damaged, or of another version.
    """
    return manifest_at(Path(str(plain[MODEL]["source"])).expanduser()) if is_quantized(plain) else None


def is_quantized(plain: Mapping[str, Any]) -> bool:
    """Whether the model's source is a quantized checkpoint on this machine, intact or not."""
    return is_checkpoint(Path(str(plain[MODEL]["source"])).expanduser())


def problems(plain: Mapping[str, Any]) -> Iterator[ConfigError | CheckpointError]:
    """What keeps a configuration from running on a quantized checkpoint, or from saving one.

    Args:
        plain: A resolved configuration.
    """
    try:
        found = quantized(plain)
    except CheckpointError as error:
        yield error
        return
    if found is None:
        if plain[MODEL].get("reference") is not None and not HUB_ID.fullmatch(str(plain[MODEL]["source"])):
            yield ConfigError(
                "model.reference", plain[MODEL]["reference"], "null: the model is its own reference unless it is a"
                " quantized checkpoint",
            )  # fmt: skip
        yield from _unsavable(plain)
        return
    yield from contradictions(plain, found)
    source, task = plain[MODEL]["source"], str(plain["task"].get("_target_"))
    if task in ON_SOURCES:
        name = task.split(".")[-2]
        hint = "It was calibrated when it was quantized; give its source for that."
        yield ConfigError("task", name, f"ptq, generate or profile, for {source} is quantized", hint)
    if plain["save"] is not None:
        yield ConfigError("save", plain["save"], f"null, for {source} is a checkpoint", "Copy the folder.")
    yield from _without_reference(plain, found)


def _unsavable(plain: Mapping[str, Any]) -> Iterator[ConfigError]:
    """Why a model that is quantized now cannot be saved."""
    save = plain["save"]
    if save is None:
        return
    if not isinstance(save, str) or not save.strip():
        yield ConfigError("save", save, "a folder, or null")
    elif plain["task"].get("_target_") != SAVES:
        yield ConfigError("save", save, "null with this task", "task=ptq saves.")
    elif plain[MODEL].get("implementation") != "native":
        yield ConfigError("save", save, f"null with model.implementation={plain[MODEL]['implementation']}")
    elif getattr(get_class(plain["scale_mode"]["_target_"]), "is_simulated", False):
        hint = "No kernel stores its codes; choose a scale_mode of eight bits."
        yield ConfigError("save", save, "null while scale_mode is only simulated", hint)
    else:
        try:
            check_target(Path(save).expanduser())
        except ConfigError as error:
            yield error


def taken(config: Mapping[str, Any], places: set[str]) -> Iterator[str]:
    """Why a job cannot save where another job of its multirun does.

    Args:
        config: Of the job.
        places: Where the jobs before it save; its own place is added.
    """
    save = config.get("save")
    if save is None:
        return
    place = str(Path(str(save)).expanduser().absolute())
    if place in places:
        yield str(
            ConfigError(
                "save", save, "a folder for each job", "Put what differs into it: save='DIR/${name}'."
            )
        )
    places.add(place)


def _without_reference(plain: Mapping[str, Any], found: Manifest) -> Iterator[ConfigError]:
    """Whether an evaluation asks for the unquantized model and nothing says where that is."""
    asking = [
        name
        for name, node in (plain.get("evaluation") or {}).items()
        if str(node.get("_target_")) == COMPARES
    ]
    place = plain[MODEL].get("reference") or found["provenance"]["source"]
    is_here = str(place).startswith(MADE_HERE) or Path(str(place)).expanduser().is_dir()
    if asking and not is_here and not HUB_ID.fullmatch(str(place)):
        weights = found["provenance"]["weights"]
        yield ConfigError(
            "model.reference", plain[MODEL].get("reference"),
            f"the folder of the unquantized model, with which evaluation={asking[0]} compares",
            f"{place} is not here; its weights have the sha256 {weights[:12]}... Or leave that evaluation out.",
        )  # fmt: skip


def contradictions(plain: Mapping[str, Any], found: Manifest) -> Iterator[ConfigError]:
    """What a configuration says otherwise than the checkpoint that it names; the first of each part."""
    source = plain[MODEL]["source"]
    hint = "A checkpoint runs as it was saved: quantize its source again for other settings."
    for name, stored in found["settings"].items():
        for key, value, was in _differences(name, plain.get(name), stored):
            yield ConfigError(key, value, f"{_shown(was)}, with which {source} was quantized", hint)
            break
    for name in TYPES:
        value = plain[MODEL].get(name)
        if value not in (found[name], "auto"):
            yield ConfigError(
                f"{MODEL}.{name}", value, f"{found[name]}, in which {source} was saved",
                "Its logits are those of that type; quantize its source again in another one.",
            )  # fmt: skip
    if plain[MODEL].get("implementation") != "native":
        yield ConfigError(
            "model.implementation", plain[MODEL].get("implementation"), f"native: {source} is quantized"
        )


def _differences(key: str, value: Any, stored: Any) -> Iterator[tuple[str, Any, Any]]:
    """Keys of a setting whose values are not the stored ones, names of files and of classes first."""
    if not (isinstance(value, Mapping) and isinstance(stored, Mapping)):
        if value != stored:
            yield key, value, stored
        return
    ignored = WITHOUT_EFFECT.get(key, ())
    for name in ("name", "_target_"):
        if value.get(name) != stored.get(name):
            given, was = (str(node.get(name)).rpartition(".")[2] for node in (value, stored))
            yield key, given, was
            return
    for name in sorted({*value, *stored} - set(ignored)):
        yield from _differences(f"{key}.{name}", value.get(name), stored.get(name))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
