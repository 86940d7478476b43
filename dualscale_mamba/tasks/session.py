"""What every task begins with: seeds, device, model, calibration tokens."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from dualscale_mamba import ops
from dualscale_mamba.configuration import instantiate
from dualscale_mamba.data.batches import token_batches, tokens_hash
from dualscale_mamba.data.text import documents
from dualscale_mamba.environment import cpu_model, kernel_hash, numerics_hash
from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.evaluation.reference import Reference
from dualscale_mamba.models.config import dtype_from_name
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.pretrained import Pretrained, load_pretrained, manifest_of
from dualscale_mamba.quantization.calibration import Calibration, calibration_key
from dualscale_mamba.quantization.pipeline import (
    QuantizationReport,
    plan_of,
    prepare,
    prepare_and_calibrate,
    quantize_weights,
    rounding_key,
    turn_on,
)
from dualscale_mamba.quantization.recipe import Recipe
from dualscale_mamba.states.calibration import StateRow, encode_states
from dualscale_mamba.states.format import StateFormat, UnquantizedState
from dualscale_mamba.tasks.checkpoints import check_settings, load_original, saved_report
from dualscale_mamba.tasks.record import stage as record_stage

logger = logging.getLogger(__name__)


@dataclass
class Session:
    """A loaded model, and what has been learned on the way.

    Attributes:
        config: The whole configuration.
        device: Where everything runs.
        pretrained: Model, tokenizer and hash; the model is quantized in place by :meth:`quantize`.
        recipe: How it is quantized.
        seconds: Time of each stage.
        hashes: Of weights, kernels and tokens.
        reference: What the model as loaded says, for comparisons.
        calibration: Counted values of every site, where there was a calibration.
        states: How the state of each layer is coded between steps; empty where it is not.
    """

    config: DictConfig
    device: torch.device
    pretrained: Pretrained
    recipe: Recipe
    seconds: dict[str, float] = field(default_factory=dict)
    hashes: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None
    calibration: Calibration | None = None
    states: list[StateRow] = field(default_factory=list)
    _batches: list[Tensor] | None = field(default=None, repr=False)

    @property
    def model(self) -> Any:
        """The model under test."""
        return self.pretrained.model

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the seconds of a stage, and in the run's status that it has begun."""
        record_stage(stage)
        began = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - began, 4)

    @property
    def quantizes(self) -> bool:
        """Whether the recipe changes the model at all."""
        recipe = self.recipe
        rotates = recipe.rotate or recipe.rotate_residual
        return recipe.quantizes_activations or recipe.quantizes_weights or rotates or self.state_format.is_on

    @property
    def state_format(self) -> StateFormat | UnquantizedState:
        """How the state is kept between steps."""
        return instantiate.state(self.config)

    @property
    def numerics(self) -> list[str]:
        """What decides the values inside the unquantized model, besides the tokens."""
        types = [str(self.model.dtype), str(self.model.residual_dtype)]
        sources = [str(self.hashes["kernels"]), numerics_hash()]
        return [self.hashes["weights"], *sources, *types, self.device.type, str(self.config.ops)]

    def calibration_batches(self) -> list[Tensor]:
        """Token ids (batch, length) of the calibration set."""
        if self._batches is None:
            self._batches = self._read_batches()
        return self._batches

    def _read_batches(self) -> list[Tensor]:
        settings = self.config.calibration
        docs = documents(settings.source, instantiate.data_root(self.config))
        sizes = {key: settings[key] for key in ("samples", "length", "batch_size", "seed")}
        try:
            windows = token_batches(self.pretrained.tokenizer, docs, **sizes)
        except ConfigError as error:  # the text is too short for it: say which text and which key
            raise ConfigError(f"calibration.{error.key}", error.value, error.allowed) from None
        self.hashes["calibration_tokens"] = tokens_hash(windows)
        return [window[:, :-1] for window in windows]

    @property
    def cache(self) -> Path | None:
        """Where statistics and rounded weights are kept; None where they shall not be."""
        return Path(self.config.paths.cache).expanduser() if self.config.calibration.cache else None

    def calibrate(self) -> Calibration:
        """Prepare the model and count every site's values, or read the counts of an equal run."""
        with self.timed("calibrate"):
            batches = self.calibration_batches()
            key = calibration_key([self.hashes["calibration_tokens"], *self.numerics], self.recipe)
            self.calibration = prepare_and_calibrate(self.model, batches, self.recipe, self.cache, key)
        return self.calibration

    def quantize(self) -> QuantizationReport:
        """Calibrate and convert in place; the model as it was is loaded again when its logits are needed.

        A model that was saved quantized is left as it is.
        """
        if self.pretrained.manifest is not None:
            self.reference = self.make_reference()
            return saved_report(self.model, self.pretrained.manifest)
        if not self.quantizes:
            self.reference = Reference.live(self.model)
            is_native = isinstance(self.model, MambaLM)
            return turn_on(self.model, Calibration({}, 0), self.recipe) if is_native else QuantizationReport()
        self.reference = self.make_reference()
        if self.recipe.quantizes_activations:
            calibration = self.calibrate()
        else:
            prepare(self.model, self.recipe)
            calibration = Calibration({}, 0)
        with self.timed("gptq" if self.reads_inputs else "round"):
            self._round_weights(calibration)
        with self.timed("convert"):
            report = turn_on(self.model, calibration, self.recipe)
        self._encode_states()
        return report

    def _encode_states(self) -> None:
        """Keep the state between steps as the configuration says: the last change, for it is calibrated by steps."""
        format_ = self.state_format
        if isinstance(format_, StateFormat):
            with self.timed("states"):
                batches = self.calibration_batches() if format_.needs_calibration else []
                self.states = encode_states(self.model, format_, batches)

    @property
    def reads_inputs(self) -> bool:
        """Whether the weights are rounded by the inputs of their layers."""
        return self.recipe.rounding.needs_inputs and self.recipe.quantizes_weights

    def _round_weights(self, calibration: Calibration) -> None:
        if not self.reads_inputs:
            quantize_weights(self.model, self.recipe)
            return
        batches = self.calibration_batches()
        parts = [self.hashes["calibration_tokens"], *self.numerics]
        key = rounding_key(parts, self.model, self.recipe, calibration.arrangement)
        quantize_weights(self.model, self.recipe, batches, self.cache, key)

    def make_reference(self) -> Reference:
        """What the model as loaded says: kept on disk, or asked of the model loaded again."""
        model, limit = self.model, float(self.config.evaluation_cache_gib)
        is_gpu = self.device.type == "cuda"
        cpu = f"{cpu_model()}, {torch.get_num_threads()} threads"
        machine = torch.cuda.get_device_name(self.device) if is_gpu else cpu
        return Reference(
            self.load_again,
            cache=Path(self.config.paths.cache).expanduser() if limit > 0 else None,
            limit_gib=limit,
            bytes_per_token=model.config.vocab_size * model.dtype.itemsize,
            # The machine too: another one rounds otherwise, and a comparison must be that with the model itself.
            facts=[*self.numerics, torch.__version__, machine, str(self.config.model.state_dtype)],
            device=self.device,
        )

    def load_again(self) -> Any:
        """The model as it was before it was quantized."""
        # Whether it is loaded must not change what is random afterwards.
        manifest = self.pretrained.manifest
        with torch.random.fork_rng(devices=[]):
            if manifest is not None:
                return load_original(manifest, self.config.model.get("reference"), self.device).model
            again = load_model(self.config, self.device)
        if again.weights_hash != self.hashes["weights"]:
            raise CheckpointError(f"{again.source} has changed since this run has begun; start it again")
        return again.model


