"""Minimal pairs: two sentences that differ in one word, of which only one is grammatical.

The pairs are made from a seed and short lists of common words, so that accuracy can be measured without any
download. A model is right when it finds the grammatical sentence more likely.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from dualscale_mamba.evaluation import vocabulary as words

PER_PHENOMENON: Final = 350
SEED: Final = 0


class MinimalPair(NamedTuple):
    """One test item.

    ``variant`` is the side of the balance that the good sentence is on: ``singular`` or ``plural``, or for
    gender agreement ``male`` or ``female``.
    """

    sentence_good: str
    sentence_bad: str
    phenomenon: str
    variant: str


_Option = TypeVar("_Option")
# Each maker takes the generator and the side (0 or 1) of the good sentence and returns (good, bad).
_Maker = Callable[[random.Random, int], tuple[str, str]]


def minimal_pairs(per_phenomenon: int = PER_PHENOMENON, seed: int = SEED) -> list[MinimalPair]:
    """All pairs, the same on every machine.

    Args:
        per_phenomenon: Pairs per phenomenon, half of each variant, so an even number.
        seed: Of the generator.

    Returns:
        ``per_phenomenon`` pairs of each phenomenon, the variants alternating, no sentence twice.
    """
    found: list[MinimalPair] = []
    seen: set[str] = set()
    for number, (phenomenon, (maker, variants)) in enumerate(PHENOMENA.items()):
        generator = random.Random(f"{seed}/{phenomenon}")  # a text seed is hashed alike on every platform
        while len(found) < per_phenomenon * (number + 1):
            side = len(found) % 2
            good, bad = maker(generator, side)
            if good not in seen:
                seen.add(good)
                found.append(MinimalPair(good, bad, phenomenon, variants[side]))
    return found


def write_minimal_pairs(path: Path) -> None:
    """Writes the pairs as JSON lines."""
    lines = [json.dumps(pair._asdict()) for pair in minimal_pairs()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _subject_verb(generator: random.Random, side: int) -> tuple[str, str]:
    return _with_verb(generator, side, f"The {_subject(generator)[side]}")


def _prepositional_distractor(generator: random.Random, side: int) -> tuple[str, str]:
    subject, other = _two_people(generator)
    preposition = _pick(generator, words.PREPOSITIONS)
    return _with_verb(generator, side, f"The {subject[side]} {preposition} the {other[1 - side]}")


def _relative_clause_distractor(generator: random.Random, side: int) -> tuple[str, str]:
    subject, other = _two_people(generator)
    verb = _pick(generator, words.RELATIVE_VERBS)
    return _with_verb(generator, side, f"The {subject[side]} who {verb} the {other[1 - side]}")


def _with_verb(generator: random.Random, side: int, opening: str) -> tuple[str, str]:
    predicate = _pick(generator, words.PREDICATES)
    good, bad = predicate[side], predicate[1 - side]
    return f"{opening} {good} {predicate[2]}.", f"{opening} {bad} {predicate[2]}."


def _determiner_noun(generator: random.Random, side: int) -> tuple[str, str]:
    noun = _pick(generator, words.THINGS)
    determiner = _pick(generator, words.DETERMINERS)[side]
    adjective = f"{_pick(generator, words.ADJECTIVES)} " if generator.random() < 0.5 else ""
    opening = f"The {_subject(generator)[_pick(generator, (0, 1))]} {_pick(generator, words.PAST_VERBS)}"
    return (
        f"{opening} {determiner} {adjective}{noun[side]}.",
        f"{opening} {determiner} {adjective}{noun[1 - side]}.",
    )


def _anaphor_number(generator: random.Random, side: int) -> tuple[str, str]:
    gender = _pick(generator, (0, 1))
    noun = _pick(generator, (words.MALE, words.FEMALE)[gender])[side]
    singular = ("himself", "herself")[gender]
    good, bad = ((singular, "themselves"), ("themselves", singular))[side]
    return _with_reflexive(generator, noun, good, bad)


def _anaphor_gender(generator: random.Random, side: int) -> tuple[str, str]:
    noun = _pick(generator, (words.MALE, words.FEMALE)[side])[0]
    good, bad = (("himself", "herself"), ("herself", "himself"))[side]
    return _with_reflexive(generator, noun, good, bad)


def _with_reflexive(generator: random.Random, noun: str, good: str, bad: str) -> tuple[str, str]:
    opening = f"The {noun} {_pick(generator, words.REFLEXIVE_VERBS)}"
    ending = _pick(generator, words.REFLEXIVE_ENDINGS)
    return f"{opening} {good}{ending}.", f"{opening} {bad}{ending}."


def _subject(generator: random.Random) -> tuple[str, str]:
    return _pick(generator, words.PEOPLE)


def _two_people(generator: random.Random) -> tuple[tuple[str, str], tuple[str, str]]:
    first = _subject(generator)
    return first, _pick(generator, [other for other in words.PEOPLE if other != first])


def _pick(generator: random.Random, options: Sequence[_Option]) -> _Option:
    # Of all methods only random() promises the same sequence in every version of Python.
    return options[int(generator.random() * len(options))]


_NUMBER = ("singular", "plural")
PHENOMENA: Final[dict[str, tuple[_Maker, tuple[str, str]]]] = {
    "subject_verb_agreement": (_subject_verb, _NUMBER),
    "agreement_across_prepositional_phrase": (_prepositional_distractor, _NUMBER),
    "agreement_across_relative_clause": (_relative_clause_distractor, _NUMBER),
    "determiner_noun_agreement": (_determiner_noun, _NUMBER),
    "anaphor_number_agreement": (_anaphor_number, _NUMBER),
    "anaphor_gender_agreement": (_anaphor_gender, ("male", "female")),
}
