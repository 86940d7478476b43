"""Launchers of other packages, and what a user who lacks one must type."""

from __future__ import annotations

# Name in hydra/launcher to the extra of this package that brings it.
EXTRAS = {"joblib": "sweep", "submitit_local": "sweep", "submitit_slurm": "sweep", "ray": "ray"}


def missing_extra(group: str, name: str) -> str | None:
    """One sentence for a launcher that is not there because its package is not installed; None for other options.

    Args:
        group: Configuration group that was asked for.
        name: Option that Hydra did not find in it.
    """
    if group != "hydra/launcher" or name not in EXTRAS:
        return None
    return (
        f"{group}={name}: its package is not installed; type pip install 'dualscale_mamba[{EXTRAS[name]}]'."
    )
