"""Folders of runs with the least that a report reads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SOURCE = "text"
FACTS: dict[str, Any] = {
    "bits_per_value": 8.0,
    "weights_bits": 8.1,
    "widths": {"in_proj": "w8a8", "x_proj": "w8a8", "lm_head": "w16a16"},
    "rounding": "Nearest()",
    "sites": ["ssm_input"],
    "implementation": "native",
    "ops": "compiled",
    "kernels": "k" * 8,
    "weights": "w" * 8,
    "device": "cpu",
    "dtype": "float32",
    "residual_dtype": "float32",
    "calibration": {"source": "generated", "samples": 4, "length": 8, "batch_size": 4},
    "calibration_tokens": "c" * 8,
    "x_proj_reads": "codes",
    "x_proj_product": "integer",
    "linear_input_scale": "static",
    "rotate": True,
    "rotate_residual": False,
    "threads": 1,
    "seed": 0,
}


def windows(kl: Sequence[float], nll: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Rows of a divergence, not in their order."""
    nll = [3.0 + 0.01 * i for i in range(len(kl))] if nll is None else nll
    rows = [
        {"window": i, "kl": float(k), "top1_agreement": 1 - float(k), "nll": float(n), "reference_nll": 3.0}
        for i, (k, n) in enumerate(zip(kl, nll, strict=True))
    ]
    return rows[::-1]


def documents(task: str, outcomes: Sequence[float], kind: str = "acc") -> list[dict[str, Any]]:
    """Rows of a task of lm-eval."""
    return [
        {"task": task, "doc_id": i, "doc_hash": f"{task}{i}", "target": 0, "responses": [], kind: float(one)}
        for i, one in enumerate(outcomes)
    ]


def made_run(
    folder: Path,
    mode: str = "single",
    *,
    arm: str | None = None,
    number: int = 0,
    seed: int = 0,
    config: Mapping[str, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
    items: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    metrics: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    **status: Any,
) -> Path:
    """Write one finished run; metrics with items are their means."""
    folder.mkdir(parents=True, exist_ok=True)
    items = items or {}
    content = {"name": mode, "arm": arm, "group": "study", "number": number, "state": "done", "overrides": []}
    content |= {"choices": {"scale_mode": mode, **(choices or {})}, **status}
    (folder / "status.json").write_text(json.dumps(content))
    found: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    for name, rows in items.items():
        (folder / f"items_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        tokens = {"source": SOURCE, "tokens_hash": "t" * 8} if "window" in rows[0] else {"tasks": [name]}
        evaluation[name] = {"batch_size": 4, "request_order": "o", **tokens}
        found |= _metrics(rows)
    found |= {
        name: {"value": value, "unit": "", "better": "lower"} for name, value in (metrics or {}).items()
    }
    result = {
        "metrics": found,
        "config": {"seed": seed, "model": {"state_dtype": "float32"}, **(config or {})},
        "environment": {
            "gpu": None, "cpu": "c", "torch": "2", "command": ["run.py", "-m"], "git": {"sha": "a" * 40}
        },
        "fairness": {**FACTS, "evaluation": evaluation, **(facts or {})},
        "site_summary": {},
        "sites": [],
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def _metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if "window" in rows[0]:
        mean = {key: float(np.mean([row[key] for row in rows])) for key in ("kl", "top1_agreement", "nll")}
        values = {**mean, "perplexity": float(np.exp(mean["nll"]))}
        names = {f"divergence/{SOURCE}/{key}": (value, key) for key, value in values.items()}
    else:
        kind = next(key for key in rows[0] if key.startswith("acc"))
        tasks = {str(row["task"]): [r[kind] for r in rows if r["task"] == row["task"]] for row in rows}
        names = {f"{task}/{kind}": (float(np.mean(own)), kind) for task, own in tasks.items()}
    return {
        name: {
            "value": value,
            "unit": "",
            "better": "higher" if key in ("top1_agreement", "acc", "acc_norm") else "lower",
        }
        for name, (value, key) in names.items()
    }
