"""MLflow: a run on a server, or in a database file beside the study's folders."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from filelock import FileLock
from omegaconf import DictConfig, OmegaConf

from dualscale_mamba.report.collect import flattened
from dualscale_mamba.tracking import content
from dualscale_mamba.tracking.base import first_line, require, without_harm

NAME, DATABASE, ARTIFACTS = "MLflow", "mlflow.db", "mlartifacts"
JOB = "job_id"
# What the server takes in one call, and of one value.
BATCH, VALUE_LENGTH = 100, 500
PORTS = {"http": 80, "https": 443}
Point = tuple[str, float, int]  # name, value, step

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MlflowTracker:
    """Keeps one MLflow run for each job; a job that is repeated goes on with its run.

    Args:
        experiment: Name of the experiment.
        tracking_uri: A server or a database; None for the file ``mlflow.db`` beside the runs' folders, which
            ``mlflow ui --backend-store-uri sqlite:///PATH`` shows.
        timeout: Seconds to wait for a server.
    """

    experiment: str = "dualscale_mamba"
    tracking_uri: str | None = None
    timeout: float = 10.0

    def __post_init__(self) -> None:
        require("mlflow", "mlflow")
        if self.tracking_uri is None:
            require("sqlalchemy", "mlflow")

    @contextmanager
    def tracking(self, folder: Path, config: DictConfig, run_id: str) -> Iterator[MlflowRun]:
        """See :class:`~dualscale_mamba.tracking.base.Tracker`."""
        run = self._start(folder, config, run_id)
        try:
            yield run
        except BaseException:
            run.end("FAILED")
            raise
        run.end("FINISHED")

    def _start(self, folder: Path, config: DictConfig, run_id: str) -> MlflowRun:
        try:
            return self._open(folder, config, run_id)
        except Exception as error:  # the client's, the database's and the network's errors share no base
            logger.warning("MLflow cannot start (%s); this run is not logged there", first_line(error))
            return MlflowRun(None, "")

    def _open(self, folder: Path, config: DictConfig, run_id: str) -> MlflowRun:
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        self._knock()
        study = content.study_of(folder).absolute()
        study.mkdir(parents=True, exist_ok=True)
        with FileLock(str(study / f".{DATABASE}.lock")):  # the first one makes tables and the experiment
            client = MlflowClient(tracking_uri=self.tracking_uri or f"sqlite:///{study / DATABASE}")
            known = client.get_experiment_by_name(self.experiment)
            place = None if self.tracking_uri else (study / ARTIFACTS).as_uri()
            experiment = known.experiment_id if known else client.create_experiment(self.experiment, place)
        found = client.search_runs([experiment], f"tags.{JOB} = '{run_id}'", max_results=1)
        if found:
            client.update_run(found[0].info.run_id, status="RUNNING")
            return MlflowRun(client, found[0].info.run_id, repeated=True)
        tags = {JOB: run_id, "arm": str(config.arm), "group": str(config.group or config.name)}
        tags |= {str(tag): "true" for tag in config.tags}
        made = client.create_run(experiment, run_name=str(config.name), tags=tags)
        run = MlflowRun(client, made.info.run_id)
        resolved = OmegaConf.to_container(config, resolve=True)
        assert isinstance(resolved, dict)
        run.settings({str(key): value for key, value in resolved.items()})
        return run

    def _knock(self) -> None:
        """Try the server's port: the client itself tries again for minutes.

        Raises:
            OSError: Nobody answers.
        """
        server = urlsplit(self.tracking_uri or "")
        if server.scheme in PORTS and server.hostname:
            port = server.port or PORTS[server.scheme]
            socket.create_connection((server.hostname, port), timeout=self.timeout).close()


@dataclass(frozen=True)
class MlflowRun:
    """One run of MLflow.

    Attributes:
        client: ``mlflow.tracking.MlflowClient``, or None where it could not start.
        run_id: MLflow's own id.
        repeated: Whether the run may have numbers already.
    """

    client: Any
    run_id: str
    repeated: bool = False

    def log(self, result: Mapping[str, Any], folder: Path) -> None:
        """See :class:`~dualscale_mamba.tracking.base.Tracked`: numbers, curves over the layers, files."""
        if self.client is not None:
            without_harm(NAME, lambda: self._send(result, folder))

    def end(self, status: str) -> None:
        """Close the run."""
        if self.client is not None:
            without_harm(NAME, lambda: self.client.set_terminated(self.run_id, status))

    def settings(self, config: Mapping[str, Any]) -> None:
        """Parameters, which MLflow never changes afterwards; the whole configuration is a file."""
        from mlflow.entities import Param

        found = [Param(key, str(value)[:VALUE_LENGTH]) for key, value in flattened(config)]
        for first in range(0, len(found), BATCH):
            self.client.log_batch(self.run_id, params=found[first : first + BATCH])
        self.client.log_dict(self.run_id, dict(config), "config.json")

    def _send(self, result: Mapping[str, Any], folder: Path) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [(name, value, 0) for name, value in content.scalars(result).items()]
        for row in content.layer_rows(result):
            points += [(name, value, int(row["layer"])) for name, value in row.items() if name != "layer"]
        kept = self._kept(points) if self.repeated else set()
        new = [
            Metric(name, value, now, step) for name, value, step in points if (name, value, step) not in kept
        ]
        for first in range(0, len(new), BATCH):
            self.client.log_batch(self.run_id, metrics=new[first : first + BATCH])
        facts = {key: str(content.provenance(result)[key]) for key in ("hardware", "git_sha", "kernel_hash")}
        for key, value in facts.items():
            self.client.set_tag(self.run_id, key, value)
        for path in [folder / "result.json", content.picture(folder), *content.items(folder)]:
            if path is not None and path.is_file():
                self.client.log_artifact(self.run_id, str(path))

    def _kept(self, points: Sequence[Point]) -> set[Point]:
        """Points that the run has from an earlier time: none is kept twice."""
        names = dict.fromkeys(name for name, _, _ in points)
        histories = {name: self.client.get_metric_history(self.run_id, name) for name in names}
        return {(name, p.value, p.step) for name, history in histories.items() for p in history}
