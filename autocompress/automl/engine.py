"""Runs trials with Ray Tune: joins or starts Ray, keeps workers busy from the study, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune's own snapshots of all trials are never read: the study on the driver's disk is the truth
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler

from autocompress.automl.asker import StudySearcher
from autocompress.automl.bench import Job
from autocompress.automl.scratch import Scratch
from autocompress.automl.stop import Stop
from autocompress.automl.worker import Worker
from autocompress.config import SearchSettings
from autocompress.errors import InputError


@contextmanager
def ray_cluster(settings: SearchSettings) -> Iterator[None]:
    """Ray for the time of a search: the cluster at `ray_address`, or a local one that starts and stops here.

    A local Ray listens on the loopback address only, and its files lie in a scratch folder that is removed.

    Raises:
        InputError: there is no cluster at the address, or it has no machine with the latency resource.
    """
    if ray.is_initialized():
        _check_resource(settings)
        yield
        return
    with Scratch() as scratch:
        if settings.ray_address is not None:
            _join(settings.ray_address)
        else:
            _start_local(settings, scratch.path)
        try:
            _check_resource(settings)
            yield
        finally:
            ray.shutdown()


def n_concurrent(settings: SearchSettings) -> int:
    """Trials at the same time: as set, else as many as Ray has CPUs for."""
    if settings.n_workers is not None:
        return settings.n_workers
    n_cpus = ray.cluster_resources().get("CPU", 1.0)
    return max(1, int(n_cpus / settings.cpus_per_trial)) if settings.cpus_per_trial > 0 else int(n_cpus)


def run_trials(
    searcher: StudySearcher,
    job: Job,
    n_trials: int,
    stop: Stop,
    callbacks: Sequence[tune.Callback] = (),
    scheduler: TrialScheduler | None = None,
) -> None:
    """Runs up to `n_trials` more trials on the Ray that is initialized.

    Returns early on Ctrl-C, at the time limit, when there is a reason to stop, or when the searcher has no more.

    Args:
        searcher: gives the trials and takes their results.
        job: what the trials share; it goes to the object store once, and from there to each worker once.
        n_trials: how many more.
        stop: looked at all the time.
        callbacks: told of what happens to each trial.
        scheduler: may stop trials early; None lets each go to its end.
    """
    settings = job.settings
    resources = {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}
    with Scratch() as scratch:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Worker, job=job), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=n_trials,
                max_concurrent_trials=n_concurrent(settings),
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
                time_budget_s=None if settings.minutes is None else 60 * settings.minutes,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch.path),
                verbose=0,
                stop=stop,
                callbacks=list(callbacks),
                failure_config=tune.FailureConfig(max_failures=settings.trial_retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # `Keeper` has the states
            ),
        )
        tuner.fit()


def _name_of(trial: Any) -> str:
    return str(trial.config["name"])


def _start_local(settings: SearchSettings, folder: Path) -> None:
    ray.init(
        address="local",  # without it Ray would join whatever cluster was started last on this machine
        num_cpus=_local_cpus(settings),
        num_gpus=None if settings.gpus_per_trial else 0,
        include_dashboard=settings.dashboard,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder),
    )


def _local_cpus(settings: SearchSettings) -> int:
    """So many that the trials asked for run at the same time, even on a machine of fewer cores."""
    if settings.n_workers is None:
        return os.cpu_count() or 1
    return max(1, round(settings.n_workers * settings.cpus_per_trial + 0.499))


def _join(address: str) -> None:
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"ray_address must be that of a running cluster, but {address!r} is not ({error}); "
            "`ray start --head` starts one, docs/cluster.md says more"
        ) from error


def _check_resource(settings: SearchSettings) -> None:
    name = settings.latency_resource
    if name is not None and name not in ray.cluster_resources():
        raise InputError(
            f"latency_resource must be a resource of the cluster, but no machine has {name!r}; on the device: "
            f"""ray start --address=HEAD:6379 --num-cpus=0 --resources='{{"{name}": 1}}'"""
        )
