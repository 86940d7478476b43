"""Files are written whole, whoever else writes them at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dualscale_mamba.study.files import write_bytes, write_text

WRITERS, TIMES = 4, 50


def test_many_may_write_one_file(tmp_path: Path) -> None:
    path, failures, seen = tmp_path / "one.bin", [], set()
    parts = [bytes([65 + number]) * 50_000 for number in range(WRITERS)]

    def write(content: bytes) -> None:
        try:
            for _ in range(TIMES):
                write_bytes(path, content)
                seen.add(path.read_bytes())
        except OSError as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(part,)) for part in parts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert seen <= set(parts)
    assert [each.name for each in tmp_path.iterdir()] == ["one.bin"]


def test_nothing_is_left_of_a_file_that_could_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("deliberate")

    monkeypatch.setattr("dualscale_mamba.study.files.os.replace", refuse)
    with pytest.raises(OSError, match="deliberate"):
        write_text(tmp_path / "one.txt", "text")
    assert not list(tmp_path.iterdir())
