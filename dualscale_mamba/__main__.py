"""``python -m dualscale_mamba COMMAND``: everything about studies and checkpoints that is not running them.

Each command reads files alone, so it works while jobs run, on another machine, and for a study that was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.profiling import command as memory
from dualscale_mamba.report import checkpoint_commands

RUN = Path(__file__).resolve().parents[1] / "run.py"
REFRESH_SECONDS = 2.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: In place of those of the process.

    Returns:
        0; 1 where there is nothing to show or something failed.
    """
    parser, jobs = _parser(), ("jobs",)
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == list(jobs) and given[1:2] not in (["-h"], ["--help"]):
        return list_jobs(given[1:])  # all that follows is Hydra's
    options = parser.parse_args(given)
    command: Callable[[argparse.Namespace], int] = options.run
    try:
        return command(options)
    except (CheckpointError, ConfigError, KeyError) as error:
        sys.stderr.write(f"{error.args[0]}\n")
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dualscale-mamba", description=" ".join(__doc__.split("\n\n")[1].split())
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    jobs = commands.add_parser(
        "jobs", help="print the arguments of run.py for each missing job of a multirun"
    )
    jobs.add_argument(
        "overrides", nargs="*", help="as after `python run.py -m`, e.g. sweeps=percentile seed=0,1"
    )

    status = commands.add_parser("status", help="the jobs of a study: state, time, result")
    _folder(status)
    status.add_argument("--watch", action="store_true", help="again every two seconds, until all have ended")
    status.set_defaults(run=show_status)

    what = "verdicts, tables (CSV, Markdown, LaTeX), picture and page of a study, made again from its files"
    compare = commands.add_parser("compare", aliases=["collect"], help=what)
    _folder(compare)
    compare.add_argument(
        "--all", action="store_true", help="every job in the folder, whatever line it belongs to"
    )
    compare.add_argument(
        "--reference", help="what others are compared with: a label, an arm, a scale mode or an id"
    )
    compare.set_defaults(run=write)

    sync = commands.add_parser(
        "sync", help="create the W&B runs of a study from its files; again changes nothing"
    )
    sync.add_argument("folder", type=Path, help="of a study or of one run")
    sync.add_argument("--mode", choices=("online", "offline"), default="online")
    sync.add_argument(
        "--project", default=None, help="W&B project; by default that of the run's configuration"
    )
    sync.add_argument("--entity", default=None, help="W&B user or team")
    sync.add_argument("--force", action="store_true", help="also what has been sent before")
    sync.set_defaults(run=send)

    board = commands.add_parser(
        "dashboard", help="create a W&B workspace and report that compare ablation groups"
    )
    board.add_argument("--entity", default=None, help="W&B user or team; by default the account's own")
    board.add_argument("--project", default="dualscale_mamba")
    board.add_argument("--group", default=None, help="only runs of this group; by default all, grouped")
    board.add_argument("--folder", type=Path, help="of a study whose metrics the panels show")
    board.set_defaults(run=publish)
    memory.add_command(commands)
    checkpoint_commands.add_commands(commands)
    return parser


def _folder(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="of a study, e.g. outputs/percentile")
    parser.add_argument(
        "--line", help="one of the lines typed there, by the beginning of its id; by default the last"
    )


def list_jobs(overrides: Sequence[str]) -> int:
    """Compose and check a multirun and print one line of arguments for each job that has no result."""
    command = [sys.executable, str(RUN), "-m", *overrides, "hydra.sweeper.only_list=true"]
    sys.stdout.flush()
    os.execv(sys.executable, command)


def show_status(options: argparse.Namespace) -> int:
    """The jobs of a line as they are now."""
    from dualscale_mamba.report.tables import console
    from dualscale_mamba.study.folder import StudyFolder
    from dualscale_mamba.study.monitor import Watch, table

    study = StudyFolder(options.folder)
    line = study.line(options.line) if options.line else study.latest()
    if line is None:
        sys.stderr.write(f"{options.folder}: no multirun was started there (it has no lines/*.json)\n")
        return 1
    out, watch = console(), Watch(study, line)
    while True:
        watch.update()
        out.print(table(watch))
        if not options.watch or not (watch.counts["running"] or watch.counts["waiting"]):
            return 0
        time.sleep(REFRESH_SECONDS)


def write(options: argparse.Namespace) -> int:
    """Write the comparison of a study again."""
    from dualscale_mamba.report import write_comparison

    found = write_comparison(
        options.folder, line=options.line, everything=options.all, reference=options.reference
    )
    if not found:
        sys.stderr.write(f"{options.folder}: no folder below it has a status.json\n")
    return 0 if found else 1


def send(options: argparse.Namespace) -> int:
    """Send finished runs to W&B."""
    from dualscale_mamba.report.tables import console
    from dualscale_mamba.tracking.sync import sync

    outcomes = sync(options.folder, options.mode, options.project, options.entity, options.force)
    for job, outcome in outcomes:
        console().print(f"{job}  {outcome}", soft_wrap=True)
    if not outcomes:
        sys.stderr.write(f"{options.folder}: no folder below it has a status.json\n")
    return 1 if not outcomes or any(outcome.startswith("not sent") for _, outcome in outcomes) else 0


def publish(options: argparse.Namespace) -> int:
    """Create the workspace and the report, for the metrics that the runs of a study have."""
    from dualscale_mamba.report.collect import collect
    from dualscale_mamba.report.tables import console
    from dualscale_mamba.tracking.workspace import Shown
    from dualscale_mamba.tracking.workspace import publish as create

    jobs = collect(options.folder) if options.folder else []
    shown = Shown.of(job.result for job in jobs if job.result)
    for address in create(options.entity, options.project, options.group, shown):
        console().print(address, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
