"""A study's folder as runs leave it, with made-up numbers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from made_runs import FACTS

MODES = ("single", "dual", "affine", "fp8_e4m3", "control")
HOSTILE = "</script><script>window.stolen = 1</script><img src=x onerror='window.stolen = 2'>"
TEXT, TASK = "generated_heldout", "minimal_pairs"
WINDOWS, PAIRS = 16, 60
# How far a mode is from the unquantized model, in nats.
DISTANCE = {
    "single": 0.005,
    "control": 0.005,
    "affine": 0.004,
    "fp8_e4m3": 0.003,
    "dual": 0.001,
    "fp16": 1e-4,
}

ENVIRONMENT = {
    "command": ["run.py", "-m", "sweeps=percentile"],
    "torch": "2",
    "python": "3.11",
    "gpu": None,
    "cpu": "AMD EPYC",
    "threads": 2,
    "package": "0.1.0",
    "git": {"sha": "a" * 40, "dirty": False},
}


def write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_items(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / f"items_{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metric(value: float, unit: str, better: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "better": better}


def site(name: str, mode: str, layer: int, percentile: float) -> dict[str, Any]:
    noise = random.Random(f"{name} {mode} {percentile}").random()
    return {
        "name": name,
        "format": mode,
        "observer": "Percentile",
        "threshold": 1.0 + layer / 10 + percentile / 100,
        "range_max": 6.0 + layer / 5,
        "outlier_share": 1 - percentile / 100,
        "codes_used": 200.0,
        "sqnr_db": 30.0 + noise + 8 * (mode == "dual"),
        "sqnr_single_db": 30.0 + noise,
        "bits_per_value": 8.0,
    }


def picture(layer: int, mode: str, percentile: float) -> dict[str, Any]:
    centres = [0.05 * math.sinh(-2.4 + 7.4 * index / 160) for index in range(160)]
    share = [math.exp(-abs(centre) * (1 + layer / 30)) / 60 for centre in centres]
    step = percentile / 1e4 + layer / 1e4 + len(mode) / 1e4
    levels = [round(-0.3 + index * step, 5) for index in range(256)]
    found = {"centres": centres, "share": share, "levels": levels, "threshold": 1.2}
    return found | ({"knee": 1.2} if mode == "dual" else {})


def results(
    mode: str, percentile: float, seed: int
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Metrics, and the items from which they come."""
    chance = random.Random(seed)
    scale = DISTANCE[mode] * (1 + 20 * (100 - percentile) / 100)
    kl = [
        scale * (1 + 0.2 * random.Random(window).random() + 0.1 * chance.random())
        for window in range(WINDOWS)
    ]
    nll = [2.2 + 0.2 * random.Random(window + 99).random() + value for window, value in enumerate(kl)]
    right = [int(random.Random(pair + 7).random() < 0.9 - 10 * scale) for pair in range(PAIRS)]
    items = {
        "divergence": [
            {"window": i, "kl": kl[i], "top1_agreement": 0.97, "tokens": 512, "nll": nll[i]} for i in range(WINDOWS)
        ],
        TASK: [{"task": TASK, "doc_id": i, "doc_hash": str(i), "acc": right[i]} for i in range(PAIRS)],
    }  # fmt: skip
    metrics = {
        f"divergence/{TEXT}/kl": metric(sum(kl) / WINDOWS, "nats/token", "lower"),
        f"divergence/{TEXT}/top1_agreement": metric(0.97, "fraction", "higher"),
        f"{TASK}/acc": metric(sum(right) / PAIRS, "fraction", "higher"),
        "latency/tpot/batch_1/p50": metric(
            2.0 + 0.1 * MODES.index(mode) + chance.random() / 50, "ms", "lower"
        ),
        "latency/tpot/batch_1/p10": metric(1.9 + 0.1 * MODES.index(mode), "ms", "lower"),
        "latency/tpot/batch_1/p90": metric(2.2 + 0.1 * MODES.index(mode), "ms", "lower"),
        "memory/weights": metric(14904512 - 1000 * MODES.index(mode), "bytes", "lower"),
        "memory/bits_per_value": metric(8.0, "bits", "lower"),
    }
    return metrics, items


def facts_of(percentile: float, samples: int) -> dict[str, Any]:
    """What a result says of its run beside the numbers."""
    evaluation = {
        "divergence": {"source": TEXT, "tokens_hash": "t" * 64, "batch_size": 4},
        TASK: {"tasks": [TASK], "batch_size": 4, "request_order": "o"},
    }
    calibration = {**FACTS["calibration"], "samples": samples}
    return {
        "environment": ENVIRONMENT,
        "config": {"observer": {"percentile": percentile}, "calibration": {"samples": samples}, "seed": 0},
        "fairness": {**FACTS, "calibration": calibration, "evaluation": evaluation},
    }


def write_run(
    folder: Path,
    number: int,
    mode: str,
    percentile: float,
    layers: int = 4,
    error: str = "",
    samples: int = 16,
) -> Path:
    """One run's folder below ``folder``."""
    path = folder / f"{number}_{mode}"
    status: dict[str, Any] = {
        "name": mode,
        "arm": {"dual": "treatment", "single": "baseline", "control": "control"}.get(mode),
        "group": "study",
        "number": number,
        "overrides": [f"scale_mode={mode}", f"observer.percentile={percentile}"],
        "choices": {"scale_mode": mode, "observer": "percentile", "sweeps": "percentile"},
        "state": "failed" if error else "done",
        "seconds": 12.5,
    }
    if error:
        status |= {
            "error": error,
            "traceback": f"Traceback (most recent call last):\n  File run.py\n{error}\n",
        }
    write(path / "status.json", status)
    if error:
        return path
    metrics, items = results(mode, percentile, number)
    names = [f"layers.{layer}.mixer.{short}" for layer in range(layers) for short in ("ssm_input", "z")]
    rows = [site(name, mode if "ssm" in name else "single", layer // 2, percentile if "ssm" in name else 100.0)
            for layer, name in enumerate(names)]  # fmt: skip
    facts = facts_of(percentile, samples)
    write(path / "result.json", {**status, **facts, "metrics": metrics, "site_summary": {}, "sites": rows})
    for name, own in items.items():
        write_items(path, name, own)
    pictures = {
        name: picture(layer // 2, mode, percentile) for layer, name in enumerate(names) if "ssm" in name
    }
    write(path / "distribution.json", {"site": names[0], "sites": pictures})
    (path / "run.log").write_text("a line\n")
    return path


def small_study(folder: Path) -> Path:
    """Every mode at three percentiles, one failed run with a hostile error, one run that never began to end."""
    number = 0
    for mode in MODES:
        for percentile in (99.0, 99.9, 100.0):
            write_run(folder, number, mode, percentile)
            number += 1
    write_run(folder, number, "dual", 98.0, error=f"RuntimeError: {HOSTILE}")
    return folder


def large_study(folder: Path, runs: int = 200, layers: int = 64) -> Path:
    """As many runs as a large ablation has, of a model with as many layers as the largest Mamba."""
    for number in range(runs):
        percentile = round(100 - 10 ** (-number // len(MODES) / 12), 5)
        write_run(folder, number, MODES[number % len(MODES)], percentile, layers, samples=16 << (number % 3))
    return folder
