"""Real English that is already on every machine: the language reference inside CPython, as plain prose."""

from __future__ import annotations

import importlib
import re
from typing import Final

# Paragraphs that are code, grammar, tables or lists of names rather than prose.
_NOT_PROSE: Final = re.compile(
    r"^(>>>|\.\.\.|\+[-=]|\||::|@|#|def |class |import |from |[-=*^~\"]{3,})|::=|^\W*$"
)
_UNDERLINE: Final = re.compile(r"^\s*([*=\-^~\"'])\1{2,}\s*$")
_MARKUP: Final = re.compile(r"\*\*|``|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|`")
_FEWEST_WORDS: Final = 8


def python_documentation() -> list[str]:
    """The topics of ``help()`` as plain paragraphs, in alphabetical order of the topics.

    Deterministic for one version of CPython. Markup, headings, code and grammar are removed, hard line breaks
    joined, and a paragraph that several topics share is kept once.

    Returns:
        One document per topic that still has prose.
    """
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        fresh = [text for text in _paragraphs(topics[name]) if text not in seen]
        seen.update(fresh)
        if fresh:
            found.append("\n".join(dict.fromkeys(fresh)))
    return found


def _paragraphs(topic: str) -> list[str]:
    lines = [line for line in topic.splitlines() if not _UNDERLINE.match(line)]
    blocks = [block for block in re.split(r"\n\s*\n", "\n".join(lines)) if block.strip()]
    return [text for text in map(_prose, blocks) if text]


def _prose(block: str) -> str:
    """A block of lines as one line of prose, or nothing when it is something else."""
    lines = [line.strip() for line in block.splitlines()]
    if any(_NOT_PROSE.search(line) for line in lines):
        return ""
    text = _MARKUP.sub("", " ".join(lines)).replace("::", ":").replace("--", "-")
    text = re.sub(r"^[*-] ", "", re.sub(r"\s+", " ", text)).strip()
    return text if len(text.split()) >= _FEWEST_WORDS and text[-1] in ".:!?)" and text[0].isalpha() else ""
