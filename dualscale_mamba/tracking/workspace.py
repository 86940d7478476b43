"""A W&B workspace and a report that compare the arms of a study, built by code.

``wandb-workspaces`` is a preview: all that this package asks of it is in this file.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.sites import is_ssm_input, short_name
from dualscale_mamba.tracking.wandb import has_key

ARM, SCALE_MODE, PERCENTILE = "arm", "choices.scale_mode", "observer.percentile"
SETTINGS = {
    PERCENTILE: "percentile",
    "scale_mode.fine_codes": "fine codes",
    "choices.granularity": "granularity",
}
MAX_RUNS = 100
ALL = "all runs"


@dataclass(frozen=True)
class Shown:
    """Names of the metrics and sites that the panels show.

    Attributes:
        accuracy: Metrics for which more is better.
        divergence: KL to the unquantized model.
        latency: Milliseconds.
        sites: Whose curves are drawn over the layers.
    """

    accuracy: tuple[str, ...] = ("minimal_pairs/acc",)
    divergence: tuple[str, ...] = ("divergence/generated_heldout/kl",)
    latency: tuple[str, ...] = ("latency/tpot/batch_1_prompt_128/p50", "latency/ttft/batch_1_prompt_128/p50")
    sites: tuple[str, ...] = ("ssm_input",)

    @classmethod
    def of(cls, results: Iterable[Mapping[str, Any]]) -> Shown:
        """What finished runs have, from their ``result.json``; the usual names where they have none."""
        loaded = list(results)
        names = list(dict.fromkeys(name for result in loaded for name in result["metrics"]))
        sites = dict.fromkeys(short_name(str(site["name"])) for result in loaded for site in result["sites"])
        found = {
            "accuracy": [name for name in names if name.endswith("/acc") and name.count("/") == 1],
            "divergence": [name for name in names if name.endswith("/kl")],
            "latency": [name for name in names if name.startswith("latency/") and name.endswith("/p50")],
            "sites": [site for site in sites if is_ssm_input(site)],
        }
        return cls(**{key: tuple(values) for key, values in found.items() if values})


def build_workspace(entity: str, project: str, group: str | None, shown: Shown | None = None) -> Any:
    """A workspace of the runs of one group or of all, grouped by arm and scale mode; nothing is sent.

    Args:
        entity: User or team.
        project: W&B project.
        group: The runs' group; None for all runs of the project.
        shown: What the panels show.

    Returns:
        ``wandb_workspaces.workspaces.Workspace``.

    Raises:
        ConfigError: The package is missing.
    """
    _require()
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=name, panels=panels, is_open=True)
        for name, panels in _panels(shown or Shown()).items()
    ]
    runs = ws.RunsetSettings(
        filters=[] if group is None else [ws.Metric("Group") == group],
        groupby=[ws.Config(ARM), ws.Config(SCALE_MODE)],
    )
    settings = ws.WorkspaceSettings(max_runs=MAX_RUNS)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=sections,
        runset_settings=runs,
        settings=settings,
    )


def build_report(entity: str, project: str, group: str | None, shown: Shown | None = None) -> Any:
    """A report with the panels of :func:`build_workspace` under one heading each; nothing is sent.

    Returns:
        ``wandb_workspaces.reports.v2.Report``.

    Raises:
        ConfigError: The package is missing.
    """
    _require()
    import wandb_workspaces.reports.v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for name, panels in _panels(shown or Shown()).items():
        runs = wr.Runset(
            entity=entity,
            project=project,
            name=group or ALL,
            filters="" if group is None else f"Metric('Group') = {group!r}",
            groupby=[f"config.{ARM}", f"config.{SCALE_MODE}"],
        )
        blocks += [wr.H2(name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project=project,
        entity=entity,
        title=_title(group),
        description="Arms of one study. The results of the statistical tests are in the study's report.html.",
        blocks=blocks,
        width="fluid",
    )


def publish(
    entity: str | None, project: str, group: str | None, shown: Shown | None = None
) -> tuple[str, str]:
    """Save both on the server.

    Args:
        entity: User or team; None for the account's own.
        project: W&B project.
        group: The runs' group; None for all runs of the project.
        shown: What the panels show.

    Returns:
        Addresses of the workspace and of the report.

    Raises:
        ConfigError: The package or the key is missing.
        Exception: Whatever the client raises where the server refuses or does not answer.
    """
    _require()
    if not has_key():
        raise ConfigError(
            "dashboard", group, "a group on a W&B server for which a key is known", "Type: wandb login"
        )
    import wandb

    owner = entity or str(wandb.Api().default_entity)
    workspace = build_workspace(owner, project, group, shown).save()
    report = build_report(owner, project, group, shown).save()
    return str(workspace.url), str(report.url)


def _title(group: str | None) -> str:
    return f"{group or ALL}: arms compared"


def _require() -> None:
    if importlib.util.find_spec("wandb_workspaces") is None:
        hint = "Type: pip install 'dualscale_mamba[dashboard]'"
        raise ConfigError("dashboard", "wandb", "available with the package wandb-workspaces", hint)


def _panels(shown: Shown) -> dict[str, list[Any]]:
    """Panels by section; each call makes new ones, because a panel belongs to one place."""
    import wandb_workspaces.reports.v2 as wr

    def bars(metrics: Iterable[str], group: str) -> list[Any]:
        made = {"groupby": wr.Config(group), "groupby_aggfunc": "mean", "groupby_rangefunc": "stderr"}
        return [wr.BarPlot(title=name, metrics=[name], orientation="v", **made) for name in metrics]

    return {
        "Accuracy by arm": bars(shown.accuracy, ARM),
        "KL by scale mode": bars(shown.divergence, SCALE_MODE),
        "Latency by arm": bars(shown.latency, ARM),
        "Accuracy against latency": [
            wr.ScatterPlot(
                title=f"{metric} against {shown.latency[0]}",
                x=wr.SummaryMetric(shown.latency[0]),
                y=wr.SummaryMetric(metric),
            )
            for metric in shown.accuracy
        ],
        "SQNR by layer": [
            wr.LinePlot(title=f"{site}: {key}", x="layer", y=[f"layer/{site}/{key}"], title_x="layer")
            for site in shown.sites
            for key in ("sqnr_db", "threshold", "outlier_share", "codes_used")
        ],
        "Settings and results": [_parallel(shown)],
    }


def _parallel(shown: Shown) -> Any:
    import wandb_workspaces.reports.v2 as wr

    columns = [
        wr.ParallelCoordinatesPlotColumn(metric=wr.Config(key), display_name=name)
        for key, name in SETTINGS.items()
    ]
    results = (*shown.divergence[:1], *shown.accuracy[:1], *shown.latency[:1])
    columns += [wr.ParallelCoordinatesPlotColumn(metric=wr.SummaryMetric(name)) for name in results]
    return wr.ParallelCoordinatesPlot(title="percentile, fine codes, granularity", columns=columns)
