"""Where a study's numbers are from: the question, the command, hardware, versions, dates."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from dualscale_mamba.report.collect import Job
from dualscale_mamba.study.folder import RESULT, STATES, STATUS, Line

SWEEPS = Path(__file__).resolve().parents[3] / "sweeps"
QUESTION = "Question:"


@dataclass(frozen=True)
class Provenance:
    """The head of a page.

    Attributes:
        title: Of the study.
        question: What it asks, or empty.
        counts: Number of jobs by state.
        command: What to type to get the same.
        facts: What else a reader must know, by name.
    """

    title: str
    question: str
    counts: dict[str, int]
    command: str
    facts: dict[str, str]


def provenance(jobs: Sequence[Job], title: str, line: Line | None) -> Provenance:
    """Put the head together from what the jobs have recorded.

    Args:
        jobs: Of the study.
        title: Of the study.
        line: What was typed, if known.
    """
    states = Counter(job.state for job in jobs)
    found = [job.result["environment"] for job in jobs if job.result and "environment" in job.result]
    environments: list[Mapping[str, Any]] = [entry for entry in found if isinstance(entry, Mapping)]
    names = [str(job.status.get("choices", {}).get("sweeps") or "") for job in jobs]
    return Provenance(
        title,
        question([line.name if line else "", *dict.fromkeys(names), title]),
        {name: states[name] for name in dict.fromkeys([*STATES, *states]) if states[name]},
        _command(environments, line),
        _facts(jobs, environments, line),
    )


def question(names: Sequence[str], folder: Path = SWEEPS) -> str:
    """The question in the first comment of the stored study, by the first of ``names`` that there is."""
    for name in dict.fromkeys(names):
        path = folder / f"{name}.yaml"
        if re.fullmatch(r"[\w.-]+", name) and path.is_file():
            return _question(path.read_text(encoding="utf-8"))
    return ""


def _question(text: str) -> str:
    lines = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    words = " ".join(line for line in lines if not line.startswith("@package"))
    _, found, rest = words.partition(QUESTION)
    asked, _, _ = rest.partition("Type:")
    asked = asked.strip()
    return asked[:1].upper() + asked[1:] if found else ""


def _command(environments: Sequence[Mapping[str, Any]], line: Line | None) -> str:
    words = list(line.command) if line else []
    if not words:
        words = next((list(map(str, e["command"])) for e in environments if e.get("command")), [])
    if not words:
        return ""
    program = Path(words[0]).name
    return shlex.join([*(["python"] if program.endswith(".py") else []), program, *words[1:]])


def _facts(
    jobs: Sequence[Job], environments: Sequence[Mapping[str, Any]], line: Line | None
) -> dict[str, str]:
    times = [path.stat().st_mtime for job in jobs for path in (job.folder / STATUS,) if path.is_file()]
    seconds = sum(float(job.status.get("seconds") or 0.0) for job in jobs)
    facts = {
        "Begun": _moment(line.began) if line else "",
        "Last job ended": _moment(max(times)) if times else "",
        "Time of all jobs": f"{seconds / 60:.1f} min" if seconds else "",
        "Hardware": _each(environments, _hardware),
        "Model": _each([job.result for job in jobs if job.result], _model),
        "Versions": _each(environments, _versions),
        "Commit": _each(environments, _commit),
    }
    return {name: text for name, text in facts.items() if text}


def _each(entries: Sequence[Mapping[str, Any]], say: Callable[[Mapping[str, Any]], str]) -> str:
    """Different facts of the jobs, each once."""
    return "; ".join(dict.fromkeys(text for entry in entries if (text := say(entry))))


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, tz=timezone.utc).strftime("%Y-%m-%d %H:%M UTC")


def _hardware(entry: Mapping[str, Any]) -> str:
    threads = entry.get("threads")
    processor = f"{entry.get('cpu')}, {threads} {'thread' if threads == 1 else 'threads'}"
    return f"{entry['gpu']}, {processor}" if entry.get("gpu") else processor


def _versions(entry: Mapping[str, Any]) -> str:
    parts = {
        "dualscale_mamba": "package",
        "Python": "python",
        "torch": "torch",
        "CUDA": "cuda",
        "driver": "driver",
    }
    return ", ".join(f"{name} {entry[key]}" for name, key in parts.items() if entry.get(key))


def _commit(entry: Mapping[str, Any]) -> str:
    git = entry.get("git") or {}
    if not git.get("sha"):
        return ""
    return f"{str(git['sha'])[:12]}{' with changes' if git.get('dirty') else ''}"


def _model(result: Mapping[str, Any]) -> str:
    model = result.get("config", {}).get("model", {})
    return str(model.get("source") or model.get("name") or "") if isinstance(model, Mapping) else ""


def short(file: Path) -> str:
    """What a link to a run's file is called."""
    return {"run.log": "log"}.get(file.name, file.stem.replace("_", " "))


def files_of(job: Job) -> list[Path]:
    """What a run has left that a reader may open, as far as it exists."""
    names = (RESULT, STATUS, "figure.png", "run.log", "distribution.json", "wandb")
    found = [job.folder / name for name in names if (job.folder / name).exists()]
    return found + sorted(job.folder.glob("items_*.jsonl"))
