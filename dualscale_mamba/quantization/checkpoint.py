"""A quantized model to a folder and back, bit for bit: what it holds, and how it is put together again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from dualscale_mamba.errors import CheckpointError, ConfigError
from dualscale_mamba.formats.base import FormatError
from dualscale_mamba.formats.stored import stored_code
from dualscale_mamba.models.config import DTYPES, ModelConfig, name_of_dtype
from dualscale_mamba.models.language_model import MambaLM
from dualscale_mamba.models.linear import Linear
from dualscale_mamba.models.mamba import MambaMixer
from dualscale_mamba.quantization.calibration import channels_of
from dualscale_mamba.quantization.manifest import CONFIG, WEIGHTS, Manifest
from dualscale_mamba.quantization.rotation import base_for
from dualscale_mamba.quantization.tensor_file import StoredTensor, read_header
from dualscale_mamba.quantization.weights import Grid
from dualscale_mamba.sites import GROUPED, short_name

HEAD, EMBEDDING, BACKBONE = "lm_head.", "backbone.embedding.", "backbone."
# Made of the weights at the first use.
DERIVED = "state_matrix"
STORED_TYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int8: "I8", torch.uint8: "U8", torch.int32: "I32",
}  # fmt: skip
NAMED = 6


def tensors_of(model: MambaLM) -> dict[str, Tensor]:
    """Everything that decides a converted model's logits, on the CPU; what a tied head shares stands there once.

    Args:
        model: Converted; its sites have their codes.
    """
    held = {**dict(model.named_parameters(remove_duplicate=False)), **_buffers(model)}
    kept = {name: tensor for name, tensor in held.items() if tensor.numel()}
    if is_tied(model):
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(HEAD)}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in kept.items()}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    found = model.named_buffers(remove_duplicate=False)
    return {name: tensor for name, tensor in found if not name.endswith(DERIVED)}


def is_tied(model: MambaLM) -> bool:
    """Whether the head is the embedding's very tensors."""
    head, embedding = model.lm_head, model.backbone.embedding
    if head.grid != embedding.grid:
        return False
    pairs = [(head.weight, embedding.weight)]
    if head.is_quantized:
        pairs = [(getattr(head, name), getattr(embedding, name)) for name in ("weight_codes", "weight_scale")]
    return all(a.data_ptr() == b.data_ptr() for a, b in pairs)


def description(
    model: MambaLM, widths: Mapping[str, str], rows: list[dict[str, Any]], rotates_residual: bool = False
) -> dict[str, Any]:
    """The part of the manifest that says how the tensors are to be read.

    Args:
        model: Converted.
        widths: Word for the width of each layer, e.g. ``w4a8``.
        rows: Of the quantization report: what was chosen at each site.
        rotates_residual: Whether the residual stream was rotated, which the weights alone do not tell.

    Raises:
        ConfigError: A site's code is only simulated.
    """
    if any(site.code is not None and not site.code.is_stored for site in model.sites().values()):
        raise ConfigError("scale_mode", "a simulated code", "an eight-bit format where save is set")
    facts = {str(row["name"]): {k: v for k, v in row.items() if k != "name"} for row in rows}
    mixers = [block.mixer for block in model.blocks()]
    readers = {mixer.x_proj_reads for mixer in mixers if isinstance(mixer, MambaMixer)}
    return {
        "family": model.config.family,
        "dtype": name_of_dtype(model.dtype),
        "residual_dtype": name_of_dtype(model.residual_dtype),
        "state_dtype": name_of_dtype(model.state_dtype),
        "tied": is_tied(model),
        "rotations": {"out_proj_input": mixers[0].rotation is not None, "residual": rotates_residual},
        "x_proj_reads": next(iter(readers), ""),
        "states": [mixer.state_store.facts() for mixer in mixers if mixer.state_store.is_on],
        "layers": {name: _layer(layer, widths[name]) for name, layer in model.weight_layers().items()},
        "sites": {
            name: {
                **site.code.facts(),
                "per_token": site.per_token,
                **facts.get(name, {}),
            }
            for name, site in model.sites().items()
            if site.code is not None
        },
    }


def _layer(layer: Any, width: str) -> dict[str, Any]:
    grid: Grid | None = layer.grid
    made: dict[str, Any] = {"width": width, "bits": None if grid is None else grid.bits}
    if grid is not None:
        made["group_size"] = grid.group_size
    if isinstance(layer, Linear):
        made["decodes"] = layer.decodes
    return made


def report_rows(manifest: Manifest) -> list[dict[str, Any]]:
    """What was chosen at each site, as the report of the run that quantized the model had it."""
    hidden = ("has_knee", "per_token", "capacity")
    return [
        {"name": name, **{key: value for key, value in facts.items() if key not in hidden}}
        for name, facts in manifest["sites"].items()
    ]


