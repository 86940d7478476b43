"""Tasks of lm-eval on a model whose likelihoods are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from torch import Tensor
from toy import Bigram, Bytes, context

from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation.base import Evaluated
from dualscale_mamba.evaluation.harness import Harness
from dualscale_mamba.evaluation.language_model import HarnessModel
from dualscale_mamba.evaluation.minimal_pairs import minimal_pairs

SIX = ["lambada_openai", "hellaswag", "piqa", "arc_easy", "arc_challenge", "winogrande"]
END = Bytes.eos_id


def by_task(result: Evaluated) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for item in result.items:
        found.setdefault(item["task"], []).append(item)
    return found


@pytest.fixture(scope="module")
def pairs_result() -> Evaluated:
    return Harness(["minimal_pairs"], batch_size=64)(context(Bigram.random()))


def test_minimal_pairs_against_direct_likelihoods(pairs_result: Evaluated) -> None:
    model, right = Bigram.random(), []
    for item, pair in zip(pairs_result.items, minimal_pairs(), strict=True):
        good, bad = (model.loglikelihood([END, *f" {text}".encode()]) for text in pair[:2])
        assert item["responses"] == pytest.approx([good, bad], rel=1e-6)
        right.append(good > bad)
        assert item["acc"] == right[-1]
    metrics = pairs_result.metrics
    share = sum(right) / len(right)
    assert metrics["minimal_pairs/acc"].value == pytest.approx(share)
    error = math.sqrt(share * (1 - share) / (len(right) - 1))
    assert metrics["minimal_pairs/acc_stderr"].value == pytest.approx(error)
    parts = [metric.value for name, metric in metrics.items() if name.count("/") == 2]
    assert len(parts) == 6
    assert sum(parts) / 6 == pytest.approx(share)


def test_batch_size_changes_neither_likelihoods_nor_order(pairs_result: Evaluated) -> None:
    other = Harness(["minimal_pairs"], batch_size=7)(context(Bigram.random()))
    assert other.items == pairs_result.items
    assert other.facts["request_order"] == pairs_result.facts["request_order"]
    assert pairs_result.facts["data"] == "embedded"


def test_every_local_set_runs(shared: Path) -> None:
    tasks = [*SIX, "openbookqa", "wikitext", "blimp"]
    harness = Harness(tasks, batch_size=8, limit=4)
    harness.check(shared / "data")
    result = harness(context(Bigram.random(), data_root=shared / "data"))
    items, metrics = by_task(result), result.metrics
    assert all(len(rows) == 4 for rows in items.values())
    for task in [*SIX, "openbookqa"]:
        assert 0 <= metrics[f"{task}/acc"].value <= 1
        assert metrics[f"{task}/acc"].better == "higher"
    for task in ("hellaswag", "piqa", "arc_easy", "arc_challenge", "openbookqa"):
        assert f"{task}/acc_norm" in metrics
        assert f"{task}/acc_norm_stderr" in metrics
    sets = [name for name in items if name.startswith("blimp_")]
    assert metrics["blimp/sets"].value == len(sets) == 12
    assert metrics["blimp/acc"].value == pytest.approx(
        sum(metrics[f"{name}/acc"].value for name in sets) / 12
    )
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert metrics[f"wikitext/{name}"].better == "lower"
    assert json.dumps(result.items)
    assert json.dumps(result.facts)


def test_lambada_and_wikitext_values(shared: Path) -> None:
    model = Bigram.random()
    harness = Harness(["lambada_openai", "wikitext"], batch_size=2, limit=3, max_length=64)
    result = harness(context(model, data_root=shared / "data"))
    items = by_task(result)
    lines = (shared / "data/eval/lambada_openai.jsonl").read_text().splitlines()
    logs = []
    for line, item in zip(lines, items["lambada_openai"], strict=False):
        text, _, word = json.loads(line)["text"].rpartition(" ")
        logs.append(model.loglikelihood([*text.encode()[-1:], *f" {word}".encode()]))
        assert item["responses"] == pytest.approx(logs[-1:], rel=1e-6)
    value = result.metrics["lambada_openai/perplexity"].value
    assert value == pytest.approx(math.exp(-sum(logs) / 3), rel=1e-5)
    total = sum(item["responses"][0] for item in items["wikitext"])
    words = sum(item["word_perplexity"][1] for item in items["wikitext"])
    assert result.metrics["wikitext/word_perplexity"].value == pytest.approx(math.exp(-total / words))


def test_a_task_file_of_ones_own(tmp_path: Path) -> None:
    data = tmp_path / "colours.jsonl"
    data.write_text('{"text": "red"}\n{"text": "blue"}\n')
    own = {
        "task": "any",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "loglikelihood",
        "doc_to_text": "",
        "doc_to_target": "text",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = tmp_path / "colours.yaml"
    path.write_text(json.dumps(own))
    harness = Harness([str(path)])
    harness.check(None)
    assert by_task(harness(context(Bigram.random()))).keys() == {"colours"}


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["piqua"], r"tasks=piqua: allowed is minimal_pairs, lambada_openai, .*Did you mean piqa\?"),
        (["blimp_passive_3"], "Did you mean blimp_passive_"),
        (["nowhere.yaml"], r"tasks=nowhere\.yaml"),
        ([], "at least one of minimal_pairs"),
    ],
)
def test_unknown_tasks_are_refused(tasks: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Harness(tasks).check(None)


def test_missing_local_sets_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "piqa.jsonl").write_text("{}\n")
    Harness(["piqa", "minimal_pairs"]).check(tmp_path)
    Harness(SIX).check(None)
    with pytest.raises(ConfigError, match=r"eval/hellaswag\.jsonl, .*eval/winogrande\.jsonl\. Leave"):
        Harness(["hellaswag", "piqa", "winogrande"]).check(tmp_path)
    with pytest.raises(ConfigError, match=r"eval/blimp/\*\.jsonl"):
        Harness(["blimp"]).check(tmp_path)


@pytest.mark.parametrize("setting", ["batch_size", "limit", "max_length"])
def test_numbers_below_one_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting}=0: allowed is at least 1"):
        Harness(["piqa"], **{setting: 0}).check(None)


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in arguments]


def test_requests_with_one_input_share_a_row() -> None:
    model = Bigram.random()
    harness = HarnessModel(model, Bytes(), batch_size=8, max_length=64)
    found = harness.loglikelihood(requests("loglikelihood", ("ab", "c"), ("ab", "d"), ("a", "bc")))
    assert harness.rows == 1
    expected = [[98, 99], [98, 100], [97, 98, 99]]
    assert [value for value, _ in found] == pytest.approx([model.loglikelihood(ids) for ids in expected])


def test_greedy_flag_and_padding_on_the_right() -> None:
    table = torch.zeros(257, 257)
    for last, token in zip(b"abc", b"bca", strict=True):
        table[last, token] = 1.0
    harness = HarnessModel(Bigram(table), Bytes(), batch_size=4, max_length=64)
    found = harness.loglikelihood(requests("loglikelihood", ("a", "bca"), ("abcab", "ca"), ("a", "c")))
    assert [greedy for _, greedy in found] == [True, True, False]
    short = harness._pad([(1, 2, 3), (4,)])
    assert short.tolist() == [[1, 2, 3], [4, END, END]]


class Recorder(Bigram):
    """Keeps what it was asked."""

    seen: list[list[int]]

    def forward(self, input_ids: Tensor) -> Tensor:
        self.seen = [*getattr(self, "seen", []), *input_ids.tolist()]
        return super().forward(input_ids)


def test_long_contexts_lose_their_beginning() -> None:
    model = Recorder(Bigram.random().table)
    harness = HarnessModel(model, Bytes(), batch_size=1, max_length=4)
    harness.loglikelihood(requests("loglikelihood", ("abcdefgh", "ij")))
    assert model.seen == [list(b"fghi")]
    with pytest.raises(ValueError, match=r"a continuation of 5 tokens .* max_length=4"):
        harness.loglikelihood(requests("loglikelihood", ("a", "bcdef")))


def test_rolling_windows_predict_each_token_once() -> None:
    model = Bigram.random()
    harness = HarnessModel(model, Bytes(), batch_size=2, max_length=4)
    (total,) = harness.loglikelihood_rolling(requests("loglikelihood_rolling", ("abcdefghij",)))
    assert total == pytest.approx(model.loglikelihood([END, *b"abcdefghij"]))


class Steps(Bigram):
    """A bigram model with the one-token step that generation needs."""

    def allocate_cache(self, batch_size: int) -> None:
        return None

    def forward(self, input_ids: Tensor, cache: None = None, last_only: bool = False) -> Tensor:
        return self.table[input_ids[:, -1:] if last_only else input_ids]

    def step(self, input_ids: Tensor, cache: None) -> Tensor:
        return self.table[input_ids]


def test_greedy_generation_stops_at_text_at_end_and_at_limit() -> None:
    table = torch.zeros(257, 257)
    for last, token in zip(b"abcdx", (*b"bcde", END), strict=True):
        table[last, token] = 1.0
    harness = HarnessModel(Steps(table), Bytes(), batch_size=1, max_length=8)
    found = harness.generate_until(
        requests(
            "generate_until",
            ("a", {"until": ["d"], "max_gen_toks": 9}),
            ("x", {"until": [], "max_gen_toks": 9}),
            ("a", {"until": "zz", "max_gen_toks": 2}),
        )
    )
    assert found == ["bc", "", "bc"]
    with pytest.raises(NotImplementedError, match="greedy"):
        harness.generate_until(requests("generate_until", ("a", {"do_sample": True})))
    plain = HarnessModel(Bigram(table), Bytes(), batch_size=1, max_length=8)
    with pytest.raises(NotImplementedError, match="one-token step"):
        plain.generate_until(requests("generate_until", ("a", {})))
