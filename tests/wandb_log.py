"""Read a ``.wandb`` file back: LevelDB's log format around protocol buffers."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK, FILE_HEADER, RECORD_HEADER = 32768, 7, 7
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Any]:
    """Every record of the file in its order."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    place, parts = FILE_HEADER, b""
    while place + RECORD_HEADER <= len(content):
        left = BLOCK - place % BLOCK
        if left < RECORD_HEADER:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + RECORD_HEADER])
        place += RECORD_HEADER
        parts += content[place : place + size]
        place += size
        if kind in (FULL, LAST):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def finished(path: Path, seconds: float = 30.0) -> list[Any]:
    """Every record, once the last is there: the client's service still writes after ``finish``."""
    until = time.monotonic() + seconds
    while True:
        found = list(records(path))
        if any(record.HasField("exit") for record in found) or time.monotonic() > until:
            return found
        time.sleep(0.1)


def configs_and_summary(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The last configuration and summary that the run knew."""
    config: dict[str, Any] = {}
    summary: dict[str, Any] = {}
    for record in finished(path):
        if record.HasField("run"):
            config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        elif record.HasField("config"):
            config |= {item.key: json.loads(item.value_json) for item in record.config.update}
        elif record.HasField("summary"):
            for item in record.summary.update:
                key = item.key or "/".join(item.nested_key)
                summary[key] = json.loads(item.value_json)
        elif record.HasField("history"):
            for item in record.history.item:
                summary.setdefault(item.key or "/".join(item.nested_key), json.loads(item.value_json))
    return config, summary
