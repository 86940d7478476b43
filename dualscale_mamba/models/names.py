"""What weights are called: tables from each checkpoint layout to this package and back.

The package uses the names of the state-spaces checkpoints but for the bias of dt_proj (Mamba-1), which the scan adds.
"""

from __future__ import annotations

import re

# (pattern, replacement), the first match counts; names that match nothing are ours already.
FROM_CHECKPOINT: tuple[tuple[str, str], ...] = (
    (r"^backbone\.embeddings\.weight$", r"backbone.embedding.weight"),  # transformers
    (r"^(backbone\.layers\.\d+\.mixer)\.dt_proj\.bias$", r"\1.dt_bias"),
)
TO_STATE_SPACES: dict[str, tuple[tuple[str, str], ...]] = {
    "mamba1": ((r"^(backbone\.layers\.\d+\.mixer)\.dt_bias$", r"\1.dt_proj.bias"),),
    "mamba2": (),
}
TO_TRANSFORMERS: dict[str, tuple[tuple[str, str], ...]] = {
    family: ((r"^backbone\.embedding\.weight$", r"backbone.embeddings.weight"), *table)
    for family, table in TO_STATE_SPACES.items()
}

EMBEDDING = "backbone.embedding.weight"
HEAD = "lm_head.weight"
_CONV_WEIGHT = re.compile(r"\.conv1d\.weight$")


def rename(name: str, table: tuple[tuple[str, str], ...]) -> str:
    """``name`` by the first row of ``table`` that matches it."""
    for pattern, replacement in table:
        renamed, count = re.subn(pattern, replacement, name)
        if count:
            return renamed
    return name


def is_conv_weight(name: str) -> bool:
    """Whether the weight is (E, 1, W) in checkpoints and (E, W) here."""
    return _CONV_WEIGHT.search(name) is not None
