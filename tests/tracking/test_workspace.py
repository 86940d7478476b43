"""The saved dashboard holds the right panels, metrics and filters; no network."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tracked import METRICS, RESULT

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.tracking.workspace import Shown, build_report, build_workspace, publish

SHOWN = Shown(("minimal_pairs/acc",), ("divergence/x/kl",), ("latency/tpot/p50",), ("ssm_input",))
SECTIONS = [
    "Accuracy by arm",
    "KL by scale mode",
    "Latency by arm",
    "Accuracy against latency",
    "SQNR by layer",
    "Settings and results",
]
needs_workspaces = pytest.mark.skipif(
    not importlib.util.find_spec("wandb_workspaces"), reason="needs wandb-workspaces"
)


def dumped(made: Any) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(made._to_model().model_dump_json(by_alias=True, exclude_none=True))
    return loaded


def of_type(panels: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [panel["config"] for panel in panels if panel["viewType"] == kind]


def check_panels(sections: dict[str, list[dict[str, Any]]]) -> None:
    """The panels of every section show what its name says."""
    assert list(sections) == SECTIONS
    (accuracy,) = of_type(sections["Accuracy by arm"], "Bar Chart")
    assert (accuracy["metrics"], accuracy["groupBy"]) == (["minimal_pairs/acc"], "arm.value")
    (divergence,) = of_type(sections["KL by scale mode"], "Bar Chart")
    assert (divergence["metrics"], divergence["groupBy"]) == (["divergence/x/kl"], "choices.value.scale_mode")
    (latency,) = of_type(sections["Latency by arm"], "Bar Chart")
    assert (latency["metrics"], latency["groupBy"]) == (["latency/tpot/p50"], "arm.value")
    (scatter,) = of_type(sections["Accuracy against latency"], "Scatter Plot")
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:latency/tpot/p50", "summary:minimal_pairs/acc")
    lines = of_type(sections["SQNR by layer"], "Run History Line Plot")
    assert next(line["metrics"] for line in lines) == ["layer/ssm_input/sqnr_db"]
    assert {line["xAxis"] for line in lines} == {"layer"}
    (parallel,) = of_type(sections["Settings and results"], "Parallel Coordinates Plot")
    accessors = [column["accessor"] for column in parallel["columns"]]
    assert accessors[:3] == [
        "config:observer.value.percentile",
        "config:scale_mode.value.fine_codes",
        "config:choices.value.granularity",
    ]
    assert set(accessors[3:]) == {
        "summary:divergence/x/kl",
        "summary:minimal_pairs/acc",
        "summary:latency/tpot/p50",
    }


def check_runs(runs: dict[str, Any]) -> None:
    assert "'name': 'group'" in str(runs["filters"])
    assert "'value': 'study'" in str(runs["filters"])
    assert [key["name"] for key in runs["grouping"]] == ["arm.value", "choices.value.scale_mode"]


@needs_workspaces
def test_workspace_has_its_sections_filter_and_groups() -> None:
    made = dumped(build_workspace("team", "demo", "study", SHOWN))
    section = made["spec"]["section"]
    check_panels({part["name"]: part["panels"] for part in section["panelBankConfig"]["sections"]})
    (runs,) = section["runSets"]
    check_runs(runs)
    assert (made["entity"], made["project"]) == ("team", "demo")


@needs_workspaces
def test_report_has_the_same_panels(monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb_workspaces.reports.v2 import interface

    monkeypatch.setattr(interface, "_get_api", lambda: None)
    monkeypatch.setattr(interface, "execute_graphql", lambda *_: {"project": {"internalId": "1"}})
    blocks = dumped(build_report("team", "demo", "study", SHOWN))["spec"]["blocks"]
    headings = [block["children"][0]["text"] for block in blocks if block["type"] == "heading"]
    grids = [block["metadata"] for block in blocks if block["type"] == "panel-grid"]
    panels = [grid["panelBankSectionConfig"]["panels"] for grid in grids]
    check_panels(dict(zip(headings, panels, strict=True)))
    for grid in grids:
        (runs,) = grid["runSets"]
        check_runs(runs)


@needs_workspaces
def test_without_a_group_no_run_is_filtered_out() -> None:
    (runs,) = dumped(build_workspace("team", "demo", None, SHOWN))["spec"]["section"]["runSets"]
    assert runs["filters"]["filters"] == []


def test_names_are_those_of_the_results() -> None:
    more = {"divergence/x/kl": {"value": 0.1, "unit": "nats/token", "better": "lower"}}
    more |= {"minimal_pairs/agreement/acc": {"value": 0.8, "unit": "fraction", "better": "higher"}}
    shown = Shown.of([RESULT, {**RESULT, "metrics": {**METRICS, **more}}])
    assert shown == Shown(("minimal_pairs/acc",), ("divergence/x/kl",), ("latency/tpot/p50",), ("ssm_input",))
    assert Shown.of([]) == Shown()


@needs_workspaces
def test_publishing_needs_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()
    with pytest.raises(ConfigError, match=r"dashboard=study: .*wandb login"):
        publish("team", "demo", "study")


def test_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'dualscale_mamba\[dashboard\]'"):
        build_workspace("team", "demo", "study")
