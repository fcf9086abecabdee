"""Whether a run was made here by this user: what it would import is signed with a key of this user's."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import platformdirs

from autocompress.config import SearchSettings
from autocompress.errors import InputError
from autocompress.results.run_folder import RunFolder
from autocompress.tasks import TASKS
from autocompress.tasks.identifiers import is_task_id, read_task_id

KEY_VARIABLE = "AUTOCOMPRESS_KEY_FILE"
_N_BYTES = 32


def imports_of(task_spec: str | None, settings: SearchSettings) -> list[str]:
    """What resuming a run imports or connects to besides this package, a line for each.

    Args:
        task_spec: text that loads the task again, or None where the task is given as an object.
        settings: of the search.
    """
    found: list[str] = []
    if task_spec is not None and _is_code(task_spec):
        found.append(f"task {task_spec}")
    for name in ("sampler", "importance", "runtime"):
        value = getattr(settings, name)
        if ":" in value:
            found.append(f"{name} {value}")
    if settings.ray_address is not None:
        found.append(f"ray_address {settings.ray_address}")
    return found


def signature_of(imports: Sequence[str]) -> str:
    """Signs with this user's key, which is made where there is none; "" where none can be made."""
    key = _key(make=True)
    return "" if key is None else _signed(key, imports)


def is_own(imports: Sequence[str], signature: str) -> bool:
    """Whether this user signed these imports on this machine."""
    key = _key(make=False)
    return key is not None and hmac.compare_digest(_signed(key, imports).encode(), signature.encode())


def require_trust(folder: RunFolder, trust: bool, gets_task: bool = False) -> None:
    """Refuses to resume a run that would import something and was not made on this machine by this user.

    Args:
        folder: of the run.
        trust: whether the user trusts it.
        gets_task: whether the task is given as an object, so that the one that the run names is not imported.

    Raises:
        InputError: not a run folder, or not to be trusted; lists what would be imported.
    """
    info = folder.read_info()
    imports = imports_of(None if gets_task else info.task_spec, info.settings)
    if trust or not imports or is_own(imports_of(info.task_spec, info.settings), info.signature):
        return
    raise InputError(
        f"{folder.path} was not made on this machine by this user, and resuming it runs code that it names: "
        f"{'; '.join(imports)}. If you trust it, say --trust (from Python: trust=True)"
    )


def _is_code(task_spec: str) -> bool:
    if task_spec in TASKS:
        return False
    try:
        return not is_task_id(task_spec) or bool(read_task_id(task_spec).trust_remote_code) or ":" in _metric(task_spec)
    except InputError:
        return True


def _metric(task_spec: str) -> str:
    return read_task_id(task_spec).metric or ""


def _signed(key: bytes, imports: Sequence[str]) -> str:
    return hmac.new(key, json.dumps(list(imports)).encode(), hashlib.sha256).hexdigest()


def _key(make: bool) -> bytes | None:
    file = Path(os.environ.get(KEY_VARIABLE) or platformdirs.user_data_path("autocompress") / "key")
    try:
        if make and not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            with open(handle, "wb") as stream:  # noqa: PTH123 - a handle, not a path
                stream.write(secrets.token_bytes(_N_BYTES))
        key = file.read_bytes()
    except FileExistsError:  # another process made it at this moment
        return _key(make=False)
    except OSError:
        return None
    return key if len(key) == _N_BYTES else None
