"""Each mistake is answered by one sentence that names key, value and what is allowed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig

from dualscale_mamba.configuration.startup import CONF, explain
from dualscale_mamba.configuration.validate import InvalidConfigError, problems, validate

Compose = Callable[..., DictConfig]

MISTAKES = {
    "observer.percentile=50": "observer.percentile=50: allowed is a number in (50, 100]",
    "observer.percentile=100.5": "observer.percentile=100.5: allowed is a number in (50, 100]",
    "observer.percentile=high": "observer.percentile=high: allowed is a number in (50, 100]",
    "precision.activations.observer.percentile=0": "precision.activations.observer.percentile=0",
    "precision.activations.overrides.out_proj_input=1": "precision.activations.overrides.out_proj_input=1",
    "+precision.activations.overrides.y=99": "precision.activations.overrides=y: allowed is one of",
    "precision.activations.sites=[ssm]": "precision.activations.sites=ssm: allowed is one of in_proj_input",
    "quantize.sites=[z]": "scale_mode=dual at site z",
    "quantize.sites=[x]": "quantize.sites=x: allowed is one of in_proj_input",
    "quantize.sites=x": "quantize.sites=x: allowed is a list, as in quantize.sites=[x,B,C], or null",
    "precision.activations.sites=some": "precision.activations.sites=some: allowed is all, a list, or null",
    "granularity=per_group granularity.head_groups=0": "granularity.head_groups=0: allowed is a whole number",
    "granularity=per_group quantize.sites=[delta] scale_mode=affine": "granularity=per_group at site delta",
    "model=mamba2_tiny quantize.sites=[ssm_input]": "ssm_input: allowed is one of in_proj_input, z, conv_input",
    "model=mamba2_tiny precision.x_proj_reads=conv_output": "precision.x_proj_reads=conv_output: allowed is codes",
    "model.family=mamba3": "model.family=mamba3: allowed is one of mamba1, mamba2",
    "model.family=mamba2 precision=none": "model.family=mamba2: allowed is mamba1, which embedded:mamba1-tiny is",
    "model.state_dtype=float16": "model.state_dtype=float16: allowed is float32 for Mamba-1",
    "model.state_dtype=float64": "model.state_dtype=float64: allowed is one of float32, float16",
    "precision.x_proj_reads=both": "precision.x_proj_reads=both: allowed is codes, decoded, conv_output.",
    "precision.linear_input_scale=row": "precision.linear_input_scale=row: allowed is static or per_token",
    "precision.weights.bits=3": "precision.weights.bits=3: allowed is 8, 4 or null",
    "precision.weights.head=16": "precision.weights.head=16: allowed is 8, 4 or null",
    "precision.weights.group_size=96": "precision.weights.group_size=96: allowed is a power of two in 32 to 1024",
    "precision.rotate_residual=2": "precision.rotate_residual=2: allowed is one of true, false",
    "+precision.layers={lm_head:w3a16}": "precision.layers.lm_head=w3a16: allowed is one of w16a16",
    "+precision.layers={lm_head:w8a8}": "precision.layers.lm_head=w8a8: allowed is w4a16, w8a16 or w16a16",
    "precision.layers=w8a8": "precision.layers=w8a8: allowed is a map of patterns of layers to widths",
    "precision=w8a8 rounding._target_=no.such.Rounding": "rounding._target_=no.such.Rounding",
    "precision.rotate=1": "precision.rotate=1: allowed is one of true, false",
    "scale_mode.fine_codes=300": "scale_mode.fine_codes=300: allowed is an integer in [16, 240]",
    "scale_mode._target_=no.such.Mode": "scale_mode._target_=no.such.Mode",
    "calibration.samples=0": "calibration.samples=0: allowed is a whole number above 0",
    "calibration.length=1.5": "calibration.length=1.5: allowed is a whole number above 0",
    "calibration.source=bible": "calibration.source=bible: allowed is one of",
    "calibration.source=wikipedia_en": "data.root=None: allowed is a folder with text/wikipedia_en.valid.txt",
    "evaluation.divergence.batch_size=0": "evaluation.divergence.batch_size=0: allowed is at least 1",
    "evaluation.perplexity.source=bible": "evaluation.perplexity.source=bible: allowed is one of",
    "profiling.latency.cuda_graphs=1": "profiling.latency.cuda_graphs=1: allowed is one of true, false",
    "task=profile task.cuda_graphs=null": "task.cuda_graphs=None: allowed is one of true, false",
    "profiling.latency.tokens=0": "profiling.latency.tokens=0: allowed is a whole number above 0",
    "profiling.latency.batch_sizes=[]": "profiling.latency.batch_sizes=[]: allowed is a list of whole numbers",
    "profiling.latency.prompt_lengths=[0]": "profiling.latency.prompt_lengths=0: allowed is a whole number above 0",
    "task=fidelity task.percentiles=[20]": "task.percentiles=20: allowed is a number in (50, 100]",
    "task=fidelity task.formats=[]": "task.formats=[]: allowed is a list with at least one element",
    "task=fidelity task.formats=[singel]": "task.formats=singel: allowed is one of affine, control, dual",
    "task=fidelity task.granularities=[per_row]": "task.granularities=per_row: allowed is one of per_channel",
    "task=fidelity task.objective=sqnr": "task.objective=sqnr: allowed is one of mse, output, kl, null",
    "task=fidelity task.candidates=0": "task.candidates=0: allowed is a whole number above 0",
    "task=fidelity task.verify=1": "task.verify=1: allowed is one of true, false",
    "task=fidelity scale_mode=fp16": "scale_mode=fp16: allowed is a format, for task=fidelity proposes",
    "task=profile task.batch_sizes=8": "task.batch_sizes=8: allowed is a list of whole numbers",
    "task=profile task.prompt_lengths=[]": "task.prompt_lengths=[]: allowed is a list of whole numbers",
    "task=profile task.repeats=0": "task.repeats=0: allowed is a whole number above 0",
    "task=profile task.warmup=-1": "task.warmup=-1: allowed is a number not below 0",
    "data.root=no_such_folder": "data.root=no_such_folder: allowed is a folder that exists, or null",
    "model.dtype=int4": "model.dtype=int4: allowed is one of auto, float32, float16, bfloat16",
    "model.source=embedded:huge": "model.source=embedded:huge: allowed is embedded:mamba1-tiny",
    "model.implementation=other": "model.implementation=other: allowed is one of native, mamba_ssm",
    "model.implementation=mamba_ssm": "precision=w8a8: allowed is none with model.implementation=mamba_ssm",
    "tracker.mode=live": "tracker.mode=live: allowed is one of offline, online, disabled",
    "device=tpu": "device=tpu: allowed is auto, cpu, cuda or cuda:INDEX",
    "device=cpu:1": "device=cpu:1: allowed is auto, cpu, cuda or cuda:INDEX",
    "ops=python": "ops=python: allowed is one of compiled, reference",
    "arm=placebo": "arm=placebo: allowed is one of null, baseline, control, treatment",
    "seed=-1": "seed=-1: allowed is a number not below 0",
    "tags=smoke": "tags=smoke: allowed is a list",
    "profiling=[memory] profiling.memory.lengths=[0]": "profiling.memory.lengths=0: allowed is a whole number above 0",
    "task=allocate task.unit=model": "task.unit=model: allowed is one of layer, block",
    "task=allocate task.widths=[w8a8,w5a8]": "task.widths=w5a8: allowed is one of w16a16",
    "task=allocate task.widths=[]": "task.widths=[]: allowed is a list of w16a16",
    "task=allocate task.outer=[w8a8]": "task.outer=w8a8: allowed is one of w16a16, w8a16, w4a16",
    "task=allocate task.windows=0": "task.windows=0: allowed is a whole number above 0",
    "task=allocate task.budget.bits=0": "task.budget.bits=0: allowed is a number above 0",
    "task=allocate task.budget.latency=0.5": "task.budget=bits: 5.0, latency: 0.5: allowed is exactly one of bits",
    "task=allocate task.budget.bits=null": "task.budget=null: allowed is exactly one of bits, bytes, latency",
    "task=allocate task.latency=guessed": "task.latency=guessed: allowed is one of bytes, measured",
    "task._target_=no.such.task": "task._target_=no.such.task: allowed is the dotted name of a function",
    "+precison=w8a8": "precison=w8a8: allowed is one of the keys",
    "+model.size=7": "model.size=7: allowed is one of the keys",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_mistake_is_one_sentence(composed: Compose, override: str) -> None:
    found = problems(composed(*override.split()))
    assert len(found) == 1, found
    assert MISTAKES[override] in found[0]
    assert "\n" not in found[0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_absent_gpu_is_refused(composed: Compose) -> None:
    assert problems(composed("device=cuda")) == [
        "device=cuda: allowed is a device that exists, and 0 GPUs are visible to torch. Use device=cpu."
    ]


def test_all_mistakes_are_told_together(composed: Compose) -> None:
    with pytest.raises(InvalidConfigError) as caught:
        validate(composed("ops=python", "seed=-1"))
    assert len(caught.value.sentences) == 2


TYPED = {
    "scale_mode=duel": ("scale_mode=duel: allowed is one of affine, control, dual", "Did you mean dual?"),
    "evaluation=[perplexty]": ("evaluation=perplexty: allowed is one of", "Did you mean perplexity?"),
    "sweeps=three_group": ("sweeps=three_group: allowed is one of", "Did you mean three_groups?"),
    "observer.percntile=99": ("observer.percntile=99: there is no such key", "Did you mean percentile?"),
    "scale_mod=dual": ("scale_mod=dual: there is no such key", "Did you mean scale_mode?"),
}


@pytest.mark.parametrize("override", TYPED)
def test_what_hydra_refuses_is_one_sentence(
    composed: Compose, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", override])
    with pytest.raises(HydraException) as caught:
        composed(override)
    (sentence,) = explain(caught.value)
    assert all(part in sentence for part in TYPED[override])
    assert "\n" not in sentence


def command(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WANDB_MODE": "offline"}
    line = [sys.executable, str(CONF.parent / "run.py"), *arguments]
    return subprocess.run(
        line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_multirun_refuses_before_the_first_job(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "debug=fast", "observer.percentile=99,40")
    assert done.returncode == 1
    assert "job 1 (" in done.stderr
    assert "observer.percentile=40: allowed is a number in (50, 100]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_flags_that_exclude_each_other_are_one_sentence(tmp_path: Path) -> None:
    done = command(tmp_path, "-m", "--cfg", "job")
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "leave -m out" in done.stderr
