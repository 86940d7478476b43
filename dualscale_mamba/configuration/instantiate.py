"""The one module that makes objects from the configuration."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.quantization.site_patterns import SiteFormat, check_places, within
from dualscale_mamba.sites import SITES, SSM_INPUT

if TYPE_CHECKING:
    from dualscale_mamba.evaluation.base import Evaluator
    from dualscale_mamba.profiling.base import Profiler
    from dualscale_mamba.quantization.recipe import Recipe
    from dualscale_mamba.states.format import StateFormat, UnquantizedState
    from dualscale_mamba.tracking.base import Tracker

Task = Callable[[DictConfig], None]


def make(config: DictConfig, key: str) -> Any:
    """The object that ``key`` describes by its ``_target_``.

    Raises:
        ConfigError: The target does not exist or refuses its settings.
    """
    node = OmegaConf.select(config, key)
    if not OmegaConf.is_dict(node) or "_target_" not in node:
        raise ConfigError(key, node, "settings with a _target_")
    try:
        return instantiate(node, _convert_="all")
    except InstantiationException as error:
        cause = error.__cause__
        if isinstance(cause, ConfigError):
            raise cause from None
        reason = " ".join(str(cause or error).split())
        raise ConfigError(
            f"{key}._target_", node["_target_"], f"a callable that takes these settings ({reason})"
        ) from (cause or error)


def named(group: str, name: str, key: str, settings: Mapping[str, Any] | None = None) -> Any:
    """The object that a file of a group describes, beside the one that was chosen; ``--config-dir`` is searched too.

    Args:
        group: A folder of ``conf``.
        name: Of the file; of one in a folder inside, with it: ``simulated/three_segments``.
        key: What asks for it, for the message.
        settings: In place of those in the file.

    Raises:
        ConfigError: There is no such file, or it refuses its settings.
    """
    files = group_files(group)
    if name not in files:
        raise ConfigError(key, name, f"one of {', '.join(files)}")
    node = OmegaConf.merge(OmegaConf.load(files[name]), dict(settings or {}))
    return make(OmegaConf.create({name: node}), name)


def group_files(group: str) -> dict[str, Path]:
    """The files of a group by their names, those of the folders inside last; what the command line adds wins."""
    found: dict[str, Path] = {}
    for folder in _folders():
        files = sorted((folder / group).rglob("*.yaml"), key=lambda path: (len(path.parts), path))
        found |= {path.relative_to(folder / group).with_suffix("").as_posix(): path for path in files}
    return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0])))


def _folders() -> list[Path]:
    """Where files of groups lie: the project's own folder, and what the command line has added."""
    from dualscale_mamba.configuration.startup import CONF

    sources = HydraConfig.get().runtime.config_sources if HydraConfig.initialized() else []
    return [
        CONF,
        *(Path(str(each.path)) for each in sources if each.schema == "file" and each.path != str(CONF)),
    ]


def task(config: DictConfig) -> Task:
    """The function that ``task._target_`` names.

    Raises:
        ConfigError: There is no such function.
    """
    target = str(config.task["_target_"])
    module, _, name = target.rpartition(".")
    try:
        found: Task = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError("task._target_", target, "the dotted name of a function") from error
    return found


def evaluators(config: DictConfig) -> dict[str, Evaluator]:
    """Chosen evaluations by name."""
    return _chosen(config, "evaluation")


def profilers(config: DictConfig) -> dict[str, Profiler]:
    """Chosen profilers by name."""
    return _chosen(config, "profiling")


def _chosen(config: DictConfig, group: str) -> dict[str, Any]:
    """The objects of a group that is chosen as a list.

    What has no ``_target_`` was not chosen: a file such as ``debug/fast`` may set values for it all the same.
    """
    nodes = config.get(group) or {}
    return {str(name): make(config, f"{group}.{name}") for name, node in nodes.items() if "_target_" in node}


def tracker(config: DictConfig) -> Tracker:
    """The chosen tracker."""
    made: Tracker = make(config, "tracker")
    return made


