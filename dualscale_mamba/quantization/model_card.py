"""The model card of a quantized checkpoint: what it is, how to load it, what was measured."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualscale_mamba.quantization.manifest import Manifest

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def card(manifest: Manifest, result: Mapping[str, Any]) -> str:
    """The text of ``README.md``.

    Args:
        manifest: Of the checkpoint.
        result: Content of the ``result.json`` of the run that made it.
    """
    name, origin = manifest.folder.name, manifest["provenance"]
    choices, source = manifest["choices"], _source(str(origin["source"]))
    parts = [
        _header(manifest),
        f"# {name}\n",
        f"A {_family(manifest)} language model, quantized by dualscale_mamba {manifest['package_version']} from"
        f" `{source}`{_revision(origin)}: precision `{choices.get('precision')}`, scale mode"
        f" `{choices.get('scale_mode')}`, rounding `{choices.get('rounding')}`. Nothing else reads this format.\n",
        "## Use\n",
        "FOLDER is where this lies. No calibration takes place; the logits are those of the run that saved it.\n",
        "```bash\npython run.py model=FOLDER\n"
        'python run.py model=FOLDER task=generate task.prompt="The old house"\n'
        "dualscale-mamba inspect FOLDER\n```\n",
        "## Inside\n",
        _widths(manifest),
        "## Measured\n",
        _measured(result, str(origin["date"])),
        "## Licence\n",
        f"These are the weights of `{source}`, rounded: the licence of that model holds for them. This card"
        " names none; add `license:` to its header before you publish it.\n",
    ]
    return "\n".join(parts)


def _source(source: str) -> str:
    """What the source is called: a folder by its name, for where it lies is nobody's concern."""
    is_folder = Path(source).expanduser().is_dir()
    return Path(source).name if is_folder else source


def _family(manifest: Manifest) -> str:
    return {"mamba1": "Mamba", "mamba2": "Mamba-2"}[manifest["family"]]


def _revision(origin: Mapping[str, Any]) -> str:
    return f" (revision `{origin['revision']}`)" if origin.get("revision") else ""


def _header(manifest: Manifest) -> str:
    source = str(manifest["provenance"]["source"])
    is_published = _HUB_ID.fullmatch(source) and _source(source) == source
    base = [f"base_model: {source}"] if is_published else []
    lines = ["library_name: dualscale_mamba", *base, "tags:", "- mamba", "- quantized"]
    return "---\n" + "\n".join(lines) + "\n---\n"


def _widths(manifest: Manifest) -> str:
    """One row for each kind of layer and width."""
    counted = Counter(
        (name.rpartition(".")[2], facts["width"], facts.get("group_size"))
        for name, facts in manifest["layers"].items()
    )
    rows = [f"| {kind} | {width} | {group or ''} | {n} |" for (kind, width, group), n in counted.items()]
    return "\n".join(["| layer | width | group size | count |", "|---|---|---:|---:|", *rows, ""])


def _measured(result: Mapping[str, Any], date: str) -> str:
    """The metrics of the run, and where they were measured."""
    machine = result.get("environment", {})
    hardware = machine.get("gpu") or f"{machine.get('cpu')}, {machine.get('threads')} threads"
    rows = [
        f"| {name} | {_number(metric.get('value'))} | {metric.get('unit', '')} |"
        for name, metric in result.get("metrics", {}).items()
    ]
    if not rows:
        return "Nothing was measured by the run that saved this.\n"
    table = ["| metric | value | unit |", "|---|---:|---|", *rows, ""]
    told = f"By the run that saved this, on {hardware}, torch {machine.get('torch')}, {date[:10]}; its settings and"
    return f"{told} all facts are in `result.json`.\n\n" + "\n".join(table)


def _number(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
