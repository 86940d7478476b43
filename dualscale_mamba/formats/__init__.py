"""Formats: how the eight bits of a value are spent. One file per scale mode."""

from dualscale_mamba.formats.base import Code, FormatError, Range, ScaleMode, knee_code, table_code

__all__ = ["Code", "FormatError", "Range", "ScaleMode", "knee_code", "table_code"]
