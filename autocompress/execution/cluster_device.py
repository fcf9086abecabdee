"""A machine of the Ray cluster as the target device: files, inputs and outputs travel to it and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
from torch import Tensor

from autocompress.latency import PairedTiming
from autocompress.latency.target_device import LocalDevice
from autocompress.locked_temp_dir import LockedTempDir
from autocompress.runtimes import Session
from autocompress.task import Inputs

_N_KEPT = 3  # files loaded at the same time: the reference, the latest, and the one before


class ClusterDevice:
    """A machine of the Ray cluster with a resource of that name; see `TargetDevice`.

    Files, inputs and outputs travel; the device needs the package and the runtime, neither the task nor its data.
    """

    is_here = False

    def __init__(self, resource: str, runtime: str, n_threads: int) -> None:
        options = {"num_cpus": 0, "resources": {resource: 1}, "max_restarts": -1}
        self._actor: Any = ray.remote(_Loaded).options(**options).remote(runtime, n_threads)

    def load(self, file: Path) -> Session:
        """See `TargetDevice`."""
        return RemoteSession(self._actor, file.name, file.read_bytes())

    def time(
        self, candidate: Session, reference: Session, inputs: Inputs, n_rounds: int, idle_ms: float | None = None
    ) -> PairedTiming:
        """See `TargetDevice`."""
        assert isinstance(candidate, RemoteSession) and isinstance(reference, RemoteSession)
        call = self._actor.time.remote(candidate.file, reference.file, inputs, n_rounds, idle_ms)
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
        self, candidate: _File, reference: _File, inputs: Inputs, n_rounds: int, idle_ms: float | None
    ) -> PairedTiming:
        return self._here.time(self._session(candidate), self._session(reference), inputs, n_rounds, idle_ms)

    def _session(self, file: _File) -> Session:
        name, (content,) = file
        key = str(content.hex())
        session = self._sessions.pop(key, None)
        if session is None:
            with LockedTempDir() as scratch:
                path = scratch.path / name
                data: Any = ray.get(content)
                path.write_bytes(data)
                session = self._here.load(path)
        self._sessions[key] = session  # the latest last
        while len(self._sessions) > _N_KEPT:
            del self._sessions[next(iter(self._sessions))]
        return session
