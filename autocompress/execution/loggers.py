"""Where trials are also logged, by name: TensorBoard, MLflow, Weights & Biases; each behind an extra."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ray import tune
from ray.tune.logger import TBXLoggerCallback

from autocompress.errors import InputError, MissingExtraError
from autocompress.results.run_folder import RunFolder


class TensorBoard(TBXLoggerCallback):
    """Writes each trial's rungs to `tensorboard/trial_0042` in the run's folder.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = folder

    def log_trial_start(self, trial: Any) -> None:
        """A restarted trial writes into the same folder."""
        if trial in self._trial_writer:
            self._trial_writer[trial].close()
        path = self._folder.path / "tensorboard" / trial.config["name"]
        self._trial_writer[trial] = self._summary_writer_cls(str(path), flush_secs=30)
        self._trial_result[trial] = {}


def _tensorboard(folder: RunFolder) -> tune.Callback:
    return TensorBoard(folder)


def _mlflow(folder: RunFolder) -> tune.Callback:
    """A run of the experiment for each trial; the server is the one that MLFLOW_TRACKING_URI names."""
    import mlflow
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    server = mlflow.get_tracking_uri()  # Ray's callback would forget it where it is not told
    return MLflowLoggerCallback(tracking_uri=server, experiment_name=folder.path.resolve().name)


def _wandb(folder: RunFolder) -> tune.Callback:
    """A run of the project for each trial; the key is the one that WANDB_API_KEY or `wandb login` gives.

    Its files lie in the run's folder: by itself it would write them into Tune's, which is removed before anyone can
    `wandb sync` those of a machine without a network (WANDB_MODE=offline).
    """
    import wandb  # Ray's callback would only complain when the first trial starts
    from ray.air.integrations.wandb import WandbLoggerCallback

    assert wandb is not None
    path = folder.path.resolve()
    texts = ["outcome", "so_far"]
    return WandbLoggerCallback(project="autocompress", group=path.name, excludes=texts, dir=str(path))


LOGGERS: dict[str, Callable[[RunFolder], tune.Callback]] = {
    "tensorboard": _tensorboard,
    "mlflow": _mlflow,
    "wandb": _wandb,
}
"""Name -> function of the run's folder that makes a callback of Tune. Keys and passwords are read by the libraries
themselves, from their own environment variables and files: they are in no setting, file or log of a run."""


def loggers_named(names: Iterable[str], folder: RunFolder) -> list[tune.Callback]:
    """The callbacks of those names.

    Raises:
        InputError: no such logger.
        MissingExtraError: its package is not installed.
    """
    callbacks = []
    for name in names:
        if name not in LOGGERS:
            raise InputError(f"loggers must be among {sorted(LOGGERS)}, but got {name!r}")
        try:
            callbacks.append(LOGGERS[name](folder))
        except ImportError as error:
            raise MissingExtraError(
                f"the logger {name!r} needs a package that is not installed ({error}); "
                f"pip install 'autocompress[{name}]'"
            ) from error
    return callbacks
