"""Times of a file's nodes in one run, as data: one JSON file in the folder of each front point."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from autocompress.errors import InputError
from autocompress.files import read_json, write_atomically

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class NodeTime:
    """One node of a file as the runtime runs it, after its own fusions.

    Attributes:
        path: the module that the node comes from; "" for nodes that the runtime put in.
        op: the kernel's name in the runtime, such as "Conv" or "QLinearConv".
        ms: milliseconds in one run.
    """

    path: str
    op: str
    ms: float


@dataclass(frozen=True)
class LayerTimes:
    """Where the time of one run goes.

    Attributes:
        runtime: its name.
        n_runs: profiled runs.
        run_ms: median latency of an unwatched run; what the nodes sum to.
        profiled_ms: what the nodes summed to before the profiler's own cost was taken off.
        nodes: in the order in which they run.
    """

    runtime: str
    n_runs: int
    run_ms: float
    profiled_ms: float
    nodes: tuple[NodeTime, ...]

    def write(self, file: Path) -> None:
        """Writes JSON."""
        write_atomically(file, json.dumps({"schema": SCHEMA_VERSION, **asdict(self)}))

    @classmethod
    def read(cls, file: Path) -> LayerTimes:
        """The inverse of `write`.

        Raises:
            InputError: damaged, or of another schema version.
        """
        try:
            data = read_json(file, "layer times")
            schema = data.pop("schema")
            nodes = tuple(NodeTime(str(node["path"]), str(node["op"]), float(node["ms"])) for node in data.pop("nodes"))
            times = cls(nodes=nodes, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{file} must hold layer times, but: {error!r}") from error
        if schema != SCHEMA_VERSION:
            raise InputError(f"{file} has schema {schema!r}, but this version reads {SCHEMA_VERSION}")
        return times