def load_model(config: DictConfig, device: torch.device) -> Pretrained:
    """The model that the configuration names."""
    settings = config.model
    manifest = manifest_of(settings.source, settings.revision)
    if manifest is not None:
        check_settings(config, manifest)
    is_free = manifest is not None and settings.dtype == "auto"
    return load_pretrained(
        settings.source,
        revision=settings.revision,
        dtype=None if is_free else dtype_from_name(settings.dtype, device),
        residual_dtype=dtype_from_name(settings.residual_dtype, device, "model.residual_dtype"),
        device=device,
        implementation=settings.implementation,
        seed=int(config.seed),
        family=settings.family,
        state_dtype=dtype_from_name(settings.state_dtype, device, "model.state_dtype"),
    )


@contextmanager
def open_session(config: DictConfig) -> Iterator[Session]:
    """Seed everything, choose the operators and load the model; release the device's memory at the end."""
    device = device_of(str(config.device))
    seed_everything(int(config.seed))
    if device.type == "cuda":
        torch.zeros(1, device=device)  # the counters do not exist before the first use of CUDA
        torch.cuda.reset_peak_memory_stats(device)
    record_stage("load")
    began = time.perf_counter()
    with ops.implementation(config.ops):
        pretrained = load_model(config, device)
        session = Session(config, device, pretrained, instantiate.recipe(config))
        session.seconds["load"] = round(time.perf_counter() - began, 4)
        session.hashes = {"weights": pretrained.weights_hash, "kernels": kernel_hash()}
        if pretrained.manifest is not None:
            tokens = pretrained.manifest["provenance"]["calibration_tokens"]
            session.hashes |= {"calibration_tokens": tokens, "checkpoint": pretrained.manifest.identity}
        if isinstance(pretrained.model, MambaLM):
            plan_of(pretrained.model, session.recipe)  # refuse what does not fit before anything is computed
        try:
            yield session
        finally:
            if device.type == "cuda":
                torch.cuda.empty_cache()


def device_of(name: str) -> torch.device:
    """``auto`` is a GPU if there is one; other names are torch's."""
    if name == "auto":
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    device = torch.device(name)
    return torch.device("cuda", 0) if device.type == "cuda" and device.index is None else device


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