def recipe(config: DictConfig) -> Recipe:
    """What the quantization reads: precision, scale mode, observer and granularity in one."""
    from dualscale_mamba.observers.percentile import Percentile
    from dualscale_mamba.quantization.recipe import Recipe, WeightRecipe

    precision = config.precision
    overrides = precision.activations.overrides or {}
    chosen, layers = config.quantize.sites, config.quantize.get("layers")
    carriers = SSM_INPUT[config.model.family] if chosen is None else _listed(chosen)
    carriers = within(carriers, None if layers is None else [int(layer) for layer in _listed(layers)])
    sites = precision.activations.sites
    return Recipe(
        family=config.model.family,
        weights=WeightRecipe(**{str(key): value for key, value in precision.weights.items()}),
        layers={str(pattern): str(width) for pattern, width in (precision.get("layers") or {}).items()},
        rounding=make(config, "rounding"),
        activation_bits=precision.activations.bits,
        sites=carriers if sites is None else _listed(sites),
        scale_mode=make(config, "scale_mode"),
        observer=make(config, "observer"),
        granularity=make(config, "granularity"),
        scale_mode_sites=carriers,
        formats=_formats(config),
        activation_observer=make(config, "precision.activations.observer"),
        overrides={str(site): Percentile(percentile=float(value)) for site, value in overrides.items()},
        linear_input_scale=precision.linear_input_scale,
        rotate=precision.rotate,
        rotate_residual=precision.get("rotate_residual", False),
        x_proj_reads=precision.x_proj_reads,
    )


def _listed(value: Any) -> tuple[Any, ...]:
    """A list of a configuration; one value stands for itself."""
    return tuple(value) if OmegaConf.is_list(value) or isinstance(value, list) else (value,)


def _formats(config: DictConfig) -> dict[str, SiteFormat]:
    """``quantize.formats``: names of files of ``scale_mode``, or settings beside such a name."""
    from dualscale_mamba.observers.percentile import Percentile

    made = {}
    for pattern, value in (config.quantize.get("formats") or {}).items():
        key = f"quantize.formats.{pattern}"
        settings = dict(value) if OmegaConf.is_dict(value) else {"scale_mode": value}
        name, percentile = settings.pop("scale_mode", None), settings.pop("percentile", None)
        mode = named("scale_mode", str(name), key, settings)
        made[str(pattern)] = SiteFormat(
            mode, None if percentile is None else Percentile(percentile=float(percentile))
        )
    return made


def state(config: DictConfig) -> StateFormat | UnquantizedState:
    """How the state of the state space is kept between steps."""
    made: StateFormat | UnquantizedState = make(config, "state")
    return made


def data_root(config: DictConfig) -> Path | None:
    """``data.root`` as a path."""
    return Path(str(config.data.root)).expanduser() if config.data.root else None


def check_parts(config: DictConfig) -> Iterator[Exception]:
    """What the objects of a configuration say against their settings."""
    objects = (task, state, profilers, tracker)
    for part in (*objects, _checked_source, _checked_recipe, _checked_evaluators, _checked_names):
        try:
            part(config)
        except (ConfigError, ValueError, TypeError) as error:
            yield error


def _checked_source(config: DictConfig) -> None:
    from dualscale_mamba.models.pretrained import check_source

    check_source(str(config.model.source), str(config.model.family))


def _checked_recipe(config: DictConfig) -> None:
    """The recipe, and whether a model that is here has the layers that it names."""
    from dualscale_mamba.models.pretrained import sizes_of

    made, sizes = recipe(config), sizes_of(str(config.model.source))
    if sizes is None:
        return
    sites = [f"layers.{i}.mixer.{name}" for i in range(sizes.n_layer) for name in SITES[made.family]]
    for key, names in made.named_sites:
        check_places(names, sites, key)


def _checked_names(config: DictConfig) -> None:
    """Files that ``task=fidelity`` and ``task=stress`` name."""
    groups = {"formats": "scale_mode", "granularities": "granularity", "observers": "observer"}
    for key, group in groups.items():
        for name in config.task.get(key) or ():
            named(group, str(name), f"task.{key}")


def _checked_evaluators(config: DictConfig) -> None:
    for name, evaluator in evaluators(config).items():
        try:
            evaluator.check(data_root(config))
        except ConfigError as error:
            if error.key.startswith(("data.", "evaluation.")):
                raise
            raise ConfigError(f"evaluation.{name}.{error.key}", error.value, error.allowed) from None
