"""How many codes a site has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


class Granularity(Protocol):
    """Number of groups that each have a code of their own."""

    @property
    def name(self) -> str:
        """As in ``conf/granularity``."""
        ...

    def groups(self, channels: int) -> int:
        """Groups of a site with ``channels`` channels."""
        ...


@dataclass(frozen=True)
class PerTensor:
    """One code for the whole site."""

    name: ClassVar[str] = "per_tensor"

    def groups(self, channels: int) -> int:
        """Always 1."""
        return 1


@dataclass(frozen=True)
class PerChannel:
    """One code a channel: free in a scan whose threads own one channel each."""

    name: ClassVar[str] = "per_channel"

    def groups(self, channels: int) -> int:
        """The number of channels."""
        return channels
