"""Evaluations as they are used: on the embedded model, from the hub, and beside lm-eval's own adapter."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toy import Bigram, context

from dualscale_mamba.data.tokenizer import Tokenizer
from dualscale_mamba.evaluation.base import Context
from dualscale_mamba.evaluation.harness import Harness
from dualscale_mamba.evaluation.task_files import write_tasks
from dualscale_mamba.models.pretrained import ASSETS, load_pretrained

TOKENIZER = ASSETS / "mamba1-tiny" / "tokenizer.json"


def test_the_embedded_model_knows_agreement() -> None:
    loaded = load_pretrained("embedded:mamba1-tiny")
    harness = Harness(["minimal_pairs"], batch_size=60, limit=60)
    result = harness(Context(loaded.model, None, loaded.tokenizer, torch.device("cpu")))
    assert result.metrics["minimal_pairs/acc"].value > 0.9


def test_without_local_data_lm_eval_reads_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str | None]] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        asked.append((path, name))
        row = {"goal": "Open a door", "sol1": "Turn the handle", "sol2": "Eat the handle", "label": 0}
        return datasets.DatasetDict(
            dict.fromkeys(("train", "validation"), datasets.Dataset.from_list([row] * 3))
        )

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    result = Harness(["piqa"])(context(Bigram.random()))
    assert asked == [("baber/piqa", None)]
    assert result.facts["data"] == "hub"
    assert result.facts["documents"] == {"piqa": 3}


class Logits(nn.Module):
    """A transformers model as a language model of this package."""

    device = torch.device("cpu")

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: Tensor) -> Tensor:
        logits: Tensor = self.inner(input_ids).logits
        return logits


def test_equal_to_the_adapter_of_lm_eval(shared: Path) -> None:
    """Long texts too: the window is short enough for contexts to be cut and pages to be rolled."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from lm_eval import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tokenizer = Tokenizer.from_file(TOKENIZER)
    torch.manual_seed(0)
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}
    end = {"bos_token_id": tokenizer.eos_id, "eos_token_id": tokenizer.eos_id}
    inner = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=tokenizer.vocab_size, **sizes, **end)
    ).eval()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(TOKENIZER), eos_token="<|endoftext|>", pad_token="<|endoftext|>"
    )
    tasks, root = (
        ["lambada_openai", "hellaswag", "winogrande", "wikitext", "blimp_passive_1"],
        shared / "data",
    )
    ours = Harness(tasks, batch_size=8, limit=5, max_length=128)(
        Context(Logits(inner), None, tokenizer, torch.device("cpu"), root)
    )
    theirs = HFLM(pretrained=inner, tokenizer=fast, batch_size=8, max_length=128, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        names = write_tasks(tasks, Path(folder), root)
        manager = TaskManager(include_defaults=False, include_path=folder)
        output = evaluate(lm=theirs, task_dict=manager.load(names), limit=5, bootstrap_iters=0)
    compared = 0
    for task in tasks:
        for key, value in output["results"][task].items():
            metric = ours.metrics.get(f"{task}/{key.partition(',')[0]}")
            if metric is not None and isinstance(value, float):
                assert metric.value == pytest.approx(value, rel=1e-5)
                compared += 1
    assert compared >= 9
