"""Where trials are also logged: each name makes its callback, and what is missing is said in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from autocompress.errors import InputError, MissingExtraError
from autocompress.execution.loggers import loggers_named
from autocompress.results.run_folder import RunFolder

RUNGS = [{"steps": steps, "latency_ratio": 0.4, "metrics": {"accuracy": 0.5 + steps / 10}} for steps in (0, 2)]


class HashableTrial(SimpleNamespace):
    __hash__ = object.__hash__


def trial(folder: Path) -> Any:
    config = {"number": 3, "name": "trial_0003", "candidate": "{}", "n_failures": 0}
    return HashableTrial(
        trial_id="a",
        config=config,
        evaluated_params=config,
        status="RUNNING",
        local_path=str(folder),
        trainable_name="W",
    )


def logged(callback: Any, given: Any) -> None:
    """One trial from its start to its end, as Tune tells its callbacks."""
    callback.setup(experiment_name="tune")
    callback.on_trial_start(1, [given], given)
    for i, rung in enumerate(RUNGS):
        callback.on_trial_result(1, [given], given, {**rung, "training_iteration": i + 1, "timesteps_total": None})
    callback.on_trial_complete(2, [given], given)
    callback.on_experiment_end([given])


def test_an_unknown_logger_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"loggers must be among \['mlflow', 'tensorboard', 'wandb'\], but got 'x'"):
        loggers_named(["x"], RunFolder(tmp_path))


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    if name == "mlflow":
        monkeypatch.setitem(sys.modules, "ray.air.integrations.mlflow", None)
    with pytest.raises(MissingExtraError, match=rf"the logger '{name}' needs .* pip install 'autocompress\[{name}\]'"):
        loggers_named([name], RunFolder(tmp_path))


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of the database library below it
def test_mlflow_gets_a_run_with_the_metrics_of_each_rung(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="the extra `mlflow`")
    store = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    mlflow.set_tracking_uri(store)
    (callback,) = loggers_named(["mlflow"], RunFolder(tmp_path / "mine"))
    logged(callback, trial(tmp_path))
    client = mlflow.tracking.MlflowClient(store)
    experiment = client.get_experiment_by_name("mine")
    (run,) = client.search_runs([experiment.experiment_id])
    steps = [point.value for point in client.get_metric_history(run.info.run_id, "steps")]
    assert steps == [0, 2] and run.info.status == "FINISHED"
    assert run.data.params["name"] == "trial_0003"


@pytest.mark.filterwarnings("ignore")  # W&B's own
def test_wandb_keeps_a_run_with_each_rung_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="the extra `wandb`")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "mine"
    run.mkdir()
    (tmp_path / "tune").mkdir()
    ray.init(address="local", num_cpus=1, include_dashboard=False)
    try:
        (callback,) = loggers_named(["wandb"], RunFolder(run))
        logged(callback, trial(tmp_path / "tune"))
    finally:
        ray.shutdown()
    (file,) = run.glob("wandb/offline-run-*/run-a.wandb")
    told = file.read_bytes()
    assert b"trial_0003" in told and told.count(b"latency_ratio") >= 2 and b"metrics/accuracy" in told
