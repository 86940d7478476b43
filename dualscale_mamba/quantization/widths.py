"""Words for widths: ``w4a8`` is a weight in four bits whose layer multiplies an input in eight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import EMBEDDING, HEAD, INPUT_SITES

WIDTHS = ("w16a16", "w16a8", "w8a16", "w8a8", "w4a16", "w4a8")
LAYERS_KEY = "precision.layers"
NAMES_SHOWN = 6


@dataclass(frozen=True)
class Width:
    """Bits of a layer.

    Attributes:
        weights: 8 or 4; None for floating point, whatever its type.
        activations: 8 where the layer multiplies int8 codes; None where it reads values in floating point.
    """

    weights: int | None
    activations: int | None

    def __str__(self) -> str:
        return f"w{self.weights or 16}a{self.activations or 16}"


def parse(word: str, key: str = LAYERS_KEY) -> Width:
    """The width that a word says.

    Args:
        word: One of :data:`WIDTHS`.
        key: What the word is the value of, for the message.

    Raises:
        ConfigError: There is no such width.
    """
    if word not in WIDTHS:
        raise ConfigError(key, word, f"one of {', '.join(WIDTHS)}")
    weights, activations = (int(bits) for bits in str(word)[1:].split("a"))
    return Width(None if weights == 16 else weights, None if activations == 16 else activations)


def chosen(layers: Mapping[str, str], name: str) -> Width | None:
    """The width of the last pattern that matches a layer's name; None without any.

    Args:
        layers: Widths by pattern (``*``, ``?`` and ``[abc]`` as in file names), in their order.
        name: E.g. ``layers.3.mixer.in_proj``, ``embedding`` or ``lm_head``.

    Raises:
        ConfigError: That width cannot be: the head and the embedding read no codes.
    """
    pattern = next((p for p in reversed(tuple(layers)) if fnmatchcase(name, p)), None)
    if pattern is None:
        return None
    key = f"{LAYERS_KEY}.{pattern}"
    width = parse(layers[pattern], key)
    if width.activations is not None and name in (EMBEDDING, HEAD):
        raise ConfigError(
            key, layers[pattern], f"w4a16, w8a16 or w16a16 for {name}, whose input is never int8",
            "" if pattern == name else f"Add {name} with its own width behind this pattern.",
        )  # fmt: skip
    return width


def condensed(widths: Mapping[str, str]) -> dict[str, str]:
    """Widths by kind of layer: ``w8a8``, or ``w4a8, w8a8 in 0 5`` where the blocks 0 and 5 have another one.

    Args:
        widths: By full name of every layer.
    """
    kinds: dict[str, dict[str, list[str]]] = {}
    for name, word in widths.items():
        places = name.split(".")
        kinds.setdefault(places[-1], {}).setdefault(word, []).append(places[1] if len(places) > 1 else "")
    made = {}
    for kind, words in kinds.items():
        usual, *others = sorted(words, key=lambda word: -len(words[word]))
        made[kind] = ", ".join([usual, *(f"{word} in {' '.join(words[word])}" for word in others)])
    return made


def check_patterns(layers: Mapping[str, str], names: Sequence[str]) -> None:
    """Refuse a pattern that matches no layer of the model.

    One of a projection that only the other family has is without effect, so that a file may serve both.

    Args:
        layers: Widths by pattern.
        names: Of every layer of the model.

    Raises:
        ConfigError: Naming the pattern and some of the names.
    """
    projections = sorted({name for family in INPUT_SITES.values() for name in family})
    mixers = dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name)
    known = {*names, *(f"{mixer}.{name}" for mixer in mixers for name in projections)}
    for pattern, word in layers.items():
        if not any(fnmatchcase(name, pattern) for name in known):
            shown = ", ".join(dict.fromkeys([*names[:NAMES_SHOWN], names[-2], names[-1]]))
            allowed = f"a pattern that matches a layer of this model, such as {shown}"
            raise ConfigError(LAYERS_KEY, f"{{{pattern}: {word}}}", allowed)
