"""What the runtime's own tool gives without a search: the file that a front must beat."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from autocompress.declared_types import require_types
from autocompress.errors import InputError
from autocompress.files import digest_of_file, path_inside, read_json, write_atomically
from autocompress.results.objectives import ratio
from autocompress.results.pareto import ParetoFront
from autocompress.results.records import Latency

FILE_NAME = "peer.json"


@dataclass(frozen=True)
class Peer:
    """The uncompressed model as the runtime's own tool makes it smaller.

    Attributes:
        name: for tables, such as "int8 by quantize_static".
        file: name of the file in the folder of `peer.json`.
        metrics: of each split.
        latency: of the file.
        size_mib: of the file.
        digests: of the files in the folder, by their names; empty in peers of earlier versions.
    """

    name: str
    file: str
    metrics: Mapping[str, Mapping[str, float]]
    latency: Latency
    size_mib: float
    digests: Mapping[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Writes `peer.json`, with the digests of the files that are there."""
        digests = {path.name: digest_of_file(path) for path in sorted(folder.iterdir()) if path.name != FILE_NAME}
        write_atomically(folder / FILE_NAME, json.dumps({**asdict(self), "digests": digests}, indent=1))


def read_peer(folder: Path) -> Peer | None:
    """The peer in a folder; None where none was measured.

    Raises:
        InputError: the file is damaged.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        data = read_json(path, "a peer")
        peer = Peer(**{**data, "latency": Latency(**data["latency"])})
        require_types(peer, Peer)
    except (KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged: {error}; remove the folder, and `resume` measures it again") from error
    path_inside(folder, peer.file)
    return peer


def peer_text(peer: Peer, front: ParetoFront) -> str:
    """The peer's figures on the selection split, and whether a point of the front is as fast and as good."""
    objectives = front.objectives
    value = peer.metrics.get("selection", {}).get(objectives.metric)
    if value is None:
        return f"{peer.name}: {peer.latency.ratio:.3f}x"
    figures = f"without a search, {peer.name} gives {peer.latency.ratio:.3f}x and {objectives.metric} {value:.4f}"
    gain = objectives.gain(value)
    points = [*front.points, *([front.baseline] if front.baseline is not None else [])]
    if any(ratio(point) <= peer.latency.ratio and objectives.gain_of(point) >= gain for point in points):
        return f"{figures}; there is a point that is as fast and at least as good"
    return (
        f"{figures}; WARNING: no point of the front is as fast and as good; `pick --peer` takes that file, longer "
        "training may beat it"
    )
