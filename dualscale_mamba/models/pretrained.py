"""From a folder, a hub id, the embedded models or a random one to a model that is ready to run."""

from __future__ import annotations

import contextlib
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dualscale_mamba.data.tokenizer import Tokenizer
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.models.config import ModelConfig
from dualscale_mamba.models.config_json import config_from_json
from dualscale_mamba.models.fitting import fitted
from dualscale_mamba.models.initial import RANDOM_SIZES, initialize
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.official import OfficialLM, check_available
from dualscale_mamba.models.quantized import reload
from dualscale_mamba.models.weights import (
    hash_files,
    hash_tensors,
    read_json,
    read_weights,
    weight_files,
)
from dualscale_mamba.quantization.manifest import KEY, Manifest, manifest_at, read_manifest

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).resolve().parent.parent / "assets"
EMBEDDED, RANDOM = "embedded:", "random:"
IMPLEMENTATIONS = ("native", "mamba_ssm")
DEFAULT_TOKENIZER = "mamba1-tiny"
# These published repositories carry no tokenizer; they were trained with this one.
NEOX_TOKENIZED = ("state-spaces/mamba-", "state-spaces/mamba2-")
NEOX_TOKENIZER = "EleutherAI/gpt-neox-20b"

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_SAFE_FILES = [
    *("config.json", "tokenizer.json", "model*.safetensors", "model.safetensors.index.json"),
    *("README.md", "result.json"),
]
_PICKLED_FILES = ["config.json", "tokenizer.json", "pytorch_model*.bin", "pytorch_model.bin.index.json"]


@dataclass(frozen=True)
class Pretrained:
    """A model ready to run.

    Attributes:
        model: In the types and on the device that were asked for.
        tokenizer: Its tokenizer.
        config: Its sizes.
        source: What was asked for.
        weights_hash: sha256 of the weight files (of the tensors for a random model); of a quantized checkpoint that of
            the weights it was made from.
        folder: Where its files lie; None for a random model.
        manifest: What a quantized checkpoint says about itself; None for any other model.
    """

    model: MambaLM | OfficialLM
    tokenizer: Tokenizer
    config: ModelConfig
    source: str
    weights_hash: str
    folder: Path | None = None
    manifest: Manifest | None = None


def load_pretrained(
    source: str,
    *,
    revision: str | None = None,
    dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    implementation: str = "native",
    seed: int = 0,
    family: str | None = None,
    state_dtype: torch.dtype | None = None,
) -> Pretrained:
    """Load a Mamba language model, or a quantized one as it was saved.

    Types that are None are float32, or those in which a quantized checkpoint was saved; it has no others.

    Args:
        source: A folder, a hub id, ``embedded:NAME`` or ``random:NAME``.
        revision: Commit, tag or branch on the hub.
        dtype: Type of linear weights and floating-point activations.
        residual_dtype: Type of the residual stream.
        device: Where the model shall lie.
        implementation: ``native``, or ``mamba_ssm`` for the official package.
        seed: For the weights of a random model.
        family: ``mamba1`` or ``mamba2`` to refuse the other one; None takes either.
        state_dtype: Type of the state of the state space between calls: float32, or float16 for a native Mamba-2.

    Raises:
        CheckpointError: The checkpoint cannot be found, read or understood, or is not what was written.
        ConfigError: The source, the implementation or the type of the state cannot work, or the checkpoint is of
            another family, or quantized and saved in other types.
    """
    check_source(source)
    if implementation not in IMPLEMENTATIONS:
        raise ConfigError("model.implementation", implementation, " or ".join(IMPLEMENTATIONS))
    types = (dtype, residual_dtype, state_dtype)
    asked = Types(*(torch.float32 if one is None else one for one in types))
    if implementation == "mamba_ssm":
        check_available(torch.device(device), asked.state_dtype)
    read = _random(source, seed, family) if source.startswith(RANDOM) else _read(source, revision, family)
    config, where = read.config, read.where
    if read.tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {read.tokenizer.vocab_size} ids, the embedding {config.vocab_size}"
            " rows; they do not belong together"
        )
    if read.manifest is not None:
        model = reload(read.manifest, config, types, implementation, device)
        return _pretrained(model, read, source)
    weights = fitted(config, read.weights, asked.dtype, where)
    if implementation == "mamba_ssm":
        official = OfficialLM(config, weights, asked.dtype, asked.residual_dtype, torch.device(device))
        return _pretrained(official, read, source)
    model = MambaLM(config, *asked)
    model.load_state_dict(weights, assign=True)
    model.tie()
    model.to(device)
    return _pretrained(model, read, source)


class Types(NamedTuple):
    """Of the weights and activations, of the residual stream, of the state between calls."""

    dtype: torch.dtype
    residual_dtype: torch.dtype
    state_dtype: torch.dtype


@dataclass(frozen=True)
class _Read:
    config: ModelConfig
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    fingerprint: str
    where: str
    folder: Path | None = None
    manifest: Manifest | None = None


def _pretrained(model: MambaLM | OfficialLM, read: _Read, source: str) -> Pretrained:
    config = read.config
    logger.info("loaded %s: %d layers, width %d, %s", source, config.n_layer, config.d_model, model.dtype)
    return Pretrained(
        model.eval(), read.tokenizer, config, source, read.fingerprint, read.folder, read.manifest
    )


