"""Errors that a user can act on."""

from __future__ import annotations


class ConfigError(ValueError):
    """A configuration value that cannot work, said in one sentence.

    Args:
        key: The configuration key, e.g. ``observer.percentile``.
        value: What was given.
        allowed: What would be accepted.
        hint: What to do, if that is not obvious.
    """

    def __init__(self, key: str, value: object, allowed: str, hint: str = "") -> None:
        self.key, self.value, self.allowed = key, value, allowed
        advice = f" {hint}" if hint else ""
        super().__init__(f"{key}={value}: allowed is {allowed}.{advice}")


class CheckpointError(ValueError):
    """A checkpoint that cannot be loaded; the message names files, keys and shapes, and what to do."""
