"""What no Ray could give is refused at once: more than the machine has, an address where none answers."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.execution import cluster_check
from autocompress.execution.cluster_check import check_cluster

N_CORES = os.cpu_count() or 1


def settings(**given: object) -> SearchSettings:
    return SearchSettings.from_dict(given)


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """Something that accepts connections and says `answer`, or nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                if answer is not None:
                    connection.sendall(answer)
                connection.recv(1024)
                time.sleep(0.2 if answer is not None else 3)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_what_fits_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_check, "_n_gpus", lambda: 1)
    check_cluster(settings())
    check_cluster(settings(n_workers=4, cpus_per_trial=0.5, gpus_per_trial=0.5))
    with listening(b"\x00\x00\x06\x04\x00\x00\x00\x00\x00") as address:
        check_cluster(settings(ray_address=address, cpus_per_trial=1000))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"cpus_per_trial": 1000}, f"`cpus_per_trial <= {N_CORES}`"),
        ({"gpus_per_trial": 1}, "`gpus_per_trial <= 0`"),
        ({"gpus_per_trial": 0.5}, "`gpus_per_trial <= 0`"),
        ({"n_workers": 100_000}, "`n_workers <= "),
        ({"ray_address": "nowhere"}, "form HOST:PORT"),
        ({"ray_address": "127.0.0.1:1"}, "does not answer"),
        ({"ray_address": "127.0.0.1:99999"}, "HOST:PORT"),
        ({"ray_address": "no.such.host.invalid:6379"}, "does not answer|is not"),
    ],
)
def test_what_does_not_is_refused_at_once(
    given: dict[str, object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_check, "_n_gpus", lambda: 0)
    begin = time.monotonic()
    with pytest.raises(InputError, match=message):
        check_cluster(settings(**given))
    assert time.monotonic() - begin < 15


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n", b"", None])
def test_something_else_listens_there(answer: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_check, "_SECONDS", 1.0)
    with listening(answer) as address, pytest.raises(InputError, match="something else than Ray|does not answer"):
        check_cluster(settings(ray_address=address))
