"""A session from the configuration to the quantized model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig

from dualscale_mamba.quantization.weights import QuantizedWeight
from dualscale_mamba.rounding.hessians import quantize_sequentially
from dualscale_mamba.tasks.session import open_session

Compose = Callable[..., DictConfig]


def test_a_sweep_over_scale_modes_rounds_the_weights_once(
    composed: Compose, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def counting(*given: Any) -> dict[str, QuantizedWeight]:
        computed.append(given)
        return quantize_sequentially(*given)

    monkeypatch.setattr("dualscale_mamba.quantization.weight_pass.quantize_sequentially", counting)
    cache = ("calibration.cache=true", f"paths.cache={tmp_path / 'cache'}")
    held = []
    for override in ("scale_mode=single", "scale_mode=dual", "precision=w4a16", "rounding=nearest"):
        config = composed("debug=fast", "precision=w4a8", "rounding=gptq", *cache, override)
        with open_session(config) as session:
            report = session.quantize()
            held.append(session.model.blocks()[1].mixer.out_proj.weight_codes)
        assert ("gptq" in session.seconds) == (override != "rounding=nearest")
        assert report.widths["layers.1.mixer.out_proj"] == ("w4a16" if "a16" in override else "w4a8")
    # Of w4a16 only the inputs that layers multiply differ: the weights are those of w4a8.
    assert len(computed) == 2
    assert len(list((tmp_path / "cache" / "weights").glob("*.safetensors"))) == 1
    assert torch.equal(held[0], held[1])
    assert torch.equal(held[0], held[2])
    assert not torch.equal(held[0], held[3])


def test_nothing_quantized_has_widths_too(composed: Compose) -> None:
    with open_session(composed("debug=fast", "precision=none", "scale_mode=fp16")) as session:
        report = session.quantize()
    assert set(report.widths.values()) == {"w16a16"}
    assert report.weights_bits == 32
