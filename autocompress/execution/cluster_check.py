"""What can be known before Ray starts: whether this machine has what trials ask for, whether a cluster answers."""

from __future__ import annotations

import os
import socket

import ray
from ray._private import services

from autocompress.config import SearchSettings
from autocompress.errors import InputError

_SECONDS = 5.0
_MOST_PER_CORE = 8  # workers; more of them only wait for each other
_LEAST = 16
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"  # and empty SETTINGS
_SETTINGS = 4


def check_cluster(settings: SearchSettings) -> None:
    """Refuses what no Ray could give, before any long work; a Ray that this process has joined already is asked later.

    Raises:
        InputError: a trial asks for more than this machine has, or no cluster answers at the address.
    """
    if ray.is_initialized():
        return
    if settings.ray_address is None:
        _check_here(settings)
    elif "://" not in settings.ray_address:
        _check_address(settings.ray_address)


def _check_here(settings: SearchSettings) -> None:
    n_cores = os.cpu_count() or 1
    if settings.cpus_per_trial > n_cores:
        raise InputError(
            f"`cpus_per_trial <= {n_cores}` must hold, the cores of this machine, but got {settings.cpus_per_trial:g}; "
            "a larger machine is joined by ray_address"
        )
    most = max(_LEAST, _MOST_PER_CORE * n_cores)
    if settings.n_workers is not None and settings.n_workers > most:
        raise InputError(
            f"`n_workers <= {most}` must hold on this machine of {n_cores} cores, but got {settings.n_workers}; "
            "more machines are joined by ray_address"
        )
    n_gpus = _n_gpus() if settings.gpus_per_trial > 0 else 0
    if settings.gpus_per_trial > n_gpus:
        raise InputError(
            f"`gpus_per_trial <= {n_gpus}` must hold, the GPUs of this machine, but got {settings.gpus_per_trial:g}"
        )


def _n_gpus() -> int:
    """As Ray finds them itself."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    return 0 if manager is None else int(manager.get_current_node_num_accelerators())


def _check_address(address: str) -> None:
    wrong = f"ray_address must be that of a running cluster, but {address!r}"
    way_out = "`ray start --head` starts one, docs/cluster.md says more"
    try:
        found = services.canonicalize_bootstrap_address(address) if address == "auto" else address
    except (ConnectionError, ValueError, OSError) as error:
        raise InputError(f"{wrong} is not ({error}); {way_out}") from error
    host, _, port = str(found).rpartition(":")
    if found is None or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(f"{wrong} is not of the form HOST:PORT, and none runs here; {way_out}")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as connection:
            connection.settimeout(_SECONDS)
            connection.sendall(_PREFACE)
            answer = connection.recv(9)
    except OSError as error:
        raise InputError(f"{wrong} does not answer ({error}); {way_out}") from error
    if len(answer) < 4 or answer[3] != _SETTINGS:
        raise InputError(f"{wrong} is something else than Ray; {way_out}")
