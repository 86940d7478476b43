from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

from dualscale_mamba.evaluation.minimal_pairs import PHENOMENA, minimal_pairs, write_minimal_pairs

# Results are comparable only while the pairs stay what they are: change this with the version of the task.
PAIRS_HASH = "db2a690382ca2681e7ca6077bc27107c82cf8df7ec1a34667165f747306fe7ad"


def test_there_are_enough_and_no_two_are_alike() -> None:
    pairs = minimal_pairs()
    assert len(pairs) == 2100
    assert len({pair.sentence_good for pair in pairs}) == len(pairs)
    assert not {pair.sentence_good for pair in pairs} & {pair.sentence_bad for pair in pairs}


def test_they_are_the_same_everywhere(tmp_path: Path) -> None:
    write_minimal_pairs(tmp_path / "pairs.jsonl")
    assert hashlib.sha256((tmp_path / "pairs.jsonl").read_bytes()).hexdigest() == PAIRS_HASH
    row = json.loads((tmp_path / "pairs.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"sentence_good", "sentence_bad", "phenomenon", "variant"}


def test_a_seed_changes_them() -> None:
    assert minimal_pairs(20, seed=1) != minimal_pairs(20, seed=2)


def test_each_pair_differs_in_one_word() -> None:
    for pair in minimal_pairs():
        good, bad = pair.sentence_good.split(), pair.sentence_bad.split()
        assert len(good) == len(bad)
        assert sum(one != other for one, other in zip(good, bad, strict=True)) == 1


def test_phenomena_and_variants_are_balanced() -> None:
    counts = Counter((pair.phenomenon, pair.variant) for pair in minimal_pairs())
    assert {phenomenon for phenomenon, _ in counts} == set(PHENOMENA)
    assert set(counts.values()) == {175}


def test_no_single_word_gives_the_answer_away() -> None:
    """Words that tell good from bad must occur as often in both, or counting words would solve the task."""
    good, bad = Counter[str](), Counter[str]()
    for pair in minimal_pairs():
        if pair.phenomenon.startswith(("subject_verb", "agreement_across")):
            good.update(pair.sentence_good.split())
            bad.update(pair.sentence_bad.split())
    assert all(
        abs(good[word] - bad[word]) <= 0.25 * (good[word] + bad[word]) for word in good if good[word] > 40
    )
