"""Why a compressed model is not faster, in words: compares its layer times with the uncompressed model's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from autocompress.report.point_files import PointFiles, TimeShares, time_shares
from autocompress.space.candidate import FULL_BITS, Candidate

_NAMED = 4
_WORTH_TELLING = 0.05  # share of the run below which a cause is not worth a sentence
_LESS_WORK = 0.75  # a layer with this share of its multiplications or less is expected to be faster
_NO_GAIN = 0.85  # and is not, if it still takes this share of its time
_SLOWER = 1.15  # more than that is no noise
_SMALL_MS = 0.02  # a layer that runs so shortly is bound by its start rather than by its work
_GRID = 8  # float channels that one vector register of common CPUs holds
_UNTOUCHED = 0.15


@dataclass(frozen=True)
class Finding:
    """One cause.

    Attributes:
        kind: "launch", "alignment", "split", "slower", "no gain", "borders", "untouched", "rest".
        text: a sentence or two.
        share: of the run's time that it is about, in [0, 1].
        layers: their paths, in network order.
    """

    kind: str
    text: str
    share: float
    layers: tuple[str, ...] = ()


def why_not_faster(candidate: Candidate, before: PointFiles, after: PointFiles, layers: Sequence[str]) -> list[Finding]:
    """The causes that limit a point's speed, the largest share first; empty without layer times.

    Args:
        candidate: of the point.
        before: files of the uncompressed model.
        after: files of the point.
        layers: paths in network order.
    """
    if before.times is None or after.times is None:
        return []
    times = time_shares(before.times, layers), time_shares(after.times, layers)
    causes = _layer_causes(candidate, before, after, times, layers)
    findings = [*_by_layer(causes, times[1]), *_borders(candidate, times[1], layers)]
    findings += [*_untouched(candidate, before, after, times[1], layers), *_rest(times[1])]
    return sorted((f for f in findings if f.share >= _WORTH_TELLING), key=lambda finding: -finding.share)


def _layer_causes(
    candidate: Candidate,
    before: PointFiles,
    after: PointFiles,
    times: tuple[TimeShares, TimeShares],
    layers: Sequence[str],
) -> dict[str, str]:
    """Layer -> why it gained nothing, for layers with less work or fewer bits but hardly less time."""
    causes = {}
    for path in layers:
        ms_before, ms_after = (part.layers.get(path, 0.0) for part in times)
        work = _work(after, path) / (_work(before, path) or 1)
        lighter = work <= _LESS_WORK or candidate.weight_bits.get(path, FULL_BITS) != FULL_BITS
        if not ms_after or not ms_before or not lighter or ms_after < _NO_GAIN * ms_before:
            continue
        if len(after.shapes.get(path, ())) > len(before.shapes.get(path, ())):
            causes[path] = "split"
        elif any(shape[0] % _GRID for shape in after.shapes.get(path, ())):
            causes[path] = "alignment"
        elif ms_after > _SLOWER * ms_before and path in candidate.weight_bits:
            causes[path] = "slower"
        else:
            causes[path] = "launch" if ms_after <= _SMALL_MS else "no gain"
    return causes


def _work(files: PointFiles, path: str) -> int:
    """Entries of the layer's weights: its multiplications at each position, the number of which stays."""
    return sum(math.prod(shape) for shape in files.shapes.get(path, ()))


_TEXTS = {
    "split": "two smaller layers in the place of one take as long as it did: each has to be started, and reads and "
    "writes memory in between",
    "alignment": f"the number of channels is no multiple of {_GRID}, so that part of each vector register computes "
    "nothing; a channel_grid of 8 or 16 in the search space avoids it",
    "launch": "so short that starting it takes most of the time, and less work changes little; dropping whole blocks "
    "does change it",
    "slower": "slower in few bits than in float: this runtime's kernel for such a layer loses more than it gains; "
    "offer it 32 bits only",
    "no gain": "less work, but as long as before: memory or the kernel, not arithmetic, sets the pace",
}


def _by_layer(causes: Mapping[str, str], shares: TimeShares) -> Iterator[Finding]:
    for kind, text in _TEXTS.items():
        paths = tuple(path for path, cause in causes.items() if cause == kind)
        if paths:
            share = sum(shares.layers[path] for path in paths) / shares.total_ms
            yield Finding(kind, f"{_listed(paths)}: {text}.", share, paths)


def _borders(candidate: Candidate, shares: TimeShares, layers: Sequence[str]) -> Iterator[Finding]:
    """Conversions between precisions, and between which neighbours they may stand."""
    if not shares.n_conversions:
        return
    bits = [candidate.weight_bits.get(path, FULL_BITS) for path in layers if path in shares.layers]
    paths = [path for path in layers if path in shares.layers]
    borders = [(paths[i], paths[i + 1]) for i in range(len(paths) - 1) if bits[i] != bits[i + 1]]
    where = (
        f"The precision changes {len(borders)} times along the network, first between {borders[0][0]} and "
        f"{borders[0][1]}; neighbours of like precision need no conversion"
        if borders
        else "They stand around operations that run in float, such as additions and pooling"
    )
    share = (shares.conversions_ms + shares.layout_ms) / shares.total_ms
    text = f"{shares.n_conversions} conversions between 8-bit and float numbers take {share:.0%} of the time. {where}."
    yield Finding("borders", text, share, tuple(path for border in borders for path in border))


def _untouched(
    candidate: Candidate, before: PointFiles, after: PointFiles, shares: TimeShares, layers: Sequence[str]
) -> Iterator[Finding]:
    """Layers that were not compressed."""
    paths = tuple(
        path
        for path in layers
        if path in shares.layers
        and before.shapes.get(path) == after.shapes.get(path)
        and path not in candidate.weight_bits
    )
    share = sum(shares.layers[path] for path in paths) / shares.total_ms
    if paths and share >= _UNTOUCHED:
        yield Finding(
            "untouched", f"{_listed(paths)}: left as in the uncompressed model, {share:.0%} of the time.", share, paths
        )


def _rest(shares: TimeShares) -> Iterator[Finding]:
    share = shares.other_ms / shares.total_ms
    if share >= _UNTOUCHED:
        what = f"{shares.n_other} operations without weights (additions, activations, pooling)"
        text = f"{what} take {share:.0%} of the time."
        yield Finding("rest", f"{text} Only dropping their block takes them away.", share)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more layers" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more
