"""What the tables of a comparison say, in each form: only what stands out is bold, and nothing breaks the form."""

from __future__ import annotations

import csv
import io
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from made_runs import documents, made_run, windows
from rich.console import Console

from dualscale_mamba.report.collect import collect
from dualscale_mamba.report.compare import write_comparison
from dualscale_mamba.report.grid import TASKS_SHOWN, Grid
from dualscale_mamba.report.latex import escaped, latex
from dualscale_mamba.report.spreadsheet import spreadsheet
from dualscale_mamba.study.folder import Entry, Line, StudyFolder

BASE = 1e-3 * (1 + 0.1 * np.arange(24))
NOISE = np.random.default_rng(0).normal(size=24) * 1e-4


@pytest.fixture(autouse=True)
def without_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page and the picture have tests of their own, and take seconds."""
    monkeypatch.setattr("dualscale_mamba.report.compare.PAGE_MODULE", "dualscale_mamba.no_such_module")


def printed(folder: Path, width: int = 140, **options: str) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system="standard")
    assert write_comparison(folder, console, **options)
    return out.getvalue()


def study(folder: Path, winner: float = 0.1) -> None:
    made_run(folder / "a", "single", arm="baseline", items={"divergence": windows(BASE)})
    made_run(
        folder / "b", "dual", arm="treatment", number=1, items={"divergence": windows(BASE * winner + NOISE)}
    )


def test_a_winner_beyond_the_noise_is_bold_everywhere(tmp_path: Path) -> None:
    study(tmp_path)
    assert re.search(r"\x1b\[1;32m *0\.0002", printed(tmp_path))
    (row,) = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if "| dual |" in line]
    assert row.count("**") == 4  # KL and top-1; the perplexities are equal
    assert re.search(
        r"dual & \\textbf\{0\.0002\d+\} \{\\scriptsize\[", (tmp_path / "comparison.tex").read_text()
    )


def test_nothing_is_bold_within_the_noise(tmp_path: Path) -> None:
    study(tmp_path, winner=1.0)
    text = printed(tmp_path)
    assert "\x1b[1;32m" not in text
    assert "no value is bold" in text
    assert "**" not in (tmp_path / "comparison.md").read_text()
    assert "textbf" not in (tmp_path / "comparison.tex").read_text()


def test_lines_of_the_console_fit(tmp_path: Path) -> None:
    tasks = [row for task in range(6) for row in documents(f"task_number_{task}", [1.0, 0.0, 1.0])]
    for number, mode in enumerate(("single", "dual")):
        made_run(
            tmp_path / mode, mode, number=number, choices={"model": f"a_model_of_name_{number}"},
            items={"divergence": windows(BASE), "zero_shot": tasks},
        )  # fmt: skip
    for width in (60, 100, 140):
        lines = re.sub(r"\x1b\[[\d;]*m", "", printed(tmp_path, width)).splitlines()
        table = [line for line in lines if "accuracy" in line or "a_model_of_name" in line]
        assert len(table) >= 3
        assert all(len(line.rstrip()) <= width and "…" not in line for line in lines[:8])


def test_many_tasks_are_shown_by_their_average(tmp_path: Path) -> None:
    rows = [row for task in range(TASKS_SHOWN + 1) for row in documents(f"task{task}", [1.0, 0.0, 1.0])]
    made_run(tmp_path / "a", "single", items={"zero_shot": rows})
    made_run(tmp_path / "b", "dual", number=1, items={"zero_shot": rows})
    jobs = collect(tmp_path)
    assert list(Grid.of(jobs).heads.values()) == ["accuracy"]
    assert Grid.of(jobs).cell(jobs[0], f"accuracy over {TASKS_SHOWN + 1} tasks") == "66.67 %"
    assert "task8/acc" in spreadsheet(jobs)


def test_csv_has_the_interval_of_every_metric_with_items(tmp_path: Path) -> None:
    study(tmp_path)
    made_run(
        tmp_path / "c", "affine", number=2, state="failed", error="ValueError: one\ntwo", metrics={"m": 1}
    )
    rows = list(csv.DictReader(io.StringIO(spreadsheet(collect(tmp_path)))))
    name = "divergence/text/kl"
    for row in rows[:2]:
        assert float(row[f"{name}_low"]) < float(row[name]) < float(row[f"{name}_high"])
    assert "m_low" not in rows[0]
    assert (rows[2]["state"], rows[2]["error"], rows[2][f"{name}_low"]) == ("failed", "ValueError: one", "")


def test_latex_is_escaped_and_well_formed(tmp_path: Path) -> None:
    hostile = r"50% & $x_1$ #{a}~^\end{table}"
    study(tmp_path)
    made_run(tmp_path / "d", hostile, number=2, items={"divergence": windows(BASE + NOISE)})
    text = latex(Grid.of(collect(tmp_path)), hostile, ["a note\nof two lines"], "python run.py -m x=1")
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{table}"
    assert body[-1] == r"\end{table}"
    assert sum(r"\end{table}" in line for line in body) == 1
    for begin in ("table", "tabular"):
        assert text.count(rf"\begin{{{begin}}}") == text.count(rf"\end{{{begin}}}") == 1
    plain = re.sub(r"\\[\\{}%&#_$]", "", "\n".join(body))
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    rows = body[body.index(r"\midrule") + 1 : body.index(r"\bottomrule")]
    columns = len(re.search(r"\{tabular\}\{([lr]+)\}", text)[1])  # type: ignore[index]
    assert len(rows) == 3
    assert all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 and row.endswith(r"\\") for row in rows)
    assert escaped("a_b\nc") == r"a\_b c"


def test_jobs_without_a_result_are_named_with_the_reason(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    made_run(folder.job("a"), "single", items={"divergence": windows(BASE)})
    made_run(folder.job("b"), "dual", state="failed", error="RuntimeError: deliberate\nmore")
    made_run(folder.job("c"), "affine", state="running")
    modes = {"a": "single", "b": "dual", "c": "affine", "d": "control", "e": "fp16"}
    entries = tuple(
        Entry(name, number, mode, choices={"scale_mode": mode})
        for number, (name, mode) in enumerate(modes.items())
    )
    folder.write(Line("line", "mine", ("run.py", "-m", "evaluation=[a,b]"), 1.0, "continue", entries))
    printed(tmp_path)
    text = (tmp_path / "comparison.md").read_text()
    assert text.startswith("# mine\n")
    assert "failed: dual: RuntimeError: deliberate\n" in text
    assert "killed: affine: its process ended without a word" in text
    assert "waiting: control, fp16: it has not begun" in text
    assert "4 of 5 jobs have no result" in text
    command = re.search(r"Reproduce: `(.*)`", text)
    assert command is not None
    assert shlex.split(command[1]) == ["python", "run.py", "-m", "evaluation=[a,b]"]


def test_a_long_study_shows_a_dozen_verdicts_and_writes_all(tmp_path: Path) -> None:
    for number in range(15):
        for mode in ("single", "dual"):
            made_run(
                tmp_path / f"{number}{mode}", mode, number=number, choices={"granularity": f"g{number}"},
                items={"divergence": windows(BASE)},
            )  # fmt: skip
    text = printed(tmp_path, width=400)
    assert text.count("dual vs single") == 12
    assert "3 more in comparison.md" in text
    assert (tmp_path / "comparison.md").read_text().count("dual vs single") == 15


def test_a_failing_page_costs_no_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    study(tmp_path)
    printed(tmp_path, reference="dual")
    assert "report.html could not be written" in caplog.text
    assert "single vs dual" in (tmp_path / "comparison.md").read_text()
