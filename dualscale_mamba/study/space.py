"""What is searched: a space in Hydra's own notation, and the metrics that shall be low or high."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from dualscale_mamba.errors import ConfigError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

ALLOWED = "a,b,c or choice(a,b,c), interval(low,high), or range(low,end,step), each perhaps in tag(log,...)"
DIRECTIONS = ("lower", "higher")
KEYS = ("objectives", "trials", "parallel", "seed", "space")
DIGITS = 6  # significant digits of a number that is drawn from an interval


@dataclass(frozen=True)
class Dimension:
    """One key of the space.

    Attributes:
        key: Configuration key or group.
        texts: The values to choose from as override texts; None for numbers.
        low: Smallest number.
        high: Largest number, itself included.
        step: Distance of neighbours; None for any number.
        whole: Whether numbers are whole.
        log: Whether equal ratios count alike.
    """

    key: str
    texts: tuple[str, ...] | None = None
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    whole: bool = False
    log: bool = False

    @classmethod
    def parse(cls, key: str, text: str) -> Dimension:
        """Read one entry of the space.

        Args:
            key: Configuration key or group.
            text: What would be typed behind ``key=``.

        Raises:
            ConfigError: It is not in Hydra's notation, empty, or without a second value.
        """
        try:
            override = OverridesParser.create().parse_override(f"{key}={text}")
            made = cls._of(key, override)
        except ConfigError:
            raise
        except Exception as error:  # Hydra's parser raises whatever its grammar or its types raise
            raise _bad(key, text) from error
        if made.texts is not None and len(set(made.texts)) < 2:
            raise _bad(key, text)
        if made.texts is None and not (made.low < made.high and (made.low > 0 or not made.log)):
            raise _bad(key, text)
        return made

    @classmethod
    def _of(cls, key: str, override: Override) -> Dimension:
        value: Any = override.value()
        if override.is_interval_sweep():
            whole = isinstance(value.start, int) and isinstance(value.end, int)
            return cls(key, None, value.start, value.end, 1 if whole else None, whole, "log" in value.tags)
        if override.is_range_sweep():
            log = "log" in value.tags
            steps = math.ceil(round((value.stop - value.start) / value.step, DIGITS)) - 1
            whole = all(isinstance(number, int) for number in (value.start, value.stop, value.step))
            if log and value.step != 1:  # optuna has no steps on a logarithmic scale
                raise ConfigError(_name(key), override.input_line, "a range with step 1 inside tag(log,...)")
            return cls(key, None, value.start, value.start + steps * value.step, value.step, whole, log)
        if override.is_choice_sweep():
            return cls(key, tuple(str(text) for text in override.sweep_string_iterator()))
        raise _bad(key, str(override.input_line).partition("=")[2])

    def distribution(self) -> BaseDistribution:
        """The same for optuna."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        if self.texts is not None:
            return CategoricalDistribution(self.texts)
        if self.whole:
            return IntDistribution(int(self.low), int(self.high), log=self.log, step=int(self.step or 1))
        return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def override(self, value: Any) -> str:
        """The override that a value stands for."""
        text = value if self.texts is not None else f"{value:d}" if self.whole else f"{value:.{DIGITS}g}"
        return f"{self.key}={text}"


@dataclass(frozen=True)
class SearchSpace:
    """All keys that a search may choose.

    Attributes:
        dimensions: In the order in which they were given.
    """

    dimensions: tuple[Dimension, ...]

    @classmethod
    def parse(cls, space: Mapping[str, Any]) -> SearchSpace:
        """Read a mapping of key to override text.

        Raises:
            ConfigError: There is no key, or one of them cannot be read.
        """
        if not space:
            raise ConfigError(_name(""), "{}", "a mapping of configuration keys to values, at least one")
        return cls(tuple(Dimension.parse(str(key), _text(value)) for key, value in space.items()))

    def distributions(self) -> dict[str, BaseDistribution]:
        """The same for optuna."""
        return {dimension.key: dimension.distribution() for dimension in self.dimensions}

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        """Overrides for one choice of all keys."""
        return [dimension.override(params[dimension.key]) for dimension in self.dimensions]


@dataclass(frozen=True)
class Settings:
    """What is searched, and for how long.

    Attributes:
        objectives: Metric to ``lower`` or ``higher``; None takes what the results say.
        space: What may be chosen.
        trials: Proposals in all, those of earlier processes counted.
        parallel: Proposals at a time.
        seed: Of the proposals.
    """

    objectives: dict[str, str | None]
    space: SearchSpace
    trials: int
    parallel: int
    seed: int

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> Settings:
        """Read ``hydra.sweeper.search``.

        Raises:
            ConfigError: A key is unknown, missing or has a value that cannot work.
        """
        for key in node:
            if key not in KEYS:
                raise ConfigError(
                    f"hydra.sweeper.search.{key}", node[key], f"one of the keys {', '.join(KEYS)}"
                )
        given = node.get("objectives") or {}
        found = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given)
        if not found:
            raise ConfigError("hydra.sweeper.search.objectives", given, "a list of metrics, at least one")
        for metric, direction in found.items():
            if direction not in (None, *DIRECTIONS):
                raise ConfigError(f"hydra.sweeper.search.objectives.{metric}", direction, "lower or higher")
        numbers = {"trials": (24, 1), "parallel": (1, 1), "seed": (0, 0)}
        whole = {key: _whole(key, node.get(key, value), low) for key, (value, low) in numbers.items()}
        return cls(found, SearchSpace.parse(node.get("space") or {}), **whole)

    def identity(self, base: str) -> str:
        """Content hash of what decides the proposals: more trials continue a search, another space begins one."""
        space = [repr(dimension) for dimension in self.space.dimensions]
        text = json.dumps([base, list(self.objectives.items()), space, self.seed])
        return hashlib.sha256(text.encode()).hexdigest()[:8]


def _whole(key: str, value: Any, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigError(f"hydra.sweeper.search.{key}", value, f"a whole number from {low}")
    return value


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _name(key: str) -> str:
    return f"hydra.sweeper.search.space.{key}".rstrip(".")


def _bad(key: str, text: str) -> ConfigError:
    return ConfigError(_name(key), text, ALLOWED, "Keys with one value are typed as usual.")
