"""The engine's own file beside a front: its figures, whether the front has its like, and a damaged file."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.results.pareto import front_of
from autocompress.results.peer import FILE_NAME, Peer, peer_text, read_peer
from autocompress.results.records import Latency, TrialRecord
from autocompress.space.candidate import Candidate
from tests.shared.objectives import of_accuracy

PEER = Peer("int8", "model.onnx", {"selection": {"accuracy": 0.9}}, Latency(0.6, 0.01, 0.6, 9), 0.1)


def _record(number: int, ratio: float, accuracy: float) -> TrialRecord:
    candidate = Candidate({"conv": number / 10}) if number else Candidate()
    return TrialRecord(number, "complete", "sampler", candidate, {"accuracy": accuracy}, Latency(ratio, 0, ratio, 9))


@pytest.mark.parametrize(
    ("point", "is_beaten"), [((0.6, 0.9), True), ((0.5, 0.95), True), ((0.61, 0.95), False), ((0.5, 0.89), False)]
)
def test_the_text_says_whether_the_front_has_its_like(point: tuple[float, float], is_beaten: bool) -> None:
    front = front_of([_record(0, 1.0, 0.95), _record(1, *point)], of_accuracy())
    text = peer_text(PEER, front)
    assert "0.600x" in text and "0.9000" in text
    assert ("WARNING" in text) != is_beaten


def test_the_uncompressed_model_answers_a_slower_peer() -> None:
    slow = Peer("int8", "model.onnx", {"selection": {"accuracy": 0.9}}, Latency(1.2, 0.01, 1.2, 9), 0.1)
    assert "WARNING" not in peer_text(slow, front_of([_record(0, 1.0, 0.95)], of_accuracy()))


def test_a_peer_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert read_peer(tmp_path) is None
    PEER.write(tmp_path)
    assert read_peer(tmp_path) == PEER
    for text in ("{}", '{"name": 1, "latency": 3}', "[]", "not json"):
        (tmp_path / FILE_NAME).write_text(text)
        with pytest.raises(InputError, match=FILE_NAME):
            read_peer(tmp_path)
