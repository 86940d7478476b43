"""Files that are there as a whole or not at all."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to ``path`` in one step: readers see the old file or the new one, never a part.

    Raises:
        OSError: The disk is full or the folder may not be written; no partial file is left.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False))


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` in one step.

    Raises:
        OSError: As :func:`write_json`.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path`` in one step, whoever else does so at the same time.

    Raises:
        OSError: As :func:`write_json`.
    """
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The mapping in a file, or None where there is none or it cannot be read, with a warning."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read (%s) and is left out", path, error)
        return None
    return found if isinstance(found, dict) else None


def plain(value: Any) -> Any:
    """The same in JSON's types; numbers that JSON lacks become strings: a NaN must not pass for a gap."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)
