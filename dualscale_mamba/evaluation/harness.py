"""Tasks of lm-eval, with its prompts and metrics, on local data or from the hub."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dualscale_mamba.data.text import text_hash
from dualscale_mamba.evaluation.base import Context, Evaluated, Metric, evaluating, require_positive
from dualscale_mamba.evaluation.task_files import BLIMP, MINIMAL_PAIRS, check_tasks, local_files, write_tasks

_LONGEST_TARGET = 100


@dataclass(frozen=True)
class Harness:
    """Zero-shot tasks of lm-eval.

    Args:
        tasks: ``minimal_pairs``, ``lambada_openai``, ``hellaswag``, ``piqa``, ``arc_easy``,
            ``arc_challenge``, ``winogrande``, ``openbookqa``, ``wikitext``, ``blimp``, ``blimp_<set>``,
            or paths of task files.
        batch_size: Rows per forward pass; fixed, because it can change results in the last digits.
        limit: Documents per task; None takes the full sets.
        max_length: Longest input in tokens; a longer context loses its beginning.
    """

    tasks: Sequence[str]
    batch_size: int = 16
    limit: int | None = None
    max_length: int = 2048

    def check(self, data_root: Path | None) -> None:
        """See ``Evaluator``."""
        require_positive({"batch_size": self.batch_size, "limit": self.limit, "max_length": self.max_length})
        check_tasks(self.tasks, data_root)

    def files(self, data_root: Path | None) -> list[Path]:
        """See ``Evaluator``."""
        return local_files(self.tasks, data_root)

    def __call__(self, context: Context) -> Evaluated:
        """See ``Evaluator``. Items: ``task``, ``doc_id``, ``target``, ``responses``, and each metric."""
        # lm-eval takes seconds to import: only jobs that evaluate tasks pay.
        lm_eval = importlib.import_module("lm_eval")
        tasks = importlib.import_module("lm_eval.tasks")
        language_model = importlib.import_module("dualscale_mamba.evaluation.language_model")
        evaluating(context.model)
        model = language_model.HarnessModel(
            context.model, context.tokenizer, batch_size=self.batch_size, max_length=self.max_length
        )
        with tempfile.TemporaryDirectory(prefix="dualscale_mamba_tasks_") as folder, _tamed():
            names = write_tasks(list(self.tasks), Path(folder), context.data_root)
            manager = tasks.TaskManager(include_defaults=False, include_path=folder)
            output = lm_eval.evaluate(
                lm=model,
                task_dict=manager.load(names),
                limit=self.limit,
                bootstrap_iters=0,  # its bootstrap starts a pool of processes; standard errors are below
                log_samples=True,
            )
        samples: dict[str, list[dict[str, Any]]] = output["samples"]
        metrics: dict[str, Metric] = {}
        for name in names:
            metrics |= _task_metrics(name, output, samples[name])
        metrics |= _blimp_average(metrics)
        items = [_item(name, sample) for name in names for sample in samples[name]]
        return Evaluated(metrics, items, self._facts(context, model, names, samples))

    def _facts(
        self, context: Context, model: Any, names: Sequence[str], samples: Mapping[str, Sequence[Any]]
    ) -> dict[str, Any]:
        return {
            "tasks": list(names),
            "documents": {name: len(samples[name]) for name in names},
            "documents_hash": text_hash(sample["doc_hash"] for name in names for sample in samples[name]),
            "batch_size": self.batch_size,
            "limit": self.limit,
            "max_length": self.max_length,
            "rows": model.rows,
            "request_order": model.order.hexdigest(),
            "data": _where(names, context.data_root),
            "lm_eval": importlib.metadata.version("lm_eval"),
        }


def _where(names: Sequence[str], data_root: Path | None) -> str:
    if all(name == MINIMAL_PAIRS for name in names):
        return "embedded"
    return "hub" if data_root is None else "local"


@contextmanager
def _tamed() -> Iterator[None]:
    """Hides lm-eval's bars of building requests and remarks on its own files; compiles a template once."""
    datasets = importlib.import_module("datasets")
    task: Any = importlib.import_module("lm_eval.api.task")
    bar, hidden = task.tqdm, datasets.are_progress_bars_disabled()
    logger = logging.getLogger("lm_eval")
    level = logger.level
    templates = importlib.import_module("lm_eval.utils").env
    # lm-eval compiles a task's template again for every document, which takes longer than a tiny model.
    templates.from_string = functools.cache(templates.from_string)
    logger.setLevel(logging.ERROR)
    task.tqdm = functools.partial(bar, disable=True)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        del templates.from_string  # the method of the class shows again
        task.tqdm = bar
        logger.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()


