"""The machine that a model is for: this one, or one of the cluster, where files are loaded, timed and asked."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

import ray
from torch import Tensor

from autocompress.latency import PairedTiming, time_sessions
from autocompress.runtimes import Session, runtime_named
from autocompress.task import Inputs

_N_KEPT = 3  # files loaded at the same time: the reference, the latest, and the one before


class Device(Protocol):
    """Where the target runtime runs.

    Attributes:
        is_here: whether it is the driver's machine.
    """

    is_here: bool

    def load(self, file: Path) -> Session:
        """Loads a runtime's file there; see `Runtime.load`."""

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, quiet_ms: float | None = None
    ) -> PairedTiming:
        """Times two sessions of this device against each other; see `time_sessions`."""


class LocalDevice:
    """See `Device`."""

    is_here = True

    def __init__(self, runtime: str, n_threads: int) -> None:
        self._runtime, self._n_threads = runtime_named(runtime), n_threads

    def load(self, file: Path) -> Session:
        """See `Device`."""
        return self._runtime.load(file, self._n_threads)

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, quiet_ms: float | None = None
    ) -> PairedTiming:
        """See `Device`."""
        return time_sessions(candidate, reference, inputs, n_rounds, quiet_ms=quiet_ms)


class ClusterDevice:
    """A machine of the Ray cluster with a resource of that name; see `Device`.

    Files, inputs and outputs travel; the device needs the package and the runtime, neither the task nor its data.
    """

    is_here = False

    def __init__(self, resource: str, runtime: str, n_threads: int) -> None:
        options = {"num_cpus": 0, "resources": {resource: 1}, "max_restarts": -1}
        self._actor: Any = ray.remote(_Loaded).options(**options).remote(runtime, n_threads)

    def load(self, file: Path) -> Session:
        """See `Device`."""
        return RemoteSession(self._actor, file.name, file.read_bytes())

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, quiet_ms: float | None = None
    ) -> PairedTiming:
        """See `Device`."""
        assert isinstance(candidate, RemoteSession) and isinstance(reference, RemoteSession)
        call = self._actor.time.remote(candidate.file, reference.file, inputs, n_rounds, quiet_ms)
        timing: PairedTiming = ray.get(call)
        return timing


class RemoteSession:
    """A file on another machine; see `Session`.

    Args:
        actor: the `_Loaded` there.
        name: of the file.
        content: of the file; it goes to the object store once, so that a restarted actor can load it again.
    """

    def __init__(self, actor: Any, name: str, content: bytes) -> None:
        self._actor = actor
        self.file = (name, [ray.put(content)])  # in a list, so that Ray passes the reference on as it is
        ray.get(actor.check.remote(self.file))

    def prepare(self, inputs: Inputs) -> object:
        """See `Session`."""
        return inputs

    def run(self, prepared: Any) -> object:
        """See `Session`; the way there and back takes longer than the run, so `ClusterDevice.time` times there."""
        return self.predict(prepared)

    def predict(self, inputs: Inputs) -> Tensor:
        """See `Session`."""
        outputs: Tensor = ray.get(self._actor.predict.remote(self.file, inputs))
        return outputs


_File = tuple[str, list[Any]]


class _Loaded:
    """The actor on the device: keeps the files that it was asked for last loaded."""

    def __init__(self, runtime: str, n_threads: int) -> None:
        self._here = LocalDevice(runtime, n_threads)
        self._sessions: dict[str, Session] = {}

    def check(self, file: _File) -> None:
        self._session(file)

    def predict(self, file: _File, inputs: Inputs) -> Tensor:
        return self._session(file).predict(inputs)

    def time(
        self, candidate: _File, reference: _File, inputs: Inputs, n_rounds: int, quiet_ms: float | None
    ) -> PairedTiming:
        return self._here.time(self._session(candidate), self._session(reference), inputs, n_rounds, quiet_ms)

    def _session(self, file: _File) -> Session:
        name, (content,) = file
        key = str(content.hex())
        session = self._sessions.pop(key, None)
        if session is None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / name
                data: Any = ray.get(content)
                path.write_bytes(data)
                session = self._here.load(path)
        self._sessions[key] = session  # the latest last
        while len(self._sessions) > _N_KEPT:
            del self._sessions[next(iter(self._sessions))]
        return session
