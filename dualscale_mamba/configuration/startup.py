"""What happens around a run: plugins before it, one sentence for an error, the comparison after a study."""

from __future__ import annotations

import difflib
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from dualscale_mamba.configuration import resolvers, studies
from dualscale_mamba.configuration.folders import MODEL, FolderAsOption, FoldersSearchPath
from dualscale_mamba.configuration.launchers import missing_extra
from dualscale_mamba.configuration.search_path import FolderAsGroup, SweepsSearchPath
from dualscale_mamba.configuration.validate import InvalidConfigError
from dualscale_mamba.errors import CheckpointError, ConfigError

INTERRUPTED = 130
# By name: whoever only asks for --help need not import what runs a study.
FAILED, STOPPED = "StudyFailedError", "StudyStoppedError"
PLUGINS = Path(__file__).resolve().parent / "plugins"
CONF = Path(__file__).resolve().parents[2] / "conf"

# Groups of which several files may be chosen.
LISTED = ("evaluation", "profiling")

logger = logging.getLogger(__name__)


def register() -> None:
    """Make the group ``sweeps``, folders as models, the sweeper and the resolvers known to Hydra, before composing."""
    resolvers.register()
    # Hydra takes sweepers from the name space package hydra_plugins only: a part of that lies in this folder.
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    # Workers of some launchers begin as bare Python: what they inherit tells them where all this lies.
    known = [
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        str(CONF.parent),
        str(PLUGINS),
    ]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(known))
    for plugin in (FolderAsGroup, SweepsSearchPath, FolderAsOption, FoldersSearchPath):
        Plugins.instance().register(plugin)


def launch(main: Callable[[], Any]) -> int:
    """Call a function decorated by ``hydra.main`` and turn its outcome into an exit status.

    A mistake of the user is one red sentence; only a defect shows its traceback. After a multirun, whatever
    became of its jobs, the comparison is written.

    Args:
        main: Takes its arguments from the command line.

    Returns:
        0; 1 after an error; 130 after Ctrl-C.
    """
    wants_everything = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors over instead of printing them itself
    # A cluster ends a job that takes too long by SIGTERM: what is done shall be compared as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except KeyboardInterrupt:
        _red("interrupted")
        return INTERRUPTED
    except (
        HydraException,
        OmegaConfBaseException,
        CheckpointError,
        ConfigError,
        InvalidConfigError,
    ) as error:
        if wants_everything:
            raise
        for sentence in explain(error):
            _red(sentence)
        return 1
    except Exception as error:
        if type(error).__name__ == STOPPED:
            _red(str(error))
            return 0  # it has not failed: it waits for the line to be typed again
        if sentence := null_group(error) or flags_at_odds(error):
            _red(sentence)
        elif type(error).__name__ != FAILED:  # each of its jobs has been told of
            traceback.print_exception(type(error), error, _from_task(error.__traceback__))
        return 1
    finally:
        _compare()
    return 0


def _from_task(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins in the task; all of it where there is none."""
    inner = trace
    while inner is not None and Path(inner.tb_frame.f_code.co_filename).parent.name != "tasks":
        inner = inner.tb_next
    return inner or trace


def _compare() -> None:
    for folder, line in studies.begun:
        from dualscale_mamba.report import write_comparison

        try:
            write_comparison(folder, line=line)
        except Exception:
            logger.exception("the comparison of %s could not be written", folder)


def _red(text: str) -> None:
    from rich.console import Console

    Console(stderr=True, soft_wrap=True, highlight=False).print(text, style="bold red", markup=False)


def explain(error: BaseException) -> list[str]:
    """One sentence for each thing that is wrong, from an error of the configuration."""
    if isinstance(error, InvalidConfigError):
        return error.sentences
    text = str(error)
    if isinstance(error, (CheckpointError, ConfigError)):  # a whole sentence, its cause in it
        return [" ".join(text.split())]
    if missing := re.search(r"Could not (?:find|load) '(.+)/(.+?)'", text):
        if sentence := missing_extra(missing[1], missing[2]):
            return [sentence]
        options = re.findall(r"^\t([\w.\-]+)$", text.split("Config search", 1)[0], re.M)
        group = missing[1]
        options = options or sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        folder = ", or the folder of a checkpoint" if group == MODEL else ""
        listed = f"allowed is one of {', '.join(options)}{folder}"
        return [f"{group}={missing[2]}: {listed}.{_suggestion(missing[2], options)}"]
    if unknown := re.search(r"Could not override '(.+?)'", text):
        key = unknown[1].split("@")[0]
        parent, allowed_keys = _siblings(key)
        inside = f"the keys of {parent}" if parent else "the top-level keys and groups"
        listed = f" ({', '.join(allowed_keys)})" if allowed_keys else " that --cfg job shows"
        advice = _suggestion(key, allowed_keys)
        return [f"{_typed(key)}: there is no such key; allowed are {inside}{listed}.{advice}"]
    return [" ".join(f"{text} {error.__cause__ or ''}".split())]


def null_group(error: BaseException) -> str:
    """What to say where Hydra was given null for a group, which it answers by a ValueError; else nothing."""
    if not str(error).startswith("Config group override must be"):
        return ""
    typed = [argument for argument in sys.argv[1:] if argument.endswith(("=null", "="))]
    groups = [argument.partition("=")[0] for argument in typed]
    found = next((group for group in groups if (CONF / group).is_dir()), "the group")
    options = ", ".join(sorted(path.stem for path in (CONF / found).glob("*.yaml")))
    several = f", or a list of them; {found}=[] is none" if found in LISTED else ""
    return f"{found}=null: allowed is one of {options}{several}."


def flags_at_odds(error: BaseException) -> str:
    """What to say where two flags of Hydra exclude each other, which it answers by a ValueError; else nothing."""
    text = str(error)
    if not isinstance(error, ValueError) or not text.startswith("Only one of --run, --multirun"):
        return ""
    return f"{text}. To see what a study's jobs would be, leave -m out and type the settings of one of them."


def _typed(key: str) -> str:
    """The argument as it was typed."""
    return next((argument for argument in sys.argv[1:] if argument.startswith(f"{key}=")), key)


def _suggestion(name: str, options: list[str]) -> str:
    close = difflib.get_close_matches(name.rpartition(".")[2], options, n=1)
    return f" Did you mean {close[0]}?" if close else ""


def _siblings(key: str) -> tuple[str, list[str]]:
    """The node that should have held ``key``, and what it holds, given the other arguments."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    parent = key.rpartition(".")[0]
    others = [
        a
        for a in sys.argv[1:]
        if re.match(r"[\w/]+=[\w\[\],]+$", a) and "," not in a and not a.startswith(key)
    ]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config: DictConfig | ListConfig = compose("config", overrides=others)
            node = OmegaConf.select(config, parent) if parent else config
            return parent, sorted(str(k) for k in node) if OmegaConf.is_dict(node) else []
    except Exception:
        return parent, []
