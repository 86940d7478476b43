"""The command of one job: what a launcher starts, and what a list of jobs for another scheduler consists of."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# Of a multirun as a whole: a single run has no launcher, no sweeper and a folder of its own.
OF_THE_MULTIRUN = re.compile(
    r"[~+]*hydra(?:/(?:launcher|sweeper)|\.(?:launcher|sweeper|sweep|mode|run\.dir|job\.num|job\.id))(?=[.@=]|$)"
)
# What Hydra's grammar reads as one plain word.
PLAIN_WORD = re.compile(r"[\w/\-+.%@:?]+")
FLAGS = {"config_path": "--config-path", "config_name": "--config-name", "config_dir": "--config-dir"}


def job_arguments(
    overrides: Sequence[str],
    sweep_dir: str | Path,
    subdir: str,
    hydra_overrides: Sequence[str] = (),
    number: int | None = None,
) -> list[str]:
    """Arguments of ``python run.py`` that run one job of a multirun as a single run, in the job's own folder.

    They are words, not a line: join them by :func:`shlex.join` for a shell or for ``xargs``.

    Args:
        overrides: Of the job, as a sweeper hands them to a launcher.
        sweep_dir: ``hydra.sweep.dir``; made absolute.
        subdir: ``hydra.sweep.subdir`` of the job.
        hydra_overrides: Of Hydra's own node, as in ``hydra.overrides.hydra`` of the multirun.
        number: Place in the multirun, kept in the job's record.

    Returns:
        Overrides; those about launcher, sweeper and mode are left out.
    """
    kept = [text for text in [*hydra_overrides, *overrides] if not OF_THE_MULTIRUN.match(text)]
    numbered = [] if number is None else [f"hydra.job.num={number}"]
    return [*kept, *numbered, f"hydra.run.dir={quoted(str(Path(sweep_dir).absolute() / subdir))}"]


def quoted(value: str) -> str:
    """A text as a value in Hydra's override grammar: as it is where that is one word, else in quotes."""
    if PLAIN_WORD.fullmatch(value):
        return value
    # Hydra reads \' as a quote, and backslashes in front of a quote in pairs.
    inside = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{inside}'"


def config_flags(arguments: Sequence[str]) -> list[str]:
    """The flags of a command that say where the configuration comes from, for a command like it.

    Args:
        arguments: What was typed after ``run.py``.

    Returns:
        ``--config-path``, ``--config-name`` and ``--config-dir``, with their values.
    """
    from hydra._internal.utils import get_args_parser

    given, _ = get_args_parser().parse_known_args(list(arguments))
    flags = []
    for name, flag in FLAGS.items():
        if (value := getattr(given, name)) is not None:
            flags += [flag, value]
    return flags