def restore(manifest: Manifest, config: ModelConfig, device: torch.device | str = "cpu") -> MambaLM:
    """The model of a checkpoint, as it was when it was saved.

    Args:
        manifest: Read from its folder.
        config: Sizes, from the same ``config.json``.
        device: Where the model shall lie.

    Raises:
        CheckpointError: The weights are damaged, or are not those that the manifest describes.
    """
    if config.family != manifest["family"]:
        raise CheckpointError(
            f"{manifest.folder / CONFIG} describes a {config.family} model, but its quantization_config one of"
            f" {manifest['family']}; they do not belong together"
        )
    model = _empty(manifest, config)
    expected = _expected(model, manifest)
    _check_fit(expected, read_header(manifest.folder / WEIGHTS), manifest)
    manifest.check_tensors()
    tensors = _read(manifest)
    _fill(model, tensors, bool(manifest["tied"]))
    _set_sites(model, manifest, tensors)
    model.to(device)
    if manifest["tied"]:
        model.tie()
    return model.eval()


def _empty(manifest: Manifest, config: ModelConfig) -> MambaLM:
    """The model without values, its layers on their grids."""
    types = (DTYPES[manifest[name]] for name in ("dtype", "residual_dtype", "state_dtype"))
    try:
        with torch.device("meta"):
            model = MambaLM(config, *types)
            for name, layer in model.weight_layers().items():
                facts = manifest["layers"][name]
                if facts["bits"] is not None:
                    layer.reserve(Grid(facts["bits"], facts["group_size"]))
                if isinstance(layer, Linear):
                    layer.decodes = facts["decodes"]
        if manifest["rotations"]["out_proj_input"]:
            for block in model.blocks():
                block.mixer.rotation = base_for(block.mixer.out_proj.in_features).to("meta")
        for index, facts in enumerate(manifest.states):
            model.blocks()[index].mixer.state_store.reserve(facts, index)
    except (KeyError, IndexError, TypeError, ConfigError) as error:
        raise CheckpointError(f"{manifest.folder / CONFIG} describes no model: {error}") from error
    for block in model.blocks():
        if isinstance(block.mixer, MambaMixer):
            block.mixer.x_proj_reads = manifest["x_proj_reads"]
    return model


def _expected(model: MambaLM, manifest: Manifest) -> dict[str, Tensor]:
    """Tensors that the file must have, but for the code rows of the sites."""
    held = {**dict(model.named_parameters(remove_duplicate=False)), **_buffers(model)}
    kept = {name: tensor for name, tensor in held.items() if tensor.numel()}
    if manifest["tied"]:
        kept = {name: tensor for name, tensor in kept.items() if not name.startswith(HEAD)}
    return kept


def _check_fit(expected: Mapping[str, Tensor], found: Mapping[str, StoredTensor], manifest: Manifest) -> None:
    """Compare names, types and shapes; the sites' rows are looked at when they become codes."""
    rows = {f"{BACKBONE}{site}.rows" for site in manifest["sites"]}
    missing = sorted((expected.keys() | rows) - found.keys())
    extra = sorted(found.keys() - expected.keys() - rows)
    faults = [f"missing {_few(missing)}"] if missing else []
    faults += [f"unexpected {_few(extra)}"] if extra else []
    for name in sorted(expected.keys() & found.keys()):
        want = (STORED_TYPES[expected[name].dtype], tuple(expected[name].shape))
        have = (found[name].dtype, found[name].shape)
        if want != have:
            faults.append(f"{name} is {have[0]} {have[1]}, {CONFIG} asks for {want[0]} {want[1]}")
    if faults:
        raise CheckpointError(
            f"{manifest.folder / WEIGHTS} does not fit {CONFIG}: {'; '.join(faults[:NAMED])}. Check that both"
            " files belong to the same checkpoint"
        )


def _few(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _read(manifest: Manifest) -> dict[str, Tensor]:
    path = manifest.folder / WEIGHTS
    try:
        with safe_open(str(path), framework="pt") as file:
            # Copies: a matrix product may round otherwise where its operands are not aligned as torch aligns them.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - no iterator
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); copy or download it again") from error


def _fill(model: MambaLM, tensors: Mapping[str, Tensor], is_tied: bool) -> None:
    """Put the tensors in the places that have been reserved."""
    for layer in model.weight_layers().values():
        if layer.is_quantized:  # what is left of the floating-point weight names its type and device
            layer.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)
    state = {name: tensors.get(name, tensor) for name, tensor in model.state_dict().items()}
    if is_tied:
        of_head = [name for name in state if name.startswith(HEAD)]
        state |= {name: state[f"{EMBEDDING}{name.removeprefix(HEAD)}"] for name in of_head}
    model.load_state_dict(state, assign=True)
    for index, block in enumerate(model.blocks()):
        if block.mixer.rotation is not None:
            block.mixer.rotation = tensors[f"{BACKBONE}layers.{index}.mixer.rotation"]


def _set_sites(model: MambaLM, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Turn the sites on with their codes."""
    sites = model.sites()
    for name, facts in manifest["sites"].items():
        rows = tensors[f"{BACKBONE}{name}.rows"]
        try:
            code = stored_code(rows, facts)
            channels = channels_of(model, short_name(name))
            if code.groups != 1 and (
                short_name(name) not in GROUPED[model.config.family] or code.groups != channels
            ):
                raise FormatError(f"it has {code.groups} rows")
            sites[name].set_code(code, per_token=bool(facts["per_token"]))
        except (KeyError, FormatError) as error:
            raise CheckpointError(
                f"{manifest.folder / WEIGHTS}: the code of site {name} is none that {CONFIG} describes ({error})"
            ) from error
