"""The picture of a study: rows for settings, marks for arms, curves over percentiles, a row a run for anything else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from made_runs import made_run, windows

from dualscale_mamba.report.collect import Job, collect
from dualscale_mamba.report.places import curves_of, rows_of
from dualscale_mamba.report.study_picture import write_study_figure

SITES = ("x", "B", "C")


def runs(folder: Path, settings: Sequence[tuple[str, dict[str, object]]]) -> list[Job]:
    """Finished runs of these scale modes and dotted settings."""
    for number, (mode, own) in enumerate(settings):
        config: dict[str, dict[str, object]] = {}
        for key, value in own.items():
            group, name = key.split(".")
            config.setdefault(group, {})[name] = value
        kl = [0.001 * (number + 1) + 0.0001 * i for i in range(8)]
        typed = [f"{key}={str(value).replace(' ', '')}" for key, value in own.items()]
        made_run(folder / str(number), mode, number=number, config=config, items={"divergence": windows(kl)},
                 overrides=typed)  # fmt: skip
    return collect(folder)


def test_settings_are_rows_and_arms_are_marks(tmp_path: Path) -> None:
    settings = [(mode, {"quantize.sites": [site]}) for site in SITES for mode in ("single", "dual")]
    named, rows = rows_of(runs(tmp_path, settings))
    assert named == "sites"
    assert [row.label for row in rows] == list(SITES)
    assert [[mark for mark, _ in row.dots] for row in rows] == [["single", "dual"]] * 3


def test_only_what_is_not_usual_is_told(tmp_path: Path) -> None:
    settings = [
        (mode, {"quantize.sites": [site], "precision.rotate": rotate})
        for site, rotate in (*((site, False) for site in SITES), ("C", True))
        for mode in ("single", "dual")
    ]
    named, rows = rows_of(runs(tmp_path, settings))
    assert named == "sites"
    assert [row.label for row in rows] == ["x", "B", "C", "C, rotate True"]


@pytest.mark.parametrize("count", [1, 2])
def test_few_settings_have_a_row_a_run(count: int, tmp_path: Path) -> None:
    settings = [(mode, {"quantize.sites": [site]}) for site in SITES[:count] for mode in ("single", "dual")]
    named, rows = rows_of(runs(tmp_path, settings))
    assert not named
    assert len(rows) == 2 * count
    assert all(mark == "" for row in rows for mark, _ in row.dots)


def test_percentiles_are_curves(tmp_path: Path) -> None:
    places = (99.0, 99.9, 100.0)
    settings = [
        (mode, {"observer.percentile": place}) for mode in ("single", "dual") for place in reversed(places)
    ]
    jobs = runs(tmp_path, settings)
    curves = curves_of(jobs)
    assert list(curves) == ["single", "dual"]
    assert [place for place, _ in curves["dual"]] == list(places)
    write_study_figure(tmp_path / "one.png", jobs, "a study")
    assert (tmp_path / "one.png").stat().st_size > 10_000


def test_percentiles_at_several_sites_are_no_curves(tmp_path: Path) -> None:
    settings = [
        (mode, {"observer.percentile": place, "quantize.sites": [site]})
        for site in SITES
        for mode in ("single", "dual")
        for place in (99.0, 99.9, 100.0)
    ]
    jobs = runs(tmp_path, settings)
    assert not curves_of(jobs)
    _, rows = rows_of(jobs)
    assert [len(row.dots) for row in rows] == [6, 6, 6]
    assert rows[0].dots[1][0] == "single 99.9 %"


def test_one_run_of_a_setting_may_be_missing_or_exact(tmp_path: Path) -> None:
    settings = [(mode, {"quantize.sites": [site]}) for site in SITES for mode in ("single", "dual")][:-1]
    jobs = runs(tmp_path, settings)
    jobs[0].result["metrics"]["divergence/text/kl"]["value"] = 0.0  # type: ignore[index]
    del jobs[1].result["metrics"]["divergence/text/kl"]  # type: ignore[index]
    write_study_figure(tmp_path / "one.png", jobs, "a study")
    assert (tmp_path / "one.png").stat().st_size > 10_000
