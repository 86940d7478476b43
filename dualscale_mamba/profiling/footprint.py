"""What a model takes, computed from its sizes and the widths of its layers: formulas, no tensors.

Letters as in the modules of the mixers; V are the rows of the embedding. Everything is in bytes.
"""

from __future__ import annotations

from collections.abc import Callable

from dualscale_mamba.models.config import Mamba2Config, MambaConfig, ModelConfig
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.sites import EMBEDDING, HEAD

# fp32: norms, convolution, A, D, the bias of delta, scales of 8-bit weights, sums of codes.
FLOAT, HALF = 4, 2


# The grid of a layer by its name, or None where its weight stays in floating point.
Plan = Callable[[str], Grid | None]


def layer_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(N, K) of every matrix that has a width of its own, by layer name, in the order of the data flow."""
    D, V = config.d_model, config.vocab_size
    shapes = {EMBEDDING: (V, D)}
    for index in range(config.n_layer):
        shapes |= {f"layers.{index}.mixer.{name}": shape for name, shape in _projections(config).items()}
    return {**shapes, HEAD: (V, D)}


def _projections(config: ModelConfig) -> dict[str, tuple[int, int]]:
    D, E, N = config.d_model, config.d_inner, config.d_state
    if isinstance(config, MambaConfig):
        R = config.dt_rank
        return {"in_proj": (2 * E, D), "x_proj": (R + 2 * N, E), "dt_proj": (E, R), "out_proj": (D, E)}
    assert isinstance(config, Mamba2Config)
    return {"in_proj": (E + config.conv_channels + config.n_heads, D), "out_proj": (D, E)}


def matrix_bytes(shape: tuple[int, int], grid: Grid | None, itemsize: int, *, sums: bool = True) -> int:
    """A matrix (N, K): codes, scales and one sum of codes a row, or floating-point values.

    8 bits: N K + 4 N + 4 N. 4 bits: N K / 2 + 2 N ceil(K / group) + 4 N. Floating point: N K itemsize.

    Args:
        shape: (N, K).
        grid: Of the weight.
        itemsize: Bytes of a floating-point weight.
        sums: Whether the sums count.
    """
    rows, columns = shape
    if grid is None:
        return rows * columns * itemsize
    scale = FLOAT if grid.group_size is None else HALF * grid.groups(columns)
    return rows * columns * grid.bits // 8 + rows * (scale + FLOAT * sums)


def weight_parts(
    config: ModelConfig, plan: Plan, itemsize: int, *, rotation: int = 0, tied: bool = True
) -> dict[str, int]:
    """Stored weights by part.

    Args:
        config: Sizes.
        plan: Of the layers of :func:`layer_shapes`.
        itemsize: Bytes of a floating-point weight.
        rotation: Bytes of the Hadamard bases of all layers; 0 without a rotation.
        tied: Whether head and embedding are one storage.
    """
    shapes = layer_shapes(config)
    made = {name: matrix_bytes(shape, plan(name), itemsize) for name, shape in shapes.items()}
    embedding, head = made.pop(EMBEDDING), made.pop(HEAD)
    D, E, blocks = config.d_model, config.d_inner, config.n_layer
    channels = conv_channels(config)
    norms = D + (E if config.family == "mamba2" else 0)
    biases = (_projections(config)["in_proj"][0] + D) * itemsize if config.bias else 0
    return {
        "embedding": embedding if tied else embedding + head,
        "norms": FLOAT * (blocks * norms + D),
        "projections": sum(made.values()) + blocks * biases,
        "convolution": FLOAT * blocks * channels * (config.d_conv + int(config.conv_bias)),
        "ssm": FLOAT * blocks * _ssm_values(config),
        "rotation": rotation,
    }


def _ssm_values(config: ModelConfig) -> int:
    """A_log and A = -exp(A_log), which is kept; D and the bias of delta."""
    if isinstance(config, Mamba2Config):
        return 4 * config.n_heads
    return 2 * config.d_inner * config.d_state + 2 * config.d_inner


def conv_channels(config: ModelConfig) -> int:
    """Channels of the convolution: E of Mamba-1, E + 2GN of Mamba-2."""
    return config.conv_channels if isinstance(config, Mamba2Config) else config.d_inner


def state_bytes(config: ModelConfig, batch: int, conv_itemsize: int, ssm_itemsize: int = FLOAT) -> int:
    """States of a batch: (W - 1) C inputs of the convolution and E N values of h a layer; no length in it.

    Args:
        config: Sizes.
        batch: Sequences.
        conv_itemsize: Bytes of an input of the convolution: 1 where its site is int8.
        ssm_itemsize: Bytes of a value of h.
    """
    conv = (config.d_conv - 1) * conv_channels(config) * conv_itemsize
    return batch * config.n_layer * (conv + config.d_inner * config.d_state * ssm_itemsize)


def site_widths(config: ModelConfig) -> dict[str, int]:
    """Values a token and layer at each site of the family."""
    D, E = config.d_model, config.d_inner
    if isinstance(config, MambaConfig):
        R, N = config.dt_rank, config.d_state
        return {
            "in_proj_input": D, "conv_input": E, "z": E, "ssm_input": E, "dt_input": R, "delta": E, "B": N, "C": N,
            "out_proj_input": E,
        }  # fmt: skip
    assert isinstance(config, Mamba2Config)
    GN = config.n_groups * config.d_state
    return {
        "in_proj_input": D, "z": E, "conv_input": config.conv_channels, "x": E, "B": GN, "C": GN,
        "dt": config.n_heads, "out_proj_input": E,
    }  # fmt: skip
