"""All rules of a configuration in one place, asked before anything heavy is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dualscale_mamba.configuration import allocation, checkpoints, fidelity, sites, states, stress
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.sites import SITES

DTYPES = ("auto", "float32", "float16", "bfloat16")
CHOICES: dict[str, tuple[Any, ...]] = {
    "ops": ("compiled", "reference"),
    "arm": (None, "baseline", "control", "treatment"),
    "on_error": ("continue", "stop"),
    "model.implementation": ("native", "mamba_ssm"),
    "model.family": tuple(SITES),
    "model.dtype": DTYPES,
    "model.residual_dtype": DTYPES[1:],
    "model.state_dtype": DTYPES[1:3],
    "precision.rotate": (True, False),
    "precision.rotate_residual": (True, False),
    "tracker.mode": ("offline", "online", "disabled"),
    "task.cuda_graphs": (True, False),
    "profiling.*.cuda_graphs": (True, False),
}
# Nodes that no constructor reads, so that nothing else would notice a key too many.
KEYS = {
    "": "name group arm tags objective on_error seed device ops data evaluation_cache_gib task model precision "
    "rounding scale_mode observer granularity state quantize calibration evaluation profiling tracker paths save hydra",
    "quantize": "sites layers formats",
    "data": "root",
    "model": "name family source revision implementation dtype residual_dtype state_dtype reference",
    "precision": "name weights layers activations linear_input_scale rotate rotate_residual x_proj_reads",
    "precision.weights": "bits group_size embedding head",
    "precision.activations": "bits sites observer overrides",
    "calibration": "source samples length batch_size seed cache",
}
POSITIVE = (
    "calibration.samples",
    "calibration.length",
    "calibration.batch_size",
    "task.tokens",
    "task.batch_sizes",
    "task.prompt_lengths",
    "task.repeats",
    "tracker.timeout",
    "profiling.*.prompts",
    "profiling.*.tokens",
    "profiling.*.batch_sizes",
    "profiling.*.prompt_lengths",
    "profiling.*.lengths",
)
NOT_NEGATIVE = (
    "seed",
    "calibration.seed",
    "evaluation_cache_gib",
    "task.temperature",
    "task.warmup",
    "profiling.*.warmup",
    "profiling.*.seconds",
)
# Lists that may not be empty, of the task and of profilers.
SIZE_LISTS = ("batch_sizes", "prompt_lengths", "lengths")
PERCENTILES = (
    "observer.percentile",
    "observer.percentiles",
    "task.percentiles",
    "precision.activations.observer.percentile",
    "precision.activations.overrides.*",
)


class InvalidConfigError(ValueError):
    """All problems of a configuration, one sentence each.

    Args:
        sentences: What is wrong.
    """

    def __init__(self, sentences: Sequence[str]) -> None:
        self.sentences = list(sentences)
        super().__init__("\n".join(self.sentences))


def validate(config: DictConfig) -> None:
    """Refuse a configuration that cannot run.

    Raises:
        InvalidConfigError: With one sentence for each problem.
    """
    found = problems(config)
    if found:
        raise InvalidConfigError(found)


def problems(config: DictConfig) -> list[str]:
    """One sentence for each problem of a composed configuration; empty if it can run."""
    try:
        plain = _plain(config)
    except OmegaConfBaseException as error:
        return [" ".join(str(error).split())]
    errors = [str(error) for rule in RULES for error in rule(plain)]
    # Settings are made into objects only when the plain rules hold, so that nothing is reported twice.
    return errors or _made(config)


def _plain(config: DictConfig) -> dict[str, Any]:
    return {str(key): _resolved(config, str(key)) for key in config if key not in ("hydra", "paths")}


def _resolved(config: DictConfig, key: str) -> Any:
    value = config[key]
    return (
        OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        if OmegaConf.is_config(value)
        else value
    )


def _made(config: DictConfig) -> list[str]:
    """Make every object of the configuration: their own rules are in their constructors."""
    from dualscale_mamba.configuration.instantiate import check_parts

    return [" ".join(str(error).split()) for error in check_parts(config)]


def values(plain: dict[str, Any], pattern: str) -> Iterator[tuple[str, Any]]:
    """Key and value for a dotted pattern (``*`` is any key); one pair for each element of a list."""
    found: list[tuple[str, Any]] = [("", plain)]
    for name in pattern.split("."):
        inside = [(prefix, node) for prefix, node in found if isinstance(node, dict)]
        names = [(p, n, key) for p, n in inside for key in (n if name == "*" else [name]) if key in n]
        found = [(f"{prefix}.{key}".lstrip("."), node[key]) for prefix, node, key in names]
    for key, value in found:
        if isinstance(value, list):
            yield from ((key, element) for element in value)
        else:
            yield key, value


def _choices(plain: dict[str, Any]) -> Iterator[ConfigError]:
    for pattern, allowed in CHOICES.items():
        for key, value in values(plain, pattern):
            if not any(
                value is option or (value == option and type(value) is type(option)) for option in allowed
            ):
                yield ConfigError(key, value, "one of " + ", ".join(_shown(option) for option in allowed))


def _shown(value: Any) -> str:
    return {None: "null", True: "true", False: "false"}.get(value, str(value))


def _keys(plain: dict[str, Any]) -> Iterator[ConfigError]:
    for name, allowed in KEYS.items():
        for _, node in values(plain, name) if name else [("", plain)]:
            for key in node:
                if key not in allowed.split():
                    place = f"{name}.{key}".lstrip(".")
                    yield ConfigError(place, node[key], f"one of the keys {', '.join(allowed.split())}")


def _numbers(plain: dict[str, Any]) -> Iterator[ConfigError]:
    rules: list[tuple[Sequence[str], Callable[[float], bool], str]] = [
        (POSITIVE, lambda v: v > 0 and v == int(v), "a whole number above 0"),
        (NOT_NEGATIVE, lambda v: v >= 0, "a number not below 0"),
        (PERCENTILES, lambda v: 50 < v <= 100, "a number in (50, 100]"),
        (("task.top_p",), lambda v: 0 < v <= 1, "a number in (0, 1]"),
    ]
    for patterns, holds, allowed in rules:
        for pattern in patterns:
            for key, value in values(plain, pattern):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not holds(value):
                    yield ConfigError(key, value, allowed)


def _size_lists(plain: dict[str, Any]) -> Iterator[ConfigError]:
    for group in ("task", "profiling.*"):
        for place, node in values(plain, group):
            for key in SIZE_LISTS:
                value = node.get(key, [1]) if isinstance(node, dict) else [1]
                if not isinstance(value, list) or not value:
                    yield ConfigError(f"{place}.{key}", value, "a list of whole numbers, as in [1,8]")


def _layers(plain: dict[str, Any]) -> Iterator[ConfigError]:
    layers = plain["precision"].get("layers")
    if not (layers is None or isinstance(layers, dict)):
        allowed = "a map of patterns of layers to widths"
        yield ConfigError(
            "precision.layers", layers, allowed, "Type +precision.layers={*.dt_proj: w8a8, lm_head: w8a16}."
        )


def _device(plain: dict[str, Any]) -> Iterator[ConfigError]:
    device = str(plain["device"])
    kind, _, index = device.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (index and (kind != "cuda" or not index.isdigit())):
        yield ConfigError("device", device, "auto, cpu, cuda or cuda:INDEX")
    elif kind == "cuda":
        import torch

        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= count:
            seen = f"{count} GPUs are" if count != 1 else "1 GPU is"
            yield ConfigError(
                "device", device, f"a device that exists, and {seen} visible to torch", "Use device=cpu."
            )


def _model(plain: dict[str, Any]) -> Iterator[ConfigError]:
    if plain["model"].get("family") == "mamba1" and plain["model"].get("state_dtype") == "float16":
        yield ConfigError("model.state_dtype", "float16", "float32 for Mamba-1")
    if plain["model"].get("implementation") == "mamba_ssm":
        if _quantizes(plain["precision"]):
            name = plain["precision"].get("name")
            allowed = "none with model.implementation=mamba_ssm, which runs in floating point only"
            yield ConfigError("precision", name, allowed, "Use precision=none.")
        elif importlib.util.find_spec("mamba_ssm") is None:
            yield ConfigError(
                "model.implementation", "mamba_ssm", "native here", "The package is not installed."
            )


def _quantizes(precision: dict[str, Any]) -> bool:
    weights = (precision["weights"].get(part) for part in ("bits", "embedding", "head"))
    return bool(precision["activations"]["bits"] or precision.get("layers") or any(weights))


def _data(plain: dict[str, Any]) -> Iterator[ConfigError]:
    root = plain["data"]["root"]
    if root is not None and not Path(str(root)).expanduser().is_dir():
        yield ConfigError("data.root", root, "a folder that exists, or null")
        return
    if checkpoints.is_quantized(plain):  # it has been calibrated
        return
    from dualscale_mamba.data.text import check_source

    source = plain["calibration"]["source"]
    try:
        check_source(str(source), Path(str(root)).expanduser() if root else None, "calibration.source")
    except ConfigError as error:
        yield error


def _checkpoint(plain: dict[str, Any]) -> Iterator[ConfigError | CheckpointError]:
    """What is asked of a quantized checkpoint, or of the place for a new one."""
    yield from checkpoints.problems(plain)
    if plain["save"] is not None and not (_quantizes(plain["precision"]) or states.is_encoded(plain)):
        hint = "Choose another precision, or copy the checkpoint."
        yield ConfigError("save", plain["save"], "null while nothing is quantized", hint)


def _tags(plain: dict[str, Any]) -> Iterator[ConfigError]:
    if not isinstance(plain["tags"], list):
        yield ConfigError("tags", plain["tags"], "a list, as in tags=[first,second]")


Rule = Callable[[dict[str, Any]], Iterator[ConfigError | CheckpointError]]
RULES = cast(
    "tuple[Rule, ...]",
    (
        _keys,
        _choices,
        _numbers,
        _size_lists,
        sites.problems,
        _layers,
        _device,
        _model,
        _data,
        _tags,
        _checkpoint,
        allocation.problems,
        fidelity.problems,
        stress.problems,
        states.problems,
    ),
)
