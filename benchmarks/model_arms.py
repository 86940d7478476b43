"""The implementations of a whole model that benchmarks/models.py times."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.models.graphs import GraphedLM, graphed
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.profiling.memory import stored_tensors


@dataclass
class Arm:
    """One implementation: ``prefill`` gives a cache, ``step`` makes one token (B,) of another with it.

    ``following`` are milliseconds of a token that is waited for, ``streamed`` of one among others.
    """

    name: str
    prefill: Callable[[Tensor], Any]
    step: Callable[[Tensor, Any], Tensor]
    bytes: int
    ops: str = "compiled"
    graphs: bool = False
    first: list[float] = field(default_factory=list)
    following: list[float] = field(default_factory=list)
    streamed: list[float] = field(default_factory=list)


def plain_arm(name: str, model: Any, size: int, implementation: str = "compiled") -> Arm:
    """An arm that launches every kernel."""

    def prefill(prompt: Tensor) -> Any:
        cache = model.allocate_cache(len(prompt))
        model(prompt, cache=cache, last_only=True).argmax(-1)
        return cache

    return Arm(name, prefill, lambda token, cache: model.step(token, cache).argmax(-1), size, implementation)


def own_arm(name: str, model: MambaLM, graphs: bool, implementation: str = "compiled") -> Arm:
    """An arm of this package; graphs of a size are captured by its first round, which is not counted."""
    size = sum(tensor.nbytes for _, tensor in stored_tensors(model))
    fast, _ = graphed(model, graphs, limit=2)  # the step and the prefill of one size
    if not isinstance(fast, GraphedLM):
        return plain_arm(name, model, size, implementation)

    def prefill(prompt: Tensor) -> Any:
        fast.prepare(*prompt.shape)
        cache = fast.allocate_cache(len(prompt))
        fast(prompt, cache, last_only=True).argmax(-1)
        return cache

    return Arm(name, prefill, fast.greedy_step, size, implementation, graphs=True)


def transformers_arm(config: ModelConfig, device: torch.device, dtype: torch.dtype) -> Arm:
    """That library's model; it takes the official kernels where they are installed, and PyTorch's operators else."""
    from transformers import Mamba2Config as Second
    from transformers import Mamba2ForCausalLM, MambaForCausalLM
    from transformers import MambaConfig as First

    shared = {
        "hidden_size": config.d_model, "num_hidden_layers": config.n_layer, "vocab_size": config.vocab_size,
        "state_size": config.d_state, "conv_kernel": config.d_conv, "expand": config.expand,
        "tie_word_embeddings": config.tie_embeddings,
    }  # fmt: skip
    with torch.device(device):
        if isinstance(config, MambaConfig):
            model: Any = MambaForCausalLM(First(**shared, time_step_rank=config.dt_rank))
        else:
            assert isinstance(config, Mamba2Config)
            own = {
                "num_heads": config.n_heads, "head_dim": config.head_dim, "n_groups": config.n_groups,
                "chunk_size": config.chunk_size,
            }  # fmt: skip
            model = Mamba2ForCausalLM(Second(**shared, **own))
    model = model.to(dtype).eval()

    def prefill(prompt: Tensor) -> Any:
        output = model(prompt, use_cache=True, logits_to_keep=1)
        output.logits.argmax(-1)
        return output.cache_params

    def step(token: Tensor, cache: Any) -> Tensor:
        made: Tensor = model(token[:, None], cache_params=cache, use_cache=True).logits[:, -1].argmax(-1)
        return made

    return Arm("transformers", prefill, step, sum(p.nbytes for p in model.parameters()))


def official_arm(
    config: ModelConfig, weights: dict[str, Tensor], dtype: torch.dtype, tokens: int, graphs: bool
) -> Arm:
    """The models of ``mamba_ssm``; with graphs, a step as that package's own decoding replays it.

    Args:
        config: Sizes.
        weights: By this package's names, on a GPU.
        dtype: Of the model.
        tokens: That may follow a prompt.
        graphs: Whether to use them.
    """
    from dualscale_mamba.models.official import OfficialLM

    device = next(iter(weights.values())).device
    typed = {name: value.to(dtype) for name, value in weights.items()}
    model = OfficialLM(config, typed, dtype, torch.float32, device)
    size = sum(p.nbytes for p in model.parameters())
    if not graphs:
        return plain_arm("mamba_ssm", model, size)
    from mamba_ssm.utils.generation import update_graph_cache

    made: dict[int, Any] = {}  # of one batch size: states of another do not serve

    def prefill(prompt: Tensor) -> Any:
        batch, length = prompt.shape
        most = length + tokens
        if batch not in made:
            made.clear()
            made[batch] = update_graph_cache(model.lm, None, batch, length, most)
        parameters = made[batch].inference_params
        parameters.reset(most, batch)
        model.lm(prompt, inference_params=parameters, num_last_tokens=1).logits.argmax(-1)
        parameters.seqlen_offset = length
        return made[batch]

    def step(token: Tensor, graph: Any) -> Tensor:
        place = graph.inference_params.seqlen_offset
        positions = torch.full((len(token), 1), place, dtype=torch.int64, device=device)
        token = graph.run(token[:, None], positions, place)[:, -1].argmax(-1)
        graph.inference_params.seqlen_offset += 1
        return token

    return Arm("mamba_ssm", prefill, step, size, graphs=True)
