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
