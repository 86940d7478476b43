"""Text sources: documents by name, from the package, from Python, from ``data.root`` or from a file."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from dualscale_mamba.data.python_docs import python_documentation
from dualscale_mamba.errors import ConfigError

SEPARATOR: Final = "<|endoftext|>"
EMBEDDED: Final = ("generated_calibration", "generated_heldout")
LOCAL: Final = {
    "wikipedia_en": "text/wikipedia_en.valid.txt",
    "classic_books": "text/classic_books.valid.txt",
    "calibration": "text/calibration.txt",
}
WIKITEXT2: Final = "eval/wikitext2.jsonl"
SOURCES: Final = (*EMBEDDED, "python_docs", *LOCAL, "wikitext2")
FILE_PREFIX: Final = "file:"

_ASSETS = Path(__file__).resolve().parent.parent / "assets" / "text"
_ALLOWED = f"one of {', '.join(SOURCES)}, or file:PATH (.txt or .jsonl); SOURCE/1of2 is every second document"
# Parts of a text that share no document: one to calibrate on, the other to test on.
_PART = re.compile(r"(?P<whole>.+)/(?P<part>[1-9]\d?)of(?P<parts>[1-9]\d?)")


def documents(source: str, data_root: Path | None = None) -> list[str]:
    """Documents of a text source, in a fixed order.

    Args:
        source: A name in ``SOURCES``, or ``file:PATH``: a ``.txt`` split at lines ``<|endoftext|>``, or a
            ``.jsonl`` whose objects have a field ``text``. With ``/1of2`` behind it every second document, from the
            first; with ``/2of2`` the others.
        data_root: Folder that holds ``text/`` and ``eval/``; needed by the sources of ``LOCAL``.

    Returns:
        Non-empty documents as Unicode text.

    Raises:
        ConfigError: The source is unknown, its file is missing, or it holds no text.
    """
    check_source(source, data_root)
    whole, part, parts = _parts(source)
    found = [document for document in _read(whole, data_root) if document.strip()][part - 1 :: parts]
    if not found:
        raise ConfigError("source", source, "a source with at least one non-empty document")
    return found


def check_source(source: str, data_root: Path | None = None, key: str = "source") -> None:
    """Refuses, without reading it, a source that cannot be read.

    Args:
        source: As for ``documents``.
        data_root: As for ``documents``.
        key: Configuration key to name in the error.

    Raises:
        ConfigError: The source is unknown or its file is missing.
    """
    source, part, parts = _parts(source)
    if part > parts:
        raise ConfigError(key, f"{source}/{part}of{parts}", f"a part in 1 to {parts}")
    if source.startswith(FILE_PREFIX):
        _check_file(source, key)
    elif source in LOCAL:
        if data_root is None:
            needed = f"a folder with {LOCAL[source]}, because {key}={source}"
            raise ConfigError(
                "data.root", None, needed, "The embedded generated_heldout and python_docs need none."
            )
        _check_exists(data_root / LOCAL[source], key, source)
    elif source == "wikitext2" and data_root is not None:
        _check_exists(data_root / WIKITEXT2, key, source)
    elif source == "python_docs" and importlib.util.find_spec("pydoc_data") is None:
        raise ConfigError(key, source, "another source", "This Python was built without its documentation.")
    elif source not in SOURCES:
        raise ConfigError(key, source, _ALLOWED)


def source_files(source: str, data_root: Path | None = None) -> list[Path]:
    """The local files that a checked source is read from; none for what comes from Python or from the hub."""
    source, _, _ = _parts(source)
    if source.startswith(FILE_PREFIX):
        return [Path(source.removeprefix(FILE_PREFIX)).expanduser()]
    if source in EMBEDDED:
        return [_ASSETS / f"{source}.txt"]
    if data_root is None or source == "python_docs":
        return []
    return [data_root / LOCAL.get(source, WIKITEXT2)]


def label(source: str) -> str:
    """Short name of a source, for metric names: its own, or the file's stem; of a part ``python_docs_2of2``."""
    whole, part, parts = _parts(source)
    name = Path(whole.removeprefix(FILE_PREFIX)).stem if whole.startswith(FILE_PREFIX) else whole
    return name if parts == 1 else f"{name}_{part}of{parts}"


def text_hash(texts: Iterable[str]) -> str:
    """SHA-256 in hexadecimal of documents in their order."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _parts(source: str) -> tuple[str, int, int]:
    """The whole source, which part of it is meant, and how many there are."""
    found = _PART.fullmatch(source)
    return (source, 1, 1) if found is None else (found["whole"], int(found["part"]), int(found["parts"]))


def _check_file(source: str, key: str) -> None:
    path = Path(source.removeprefix(FILE_PREFIX)).expanduser()
    if path.suffix not in {".txt", ".jsonl"}:
        raise ConfigError(key, source, "a path that ends in .txt or .jsonl")
    _check_exists(path, key, source)


def _check_exists(path: Path, key: str, source: str) -> None:
    if not path.is_file():
        raise ConfigError(key, source, f"a source whose file exists, and {path} does not")


def _read(source: str, data_root: Path | None) -> list[str]:
    if source.startswith(FILE_PREFIX):
        path = Path(source.removeprefix(FILE_PREFIX)).expanduser()
        return _split(path) if path.suffix == ".txt" else _field(path, "text")
    if source in EMBEDDED:
        return _split(_ASSETS / f"{source}.txt")
    if source == "python_docs":
        return python_documentation()
    if data_root is None:
        return _wikitext2_from_hub()
    return _split(data_root / LOCAL[source]) if source in LOCAL else _field(data_root / WIKITEXT2, "page")


def _split(path: Path) -> list[str]:
    found: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() == SEPARATOR:
            found.append([])
        else:
            found[-1].append(line)
    return ["\n".join(lines).strip() for lines in found]


def _field(path: Path, name: str) -> list[str]:
    found = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            row = json.loads(line) if line.strip() else {name: ""}
            if not isinstance(row, dict) or not isinstance(row.get(name), str):
                raise ConfigError(
                    "source", path, f"objects with a text field {name!r}; line {number} has none"
                )
            found.append(row[name])
    return found


def _wikitext2_from_hub() -> list[str]:
    datasets = importlib.import_module("datasets")  # half a second: only who reads from the hub pays
    rows = datasets.load_dataset("EleutherAI/wikitext_document_level", "wikitext-2-raw-v1", split="test")
    return [str(row["page"]) for row in rows]
