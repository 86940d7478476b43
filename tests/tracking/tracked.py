"""A small result and its configuration, for the tests of trackers."""

from __future__ import annotations

from typing import Any

METRICS = {
    "perplexity/x/nll": {"value": 3.5, "unit": "nats/token", "better": "lower"},
    "minimal_pairs/acc": {"value": 0.9, "unit": "fraction", "better": "higher"},
    "minimal_pairs/acc_stderr": {"value": 0.01, "unit": "fraction", "better": ""},
    "latency/tpot/p50": {"value": 1.5, "unit": "ms", "better": "lower"},
}
SITES = [
    {
        "name": f"layers.{layer}.mixer.ssm_input",
        "format": "dual",
        "sqnr_db": 40.0 - 10 * layer,
        "threshold": 1.5,
    }
    for layer in range(2)
]


def settings() -> dict[str, Any]:
    """A configuration as a tracker sees it."""
    return {
        "name": "run",
        "group": "study",
        "arm": "treatment",
        "tags": ["smoke"],
        "precision": {"name": "w8a8"},
        "scale_mode": {"fine_codes": 160},
        "observer": {"percentile": 99.9},
        "granularity": {},
        "quantize": {"sites": None},
        "model": {"name": "tiny"},
        "calibration": {"samples": 2},
        "task": {"_target_": "dualscale_mamba.tasks.ptq.run"},
        "tracker": {"project": "demo", "entity": None, "timeout": 2},
    }


RESULT: dict[str, Any] = {
    "name": "run",
    "arm": "treatment",
    "group": "study",
    "choices": {"scale_mode": "dual"},
    "metrics": METRICS,
    "sites": SITES,
    "site_summary": {"ssm_input/threshold": 1.5},
    "config": settings(),
    "environment": {"gpu": None, "git": {"sha": "abc"}, "libraries": {"torch": "2"}},
    "hashes": {"kernels": "k1", "weights": "w1"},
    "fairness": {"bits_per_value": 8.0, "calibration": {"samples": 2}},
    "seconds": {},
}
