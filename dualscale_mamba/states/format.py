"""What is asked of the state between steps: the group ``state`` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.formats.base import ScaleMode
from dualscale_mamba.formats.float8 import DTYPES, Float8
from dualscale_mamba.formats.single import Single
from dualscale_mamba.formats.unquantized import Unquantized
from dualscale_mamba.observers.absmax import AbsMax
from dualscale_mamba.observers.base import Observer
from dualscale_mamba.states import residual
from dualscale_mamba.states.store import ROUNDINGS, SCALES

MAX_HEADROOM = 16.0


@dataclass(frozen=True)
class UnquantizedState:
    """The state lies between steps in the type that the model's ``state_dtype`` names."""

    is_on: ClassVar[bool] = False


@dataclass(frozen=True)
class StateFormat:
    """The state in eight bits between steps; each step decodes it before and encodes it after its update.

    The values of a channel (of Mamba-2: of a channel of a head) are divided by the channel's scale. What the observer
    and the scale mode see are these normalized values of a layer, all channels together, so that one code serves the
    layer.

    Args:
        mode: How the codes of the normalized values are spent.
        observer: Where their threshold lies.
        scale: ``static``: the channel's largest magnitude while calibrating. ``dynamic``: that of the state to be
            stored, in bf16 beside its codes.
        headroom: A static scale is the largest magnitude seen times this, in [1, 16]: states of texts that are longer
            than those of calibration may be larger.
        every: Tokens of calibration between two looks at the state.
        rounding: ``nearest``, half away from zero. ``stochastic``: to either neighbour, so that the mean is the value;
            the numbers are a hash of the seed, the layer, the position and the element. ``error_feedback``: what is
            left over is kept beside the codes and added to the state of the next step.
        seed: Of stochastic rounding.
        residual_bits: Of what is left over, 4 or 8.
    """

    mode: ScaleMode = field(default_factory=Single)
    observer: Observer = field(default_factory=AbsMax)
    scale: str = "dynamic"
    headroom: float = 1.0
    every: int = 16
    rounding: str = "nearest"
    seed: int = 0
    residual_bits: int = 4
    is_on: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self._check_mode()
        for key, allowed in (("scale", SCALES), ("rounding", ROUNDINGS), ("residual_bits", residual.WIDTHS)):
            if getattr(self, key) not in allowed:
                raise ConfigError(
                    f"state.{key}", getattr(self, key), "one of " + ", ".join(map(str, allowed))
                )
        if isinstance(self.headroom, bool) or not 1.0 <= self.headroom <= MAX_HEADROOM:
            raise ConfigError("state.headroom", self.headroom, f"a number in [1, {MAX_HEADROOM:g}]")
        if isinstance(self.every, bool) or not isinstance(self.every, int) or self.every < 1:
            raise ConfigError("state.every", self.every, "a whole number above 0")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ConfigError("state.seed", self.seed, "a whole number not below 0")

    def _check_mode(self) -> None:
        name = type(self.mode).__name__.lower()
        if isinstance(self.mode, Unquantized):
            raise ConfigError("state.mode", "fp16", "a format that has codes", "Use state=unquantized.")
        if self.mode.needs_floor:
            hint = "Use dual_symmetric: a state has no floor."
            raise ConfigError("state.mode", name, "a format for values of both signs", hint)
        if getattr(self.mode, "is_simulated", False):
            raise ConfigError("state.mode", name, "a format of eight bits, which can be stored")

    @property
    def storage(self) -> str:
        """What lies in the cache: the name of a torch type of one byte."""
        if not isinstance(self.mode, Float8):
            return "int8"
        return str(DTYPES[self.mode.layout]).removeprefix("torch.")

    @property
    def needs_calibration(self) -> bool:
        """Whether text must be read first: not where each state says its own scale and nothing lies beyond it."""
        plain = isinstance(self.mode, (Single, Float8)) and isinstance(self.observer, AbsMax)
        return self.scale == "static" or not plain