def _random(source: str, seed: int, family: str | None) -> _Read:
    config = RANDOM_SIZES[source.removeprefix(RANDOM)]
    _check_family(config, family, source)
    weights = initialize(config, seed)
    tokenizer = Tokenizer.from_file(ASSETS / DEFAULT_TOKENIZER / "tokenizer.json")
    return _Read(config, weights, tokenizer, hash_tensors(weights), source)


def _read(source: str, revision: str | None, family: str | None) -> _Read:
    folder = locate(source, revision)
    raw = read_json(folder / "config.json")
    config, manifest = _described(folder, raw)
    _check_family(config, family, str(folder))
    if manifest is not None:
        manifest.check_tokenizer()
    tokenizer = _tokenizer(folder, source, raw.get("eos_token_id"))
    if manifest is not None:
        made_from = str(manifest["provenance"]["weights"])
        return _Read(config, {}, tokenizer, made_from, str(folder), folder, manifest)
    files = weight_files(folder)
    return _Read(config, read_weights(files), tokenizer, hash_files(files), str(folder), folder)


def manifest_of(source: str, revision: str | None = None) -> Manifest | None:
    """What a quantized checkpoint says about itself; None for any other source. A hub id is fetched first.

    Raises:
        CheckpointError: It cannot be fetched, or was changed after it was written.
    """
    return None if source.startswith((EMBEDDED, RANDOM)) else manifest_at(locate(source, revision))


def _described(folder: Path, raw: dict[str, object]) -> tuple[ModelConfig, Manifest | None]:
    """Sizes, and the manifest of a checkpoint that is quantized."""
    manifest = read_manifest(folder, raw) if KEY in raw else None
    sizes = raw if manifest is None else manifest.sizes
    return config_from_json(sizes, str(folder / "config.json")), manifest


def _check_family(config: ModelConfig, family: str | None, where: str) -> None:
    if family not in (None, config.family):
        hint = f"Set model.family={config.family}, or choose another checkpoint."
        raise ConfigError("model.family", family, f"{config.family}, which {where} is", hint)


def check_source(source: str, family: str | None = None) -> None:
    """Refuse a source that cannot work before anything heavy is done; nothing is downloaded.

    Args:
        source: As in :func:`load_pretrained`.
        family: As there; what lies on the hub is compared when it is loaded.

    Raises:
        ConfigError: It names no folder, embedded model, random model or hub id, or a model of another family.
    """
    _check_place(source)
    sizes = sizes_of(source)
    if sizes is not None:
        _check_family(sizes, family, source)


def sizes_of(source: str) -> ModelConfig | None:
    """Sizes of a model that is on this machine; None of one on a hub, or that cannot be read."""
    with contextlib.suppress(CheckpointError):  # told in full when it is loaded
        if source.startswith(RANDOM):
            return RANDOM_SIZES[source.removeprefix(RANDOM)]
        if source.startswith(EMBEDDED) or Path(source).expanduser().is_dir():
            folder = locate(source, None)
            return _described(folder, read_json(folder / "config.json"))[0]
    return None


def _check_place(source: str) -> None:
    for prefix, known in ((EMBEDDED, embedded_names()), (RANDOM, sorted(RANDOM_SIZES))):
        if source.startswith(prefix):
            if source.removeprefix(prefix) not in known:
                raise ConfigError("model.source", source, ", ".join(prefix + name for name in known))
            return
    path = Path(source).expanduser()
    if path.is_file():
        raise ConfigError("model.source", source, "a folder, not a file", f"Give {path.parent}.")
    if not path.is_dir() and not _HUB_ID.match(source):
        hint = "Give model.source=DIR, or paths.checkpoints=DIR for a model that is found under it."
        raise ConfigError(
            "model.source", source, "a folder that exists, a hub id, embedded:NAME or random:NAME", hint
        )


def embedded_names() -> list[str]:
    """The models that the package carries."""
    return sorted(path.parent.name for path in ASSETS.glob("*/model.safetensors"))


def locate(source: str, revision: str | None) -> Path:
    """The folder of a checkpoint; a hub id is fetched first, only the files that are needed.

    Raises:
        CheckpointError: The hub has no such checkpoint or cannot be reached.
    """
    if source.startswith(EMBEDDED):
        return ASSETS / source.removeprefix(EMBEDDED)
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    folder = _fetch(source, revision, _SAFE_FILES)
    if not any(folder.glob("model*.safetensors")):
        folder = _fetch(source, revision, _PICKLED_FILES)
    return folder


def _fetch(repository: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download  # here: its import takes long, and most runs need no hub

    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's and the network's errors share no base
        raise CheckpointError(
            f"{repository} is no folder here, and fetching its revision {revision or 'main'} from the hub"
            f" failed ({type(error).__name__}: {(str(error).splitlines() or ['no message'])[0]})."
            " Give the path of a folder, or check the connection and the name"
        ) from error


def _tokenizer(folder: Path, source: str, eos: object) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        if not source.startswith(NEOX_TOKENIZED):
            published = ", ".join(f"{prefix}*" for prefix in NEOX_TOKENIZED)
            raise CheckpointError(
                f"{folder} has no tokenizer.json; copy it there ({published} use {NEOX_TOKENIZER}'s)"
            )
        path = _fetch(NEOX_TOKENIZER, None, ["tokenizer.json"]) / "tokenizer.json"
    return Tokenizer.from_file(path, eos if isinstance(eos, int) else None)