def _task_metrics(
    name: str, output: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]
) -> dict[str, Metric]:
    higher: Mapping[str, bool] = output["higher_is_better"][name]
    found: dict[str, Metric] = {}
    for key, value in output["results"][name].items():
        metric = key.partition(",")[0]
        if metric not in higher or not isinstance(value, (int, float)):
            continue
        better: Literal["higher", "lower"] = "higher" if higher[metric] else "lower"
        found[f"{name}/{metric}"] = Metric(float(value), _unit(metric), better)
        error = _standard_error(metric, float(value), [sample[metric] for sample in samples])
        if error is not None:
            found[f"{name}/{metric}_stderr"] = Metric(error, _unit(metric))
    return found | _by_phenomenon(name, samples)


def _unit(metric: str) -> str:
    if metric.startswith("acc"):
        return "fraction"
    if metric.endswith("perplexity"):
        return "perplexity"
    return "bits/byte" if metric == "bits_per_byte" else metric


def _standard_error(metric: str, value: float, values: Sequence[Any]) -> float | None:
    """Of a mean over documents; of exp(-mean) for a perplexity over documents, to first order."""
    if len(values) < 2 or not all(isinstance(one, (int, float)) for one in values):
        return None
    mean = math.fsum(values) / len(values)
    variance = math.fsum((one - mean) ** 2 for one in values) / (len(values) - 1)
    error = math.sqrt(variance / len(values))
    return error * value if metric == "perplexity" else error


def _by_phenomenon(name: str, samples: Sequence[Mapping[str, Any]]) -> dict[str, Metric]:
    groups: dict[str, list[float]] = {}
    for sample in samples:
        phenomenon = sample["doc"].get("phenomenon")
        if isinstance(phenomenon, str) and "acc" in sample:
            groups.setdefault(phenomenon, []).append(float(sample["acc"]))
    return {
        f"{name}/{phenomenon}/acc": Metric(math.fsum(values) / len(values), "fraction", "higher")
        for phenomenon, values in groups.items()
    }


def _blimp_average(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    names = [name for name in metrics if name.startswith(f"{BLIMP}_") and name.endswith("/acc")]
    if len(names) < 2:
        return {}
    mean = math.fsum(metrics[name].value for name in names) / len(names)
    found = {f"{BLIMP}/acc": Metric(mean, "fraction", "higher"), f"{BLIMP}/sets": Metric(len(names), "sets")}
    errors = [metrics[f"{name}_stderr"].value for name in names if f"{name}_stderr" in metrics]
    if len(errors) == len(names):
        error = math.sqrt(math.fsum(one**2 for one in errors)) / len(names)
        found[f"{BLIMP}/acc_stderr"] = Metric(error, "fraction")
    return found


def _item(name: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    """What a paired comparison needs of one document; the documents themselves stay out of the log."""
    target = sample["target"]
    item: dict[str, Any] = {"task": name, "doc_id": sample["doc_id"], "doc_hash": sample["doc_hash"]}
    if isinstance(target, int) or (isinstance(target, str) and len(target) <= _LONGEST_TARGET):
        item["target"] = target
    item["responses"] = [_plain(response) for response in sample["filtered_resps"]]
    return item | {metric: _plain(sample[metric]) for metric in sample["metrics"]}


def _plain(value: Any) -> Any:
    """JSON types: log-likelihoods as floats without the greedy flag, tuples as lists."""
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], bool):
        return float(value[0])
    if isinstance(value, (tuple, list)):
        return [_plain(one) for one in value]
    return value if isinstance(value, (str, int, float)) or value is None else float(value)
