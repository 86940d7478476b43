from __future__ import annotations

import json
from pathlib import Path

import pytest

from dualscale_mamba.data.text import EMBEDDED, SOURCES, check_source, documents, label, text_hash
from dualscale_mamba.errors import ConfigError


@pytest.mark.parametrize("source", [*EMBEDDED, "python_docs"])
def test_sources_without_data_are_long_and_repeatable(source: str) -> None:
    check_source(source)
    first = documents(source)
    assert sum(map(len, first)) > 200_000
    assert all(document.strip() for document in first)
    assert text_hash(first) == text_hash(documents(source))


def test_calibration_and_held_out_text_share_no_document() -> None:
    assert not set(documents("generated_calibration")) & set(documents("generated_heldout"))


def test_python_docs_are_prose() -> None:
    paragraphs = [line for document in documents("python_docs") for line in document.splitlines()]
    assert len(paragraphs) == len(set(paragraphs))
    for mark in (">>>", "::=", "**", "``", "\t"):
        assert not [text for text in paragraphs if mark in text and '"**"' not in text][:1]


@pytest.mark.parametrize("source", ["wikipedia_en", "classic_books", "calibration", "wikitext2"])
def test_local_sources(source: str, shared: Path) -> None:
    check_source(source, shared / "data")
    assert sum(map(len, documents(source, shared / "data"))) > 1_000_000


def test_text_file_splits_at_separator_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n<|endoftext|>\n\n<|endoftext|>\nthree <|endoftext|> four\n")
    assert documents(f"file:{path}") == ["one\ntwo", "three <|endoftext|> four"]
    assert label(f"file:{path}") == "a"


def test_json_lines_give_their_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("one", "", "two")))
    assert documents(f"file:{path}") == ["one", "two"]
    path.write_text('{"body": "one"}\n')
    with pytest.raises(ConfigError, match="text field 'text'; line 1 has none"):
        documents(f"file:{path}")


@pytest.mark.parametrize(
    ("source", "root", "message"),
    [
        ("wikipedia", None, r"source=wikipedia: allowed is one of generated_calibration"),
        ("wikipedia_en", None, r"data\.root=None: allowed is a folder with text/wikipedia_en\.valid\.txt"),
        ("wikipedia_en", "nowhere", r"nowhere/text/wikipedia_en\.valid\.txt does not"),
        ("wikitext2", "nowhere", r"nowhere/eval/wikitext2\.jsonl does not"),
        ("file:nowhere.txt", None, r"nowhere\.txt does not"),
        ("file:text.pdf", None, r"ends in \.txt or \.jsonl"),
    ],
)
def test_unreadable_sources_are_refused_early(source: str, root: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_source(source, None if root is None else Path(root))


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(" \n<|endoftext|>\n")
    with pytest.raises(ConfigError, match="at least one non-empty document"):
        documents(f"file:{tmp_path / 'a.txt'}")


def test_the_error_names_every_source() -> None:
    with pytest.raises(ConfigError) as error:
        check_source("?", key="calibration.source")
    assert str(error.value).startswith("calibration.source=?")
    assert all(source in str(error.value) for source in SOURCES)
