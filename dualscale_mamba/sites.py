"""Names of the sites of a mixer, once; no torch here, so that a configuration can be checked at once."""

from __future__ import annotations

# Every site of a Mamba-1 mixer, in the order of the data flow, and whether its values have SiLU's floor.
MAMBA1_SITES: dict[str, bool] = {
    "in_proj_input": False,
    "conv_input": False,
    "z": False,
    "ssm_input": True,
    "dt_input": False,
    "delta": False,
    "B": False,
    "C": False,
    "out_proj_input": False,
}

# Every site of a Mamba-2 mixer; x, B and C all leave the convolution, dt is delta before bias and softplus.
MAMBA2_SITES: dict[str, bool] = {
    "in_proj_input": False,
    "z": False,
    "conv_input": False,
    "x": True,
    "B": True,
    "C": True,
    "dt": False,
    "out_proj_input": False,
}

# Sites of each family, and those of them that are the SSM input: what the scale mode governs by default.
SITES: dict[str, dict[str, bool]] = {"mamba1": MAMBA1_SITES, "mamba2": MAMBA2_SITES}
SSM_INPUT: dict[str, tuple[str, ...]] = {"mamba1": ("ssm_input",), "mamba2": ("x",)}

# The word for every site of a model in ``precision.activations.sites``.
ALL_SITES = "all"

# Sites that may have a code a channel or a group of channels: what the convolution emits and the scan reads.
GROUPED: dict[str, tuple[str, ...]] = {"mamba1": ("ssm_input",), "mamba2": ("x", "B", "C")}

# Of these, sites whose codes may have selectors beside them: both operators know them.
PAIRED: dict[str, tuple[str, ...]] = {"mamba1": ("ssm_input",), "mamba2": ()}

# Layers outside the blocks that have a large weight; token ids enter one, the other reads no site.
EMBEDDING, HEAD = "embedding", "lm_head"

# The site that alone feeds a linear layer of a mixer; the one in front of x_proj is the SSM input.
INPUT_SITES: dict[str, dict[str, str]] = {
    "mamba1": {
        "in_proj": "in_proj_input",
        "x_proj": "ssm_input",
        "dt_proj": "dt_input",
        "out_proj": "out_proj_input",
    },
    "mamba2": {"in_proj": "in_proj_input", "out_proj": "out_proj_input"},
}


def short_name(site: str) -> str:
    """``x`` of ``layers.3.mixer.x``."""
    return site.rpartition(".")[2]


def is_ssm_input(site: str) -> bool:
    """Whether a site, by its full or short name, is the SSM input of its family."""
    return any(short_name(site) in names for names in SSM_INPUT.values())
