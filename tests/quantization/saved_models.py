"""Small models that are quantized and saved, for the tests of checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.models.config_json import config_to_json
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained, load_pretrained
from dualscale_mamba.quantization.calibration import run_calibration
from dualscale_mamba.quantization.checkpoint_folder import Origin, write_checkpoint
from dualscale_mamba.quantization.manifest import CONFIG, KEY, WEIGHTS, Manifest, sealed
from dualscale_mamba.quantization.pipeline import QuantizationReport, arrange, convert, prepare
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.quantization.tensor_file import digest_of

TEXT = "The river runs through the old town, and in the spring the meadows beside it are green. " * 2
LENGTH = 24
PROVENANCE = {
    "revision": None, "seed": 0, "calibration_tokens": None, "kernels": "", "numerics": "", "device": "cpu",
    "ops": "reference", "torch": torch.__version__, "date": "2026-01-01T00:00:00+00:00",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """How a model is quantized, and in which types it runs."""

    recipe: Mapping[str, Any]
    types: Mapping[str, torch.dtype] = field(default_factory=dict)


def quantized(source: str, case: Case, device: str = "cpu") -> tuple[Pretrained, QuantizationReport]:
    """A model converted in place, from a few tokens."""
    loaded = load_pretrained(source, device=device, **case.types)
    model = loaded.model
    assert isinstance(model, MambaLM)
    recipe = Recipe(family=model.config.family, **case.recipe)
    ids = tokens(loaded)
    arrangement = arrange(model, [ids], recipe)
    prepare(model, recipe, arrangement)
    calibration = run_calibration(model, [ids], recipe, arrangement)
    return loaded, convert(model, calibration, recipe, [ids])


def tokens(loaded: Pretrained) -> Tensor:
    """Ids (1, LENGTH) of a text, where the model lies."""
    return torch.tensor(loaded.tokenizer.encode(TEXT)[:LENGTH], device=loaded.model.device)[None]


def save(target: Path, loaded: Pretrained, report: QuantizationReport, **result: Any) -> Manifest:
    """Write the model as a run does."""
    folder, model = loaded.folder, loaded.model
    assert isinstance(model, MambaLM)
    raw = config_to_json(loaded.config) if folder is None else json.loads((folder / CONFIG).read_text())
    content = loaded.tokenizer.content.encode()
    origin = Origin(
        sizes=raw,
        tokenizer=content if folder is None else (folder / "tokenizer.json").read_bytes(),
        settings={"precision": {"name": "made", "rotate_residual": False}},
        choices={"precision": "made", "scale_mode": "dual"},
        provenance={**PROVENANCE, "source": loaded.source, "weights": loaded.weights_hash},
    )
    return write_checkpoint(target, model, report.widths, list(report.sites), origin, result)


@torch.inference_mode()
def logits(loaded: Pretrained) -> Tensor:
    """What a model says to the text: all positions at once, then one token after a prefill.

    On a CPU by the operators that need no building, on a GPU by its kernels.
    """
    model, ids = loaded.model, tokens(loaded)
    with ops.implementation("reference" if ids.device.type == "cpu" else "compiled"):
        whole = model(ids)[0]
        cache = model.allocate_cache(1)
        model(ids[:, :-1], cache)
        return torch.cat([whole, model.step(ids[:, -1], cache)]).float().cpu()


def change_tensors(folder: Path, **changes: Tensor | None) -> None:
    """Replace, add or (None) remove tensors, and make the digests agree: a mistake of whoever wrote it."""
    kept = {**load_file(folder / WEIGHTS), **changes}
    save_file({name: tensor for name, tensor in kept.items() if tensor is not None}, folder / WEIGHTS)
    seal(folder)


def change_config(folder: Path, is_sealed: bool = True, **fields: Any) -> None:
    """Set fields of quantization_config; None removes one."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    own = {**config[KEY], **fields}
    config[KEY] = {name: value for name, value in own.items() if value is not None}
    path.write_text(json.dumps(config))
    if is_sealed:
        seal(folder)


def seal(folder: Path) -> None:
    """Write the digests anew."""
    path = folder / CONFIG
    config = json.loads(path.read_text())
    path.write_text(json.dumps(sealed(config, digest_of(folder / WEIGHTS))))
