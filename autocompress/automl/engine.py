"""Runs trials with Ray Tune: starts Ray, keeps workers busy from the study, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray import tune

from autocompress.automl.asker import StudySearcher
from autocompress.automl.bench import Job
from autocompress.automl.worker import Worker

_MAX_RETRIES = 1


def run_trials(searcher: StudySearcher, job: Job, n_trials: int, folder: Path) -> None:
    """Runs up to `n_trials` more trials; returns early on Ctrl-C, at the time limit, or when the searcher has no more.

    Ray keeps its own state in `folder` while it runs; nobody reads it afterwards, and it is removed.

    Args:
        searcher: gives the trials and takes their results.
        job: what the trials share.
        n_trials: how many more.
        folder: for Ray, inside the run's folder.
    """
    settings = job.settings
    n_workers = settings.n_workers or os.cpu_count() or 1
    own_ray = not ray.is_initialized()
    if own_ray:
        _start_ray(settings.ray_address, n_workers)
    try:
        trainable = tune.with_resources(tune.with_parameters(Worker, job=job), {"cpu": 1})
        tuner = tune.Tuner(
            trainable,
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                num_samples=n_trials,
                max_concurrent_trials=n_workers,
                reuse_actors=True,
                time_budget_s=None if settings.minutes is None else 60 * settings.minutes,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(folder.resolve()),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=_MAX_RETRIES),
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1, checkpoint_frequency=1),
            ),
        )
        tuner.fit()
    finally:
        if own_ray:
            ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _start_ray(address: str | None, n_workers: int) -> None:
    if address is not None:
        ray.init(address=address, log_to_driver=False)
        return
    ray.init(
        num_cpus=n_workers,
        num_gpus=0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
    )
