"""lm-eval's own task files, pointed at local data where there is some.

Each chosen task becomes a small YAML that includes the file which lm-eval ships, so prompts and metrics stay
those of lm-eval. Loading a folder of these takes milliseconds; lm-eval's whole registry takes ten seconds.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.minimal_pairs import write_minimal_pairs

MINIMAL_PAIRS: Final = "minimal_pairs"
BLIMP: Final = "blimp"


class _Shipped(NamedTuple):
    """Where a task lies in lm-eval, which split is evaluated, and its file under ``data.root``/eval."""

    file: str
    split: str
    local: str


SHIPPED: Final = {
    "lambada_openai": _Shipped("lambada/lambada_openai.yaml", "test_split", "lambada_openai.jsonl"),
    "hellaswag": _Shipped("hellaswag/hellaswag.yaml", "validation_split", "hellaswag.jsonl"),
    "piqa": _Shipped("piqa/piqa.yaml", "validation_split", "piqa.jsonl"),
    "arc_easy": _Shipped("arc/arc_easy.yaml", "test_split", "arc_easy.jsonl"),
    "arc_challenge": _Shipped("arc/arc_challenge.yaml", "test_split", "arc_challenge.jsonl"),
    "winogrande": _Shipped("winogrande/default.yaml", "validation_split", "winogrande.jsonl"),
    "openbookqa": _Shipped("openbookqa/openbookqa.yaml", "test_split", "openbookqa.jsonl"),
    "wikitext": _Shipped("wikitext/wikitext.yaml", "test_split", "wikitext2.jsonl"),
}
_SPLITS: Final = ("training_split", "validation_split", "test_split", "fewshot_split")
_ALLOWED: Final = (
    f"{MINIMAL_PAIRS}, {', '.join(SHIPPED)}, {BLIMP} (all its sets), {BLIMP}_<set>, "
    "or the path of an lm-eval task's .yaml"
)


def check_tasks(tasks: Sequence[str], data_root: Path | None) -> None:
    """Raises ConfigError for unknown tasks and for local files that are missing.

    Args:
        tasks: Names in ``SHIPPED``, ``minimal_pairs``, ``blimp``, ``blimp_<set>``, or paths of task files.
        data_root: Folder with ``eval/``; None leaves the data to lm-eval, which reads the hub.
    """
    if not tasks:
        raise ConfigError("tasks", "[]", f"at least one of {_ALLOWED}")
    for task in tasks:
        if not _is_known(task):
            near = difflib.get_close_matches(task, [MINIMAL_PAIRS, BLIMP, *SHIPPED, *_blimp_tasks()], n=1)
            raise ConfigError("tasks", task, _ALLOWED, f"Did you mean {near[0]}?" if near else "")
    if data_root is None:
        return
    if BLIMP in tasks and not _local_blimp(data_root):
        raise ConfigError("data.root", data_root, f"a folder with {data_root / 'eval' / BLIMP}/*.jsonl")
    missing = [str(path) for task in expand(tasks, data_root) if (path := _missing(task, data_root))]
    if missing:
        needed = f"a folder that holds every chosen set; missing is {', '.join(missing)}"
        raise ConfigError(
            "data.root", data_root, needed, "Leave data.root null to read the sets from the hub."
        )


def expand(tasks: Sequence[str], data_root: Path | None) -> list[str]:
    """The tasks with ``blimp`` replaced by its sets (those at hand, if data are local), each once."""
    found: list[str] = []
    for task in tasks:
        if task == BLIMP:
            found.extend(_blimp_tasks() if data_root is None else _local_blimp(data_root))
        else:
            found.append(task)
    return list(dict.fromkeys(found))


def local_files(tasks: Sequence[str], data_root: Path | None) -> list[Path]:
    """The files on this machine that checked tasks read, their own task files included."""
    own = [Path(task).expanduser() for task in tasks if task.endswith(".yaml")]
    if data_root is None:
        return own
    named = [
        task for task in expand(tasks, data_root) if task != MINIMAL_PAIRS and not task.endswith(".yaml")
    ]
    return own + [data_root / "eval" / _describe(task).local for task in named]


def write_tasks(tasks: Sequence[str], folder: Path, data_root: Path | None) -> list[str]:
    """Writes one YAML per task into a folder.

    Args:
        tasks: As for ``check_tasks``, which must have accepted them.
        folder: An empty folder; also holds generated data and the cache of the local data.
        data_root: As for ``check_tasks``.

    Returns:
        Names under which lm-eval finds the tasks in that folder.
    """
    names = []
    for task in expand(tasks, data_root):
        name = Path(task).stem if task.endswith(".yaml") else task
        if task == MINIMAL_PAIRS:
            config = _minimal_pairs(folder)
        elif task.endswith(".yaml"):
            config = {"include": str(Path(task).expanduser().resolve())}
        else:
            config = _shipped(task, folder, data_root)
        text = json.dumps({**config, "task": name, "num_fewshot": 0})  # JSON is YAML too
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
        names.append(name)
    return names


def _is_known(task: str) -> bool:
    if task.endswith(".yaml"):
        return Path(task).expanduser().is_file()
    return task in (MINIMAL_PAIRS, BLIMP) or task in SHIPPED or task in _blimp_tasks()


def _missing(task: str, data_root: Path) -> Path | None:
    if task == MINIMAL_PAIRS or task.endswith(".yaml"):
        return None
    path = data_root / "eval" / _describe(task).local
    return None if path.is_file() else path


def _describe(task: str) -> _Shipped:
    if task in SHIPPED:
        return SHIPPED[task]
    name = task.removeprefix(f"{BLIMP}_")
    return _Shipped(f"{BLIMP}/{name}.yaml", "validation_split", f"{BLIMP}/{name}.jsonl")


def _shipped(task: str, folder: Path, data_root: Path | None) -> dict[str, Any]:
    shipped = _describe(task)
    config: dict[str, Any] = {"include": str(_task_folder() / shipped.file)}
    if data_root is not None:
        path = data_root / "eval" / shipped.local
        config |= _local(path, shipped.split, folder)
    return config


def _local(path: Path, split: str, folder: Path) -> dict[str, Any]:
    return {
        "dataset_path": "json",
        "dataset_name": None,
        # A cache of its own: nothing is left in the home folder, and parallel jobs cannot meet.
        "dataset_kwargs": {"data_files": {"local": str(path.resolve())}, "cache_dir": str(folder / "cache")},
        **dict.fromkeys(_SPLITS),
        split: "local",
    }


def _minimal_pairs(folder: Path) -> dict[str, Any]:
    path = folder / f"{MINIMAL_PAIRS}.jsonl"
    write_minimal_pairs(path)
    return {
        **_local(path, "test_split", folder),
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[sentence_good, sentence_bad]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def _local_blimp(data_root: Path) -> list[str]:
    local = {f"{BLIMP}_{path.stem}" for path in (data_root / "eval" / BLIMP).glob("*.jsonl")}
    return sorted(local & set(_blimp_tasks()))


@cache
def _blimp_tasks() -> tuple[str, ...]:
    files = (_task_folder() / BLIMP).glob("[!_]*.yaml")
    return tuple(sorted(f"{BLIMP}_{path.stem}" for path in files))


def _task_folder() -> Path:
    spec = importlib.util.find_spec("lm_eval")  # the folder without the import, which takes seconds
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("lm_eval is not installed: pip install 'lm-eval>=0.4.13,<0.5'")
    return Path(spec.submodule_search_locations[0]) / "tasks"
