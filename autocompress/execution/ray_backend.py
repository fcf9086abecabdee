"""Runs trials with Ray Tune: joins or starts Ray, keeps workers busy from the study, and leaves nothing behind."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `stop_signals` handles them
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Tune's own snapshots of all trials are never read: the study on the driver's disk is the truth
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")

import ray
from ray import tune
from ray._private import ray_constants
from ray.tune.schedulers import TrialScheduler

from autocompress.config import SearchSettings
from autocompress.devices import CPU
from autocompress.errors import InputError
from autocompress.execution.abort_stopper import AbortStopper
from autocompress.execution.cluster_device import ClusterDevice
from autocompress.execution.optuna_searcher import OptunaSearcher
from autocompress.execution.retry_callback import worker_losses_restart_trials
from autocompress.execution.shared_context import SharedContext
from autocompress.execution.worker import Worker
from autocompress.latency.target_device import TargetDevice
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.search_context import SearchContext, device_here
from autocompress.stop_signals import ends_as_exceptions, handlers_kept

_MAX_BASE = 14
_UNRESERVED_PER_GPU = 4


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
    with LockedTempDir(_short_folder()) as scratch:
        with handlers_kept():  # Ray sets some of its own
            if settings.ray_address is not None:
                _join(settings.ray_address)
            else:
                # Ray lets all users write into its folder: it lies in a private one
                _start_local(settings, scratch.path / "ray")
        try:
            _check_resource(settings)
            _check_room(settings)
            with ends_as_exceptions():
                yield
        finally:
            ray.shutdown()


@contextmanager
def open_target_device(settings: SearchSettings) -> Iterator[TargetDevice | None]:
    """The machine that the model is for, where it is one of the cluster; None is the driver's.

    Raises:
        InputError: see `ray_cluster`.
    """
    if settings.latency_resource is None:
        yield None
        return
    with ray_cluster(settings):
        yield ClusterDevice(settings.latency_resource, settings.runtime, settings.n_threads)


def n_concurrent(settings: SearchSettings) -> int:
    """Trials at the same time: as set, else as many as Ray has CPUs, and the GPUs that they reserve, for."""
    if settings.n_workers is not None:
        return settings.n_workers
    resources = ray.cluster_resources()
    n_cpus = resources.get("CPU", 1.0)
    fits = [n_cpus / settings.cpus_per_trial if settings.cpus_per_trial > 0 else n_cpus]
    if settings.gpus_per_trial > 0:
        fits.append(resources.get("GPU", 0.0) / settings.gpus_per_trial)
    elif settings.ray_address is None and device_here(settings).type != CPU.type:
        fits.append(_UNRESERVED_PER_GPU)  # they all share what this process sees
    return max(1, int(min(fits)))


def run_trials(
    searcher: OptunaSearcher,
    context: SearchContext,
    stop: AbortStopper,
    callbacks: Sequence[tune.Callback] = (),
    scheduler: TrialScheduler | None = None,
    seconds: float | None = None,
) -> None:
    """Runs the searcher's trials on the Ray that is initialized.

    Returns when the searcher has no more; early on Ctrl-C, at the time limit, or when there is a reason to stop.

    Args:
        searcher: gives the trials and takes their results.
        context: what the trials share; it goes to the object store once, and from there to each worker once.
        stop: ends all trials once it has a reason.
        callbacks: called with what happens to each trial.
        scheduler: may stop trials early; None runs each to its end.
        seconds: after which the trials end; None is no limit.
    """
    settings = context.settings
    resources = {"cpu": settings.cpus_per_trial, "gpu": settings.gpus_per_trial}
    with LockedTempDir() as scratch, worker_losses_restart_trials():
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(Worker, context=SharedContext.of(context)), resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=-1,  # the searcher says when there are no more
                max_concurrent_trials=n_concurrent(settings),
                reuse_actors=True,
                trial_name_creator=_name_of,
                trial_dirname_creator=_name_of,
                time_budget_s=seconds,
            ),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=str(scratch.path),
                verbose=0,
                stop=stop,
                callbacks=list(callbacks),
                failure_config=tune.FailureConfig(max_failures=settings.trial_retries),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # `CheckpointCallback` has the states
            ),
        )
        tuner.fit()


def _name_of(trial: Any) -> str:
    return str(trial.config["name"])


def _start_local(settings: SearchSettings, folder: Path) -> None:
    _keep_token_private()
    with _on_loopback():
        ray.init(
            address="local",  # without it Ray would join whatever cluster was started last on this machine
            num_cpus=_local_cpus(settings),
            num_gpus=None if settings.gpus_per_trial else 0,
            include_dashboard=settings.dashboard,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(folder),
        )


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Ray started or joined inside knows this machine as 127.0.0.1 only, so that all its servers listen there only.

    Ray takes `_node_ip_address="127.0.0.1"` for the machine's outer address and listens on all interfaces; this switch,
    meant for systems whose firewalls ask about each port, is what it listens to.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _short_folder() -> Path:
    """For temporary files; the paths of Ray's sockets in it may have 107 characters, so a long one will not do."""
    given, short = Path(tempfile.gettempdir()), Path("/") / "tmp"
    return short if len(str(given)) > _MAX_BASE and short.is_dir() else given


def _local_cpus(settings: SearchSettings) -> int:
    """CPUs reserved locally for `n_workers` trials at the same time, even on a machine of fewer cores."""
    if settings.n_workers is None:
        return os.cpu_count() or 1
    return max(1, round(settings.n_workers * settings.cpus_per_trial + 0.499))


def _join(address: str) -> None:
    host = address.rpartition(":")[0]
    try:
        with _on_loopback() if host in ("127.0.0.1", "localhost") else nullcontext():
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise InputError(
            f"ray_address must be that of a running cluster, but {address!r} is not ({error}); "
            "`ray start --head` starts one, docs/cluster.md says more"
        ) from error


def _keep_token_private() -> None:
    """Ray lets in who knows a token, which it keeps in the home folder, readable by whoever can look into that."""
    try:
        from ray._private.authentication.authentication_token_generator import generate_new_authentication_token
        from ray._private.authentication.authentication_token_setup import _get_default_token_path
    except ImportError:
        return  # a Ray without tokens
    file = _get_default_token_path()
    try:
        if file.is_file():
            file.chmod(0o600)
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="utf-8") as stream:  # noqa: PTH123
            stream.write(generate_new_authentication_token())
    except OSError:
        return  # Ray says what it needs


def _check_room(settings: SearchSettings) -> None:
    """Refuses trials that no machine of the cluster has room for: they would wait for ever."""
    wanted = {"CPU": settings.cpus_per_trial, "GPU": settings.gpus_per_trial}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        most = {name: max((node.get(name, 0.0) for node in nodes), default=0.0) for name in wanted}
        raise InputError(
            f"a machine must have room for a trial of {wanted['CPU']:g} CPUs and {wanted['GPU']:g} GPUs, but the "
            f"largest here has {most['CPU']:g} and {most['GPU']:g}; lower cpus_per_trial or gpus_per_trial"
        )


def _check_resource(settings: SearchSettings) -> None:
    name = settings.latency_resource
    if name is not None and name not in ray.cluster_resources():
        raise InputError(
            f"latency_resource must be a resource of the cluster, but no machine has {name!r}; on the device: "
            f"""ray start --address=HEAD:6379 --num-cpus=0 --resources='{{"{name}": 1}}'"""
        )
