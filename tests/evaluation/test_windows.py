"""Perplexity and divergence on models whose probabilities are known."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from toy import VOCABULARY, Bigram, Bytes, context

from dualscale_mamba.data.batches import token_batches
from dualscale_mamba.data.text import documents
from dualscale_mamba.errors import ConfigError
from dualscale_mamba.evaluation import scoring
from dualscale_mamba.evaluation.divergence import Divergence
from dualscale_mamba.evaluation.perplexity import Perplexity

HELD_OUT = "generated_heldout"


def test_perplexity_equals_direct_computation() -> None:
    model = Bigram.random()
    result = Perplexity(HELD_OUT, samples=6, length=50, batch_size=4)(context(model))
    batches = token_batches(Bytes(), documents(HELD_OUT), samples=6, length=50, batch_size=1)
    expected = [-model.loglikelihood(batch[0].tolist()) / 50 for batch in batches]
    assert [item["nll"] for item in result.items] == pytest.approx(expected, rel=1e-6)
    nll = sum(expected) / 6
    values = {name: metric.value for name, metric in result.metrics.items()}
    assert values[f"perplexity/{HELD_OUT}/nll"] == pytest.approx(nll, rel=1e-6)
    assert values[f"perplexity/{HELD_OUT}/perplexity"] == pytest.approx(math.exp(nll), rel=1e-5)
    assert result.facts["tokens"] == 300


def test_bits_per_byte_of_a_uniform_byte_model() -> None:
    model = Bigram(torch.zeros(VOCABULARY, VOCABULARY))
    result = Perplexity(HELD_OUT, samples=None, length=100, batch_size=64)(context(model))
    size, tokens = sum(item["bytes"] for item in result.items), result.facts["tokens"]
    value = result.metrics[f"perplexity/{HELD_OUT}/bits_per_byte"].value
    assert value == pytest.approx(math.log2(VOCABULARY) * tokens / size, rel=1e-6)
    # A byte is a token here; they differ by document ends and by characters that a window cuts.
    assert size == pytest.approx(tokens, rel=1e-2)


def test_batch_size_does_not_change_a_float32_model() -> None:
    results = [
        Perplexity(HELD_OUT, samples=7, length=40, batch_size=size)(context(Bigram.random()))
        for size in (1, 3, 7)
    ]
    assert results[0].items == results[1].items == results[2].items
    assert len({result.facts["tokens_hash"] for result in results}) == 1


def test_a_model_does_not_diverge_from_itself() -> None:
    model = Bigram.random()
    evaluator = Divergence(HELD_OUT, samples=4, length=30, batch_size=2)
    result = evaluator(context(model, model))
    assert result.metrics[f"divergence/{HELD_OUT}/kl"].value == 0.0
    assert result.metrics[f"divergence/{HELD_OUT}/top1_agreement"].value == 1.0
    assert result.metrics[f"divergence/{HELD_OUT}/delta_nll"].value == 0.0
    assert model.calls == 2 * 2


def test_divergence_of_a_known_shift() -> None:
    # Even odds against odds of e to 1: KL = -ln 2 - (1 - ln(1 + e)) / 2 - (0 - ln(1 + e)) / 2.
    reference = torch.full((VOCABULARY, VOCABULARY), -math.inf)
    reference[:, [32, 101]] = 0.0
    shifted = reference.clone()
    shifted[:, 101] = 1.0
    windows = torch.tensor([[101, 32, 101, 101, 32]])
    compared = scoring.compare(Bigram(shifted), reference[windows[:, :-1]], windows)
    expected = -math.log(2) - 0.5 + math.log(1 + math.e)
    assert compared.kl.tolist() == [pytest.approx([expected] * 4, abs=1e-12)]
    assert compared.reference_nll.tolist() == [pytest.approx([math.log(2)] * 4)]
    e_nll, space_nll = math.log(1 + math.e) - 1, math.log(1 + math.e)
    assert compared.nll.tolist() == [pytest.approx([space_nll, e_nll, e_nll, space_nll])]


def test_divergence_reports_both_likelihoods_in_one_pass() -> None:
    model, reference = Bigram.random(0), Bigram.random(1)
    settings = {"samples": 5, "length": 40, "batch_size": 2}
    result = Divergence(HELD_OUT, **settings)(context(model, reference))
    assert (model.calls, reference.calls) == (3, 3)
    own = Perplexity(HELD_OUT, **settings)(context(model))
    other = Perplexity(HELD_OUT, **settings)(context(reference))
    values = {name.rpartition("/")[2]: metric.value for name, metric in result.metrics.items()}
    assert values["nll"] == pytest.approx(own.metrics[f"perplexity/{HELD_OUT}/nll"].value, rel=1e-6)
    assert values["reference_nll"] == pytest.approx(
        other.metrics[f"perplexity/{HELD_OUT}/nll"].value, rel=1e-6
    )
    assert values["delta_nll"] == pytest.approx(values["nll"] - values["reference_nll"])
    assert values["kl"] > 0.1
    assert result.items[4].keys() == {"window", "kl", "top1_agreement", "nll", "reference_nll"}


def test_parts_of_bounded_memory_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, reference = Bigram.random(0), Bigram.random(1)
    windows = torch.arange(90).view(3, 30)
    whole = scoring.compare(model, reference(windows[:, :-1]), windows)
    alone = scoring.window_nll(model, windows)
    monkeypatch.setattr(scoring, "_LOGITS_AT_ONCE", 7 * VOCABULARY)
    for parted, one in zip(scoring.compare(model, reference(windows[:, :-1]), windows), whole, strict=True):
        torch.testing.assert_close(parted, one, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scoring.window_nll(model, windows), alone)


def test_divergence_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match=r"give Context\.reference"):
        Divergence(HELD_OUT)(context(Bigram.random()))


@pytest.mark.parametrize("kind", [Perplexity, Divergence])
def test_settings_are_checked_before_anything_is_read(kind: type[Perplexity] | type[Divergence]) -> None:
    kind(HELD_OUT, samples=None).check(None)
    with pytest.raises(ConfigError, match="length=0: allowed is at least 1"):
        kind(HELD_OUT, length=0).check(None)
    with pytest.raises(ConfigError, match=r"data\.root=None"):
        kind("wikipedia_en").check(None)
    with pytest.raises(ConfigError, match="at most"):
        kind(HELD_OUT, samples=10**6)(context(Bigram.random(), Bigram.random()))


def test_golden_windows_of_local_text(shared: Path) -> None:
    result = Perplexity("wikipedia_en", samples=2, length=64)(
        context(Bigram.random(), data_root=shared / "data")
    )
    assert len(result.items) == 2
