"""Why a search must stop before its trials are done."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ray.tune import Stopper

from autocompress.errors import AutocompressError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE, errno.EACCES, errno.EPERM)


class AbortStopper(Stopper):
    """Tells Tune to stop once there is a reason; see `tune.Stopper`.

    Attributes:
        reason: the first one; the driver raises it after the front so far is written.
    """

    def __init__(self) -> None:
        self.reason: AutocompressError | None = None

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No single trial is stopped."""
        return False

    def stop_all(self) -> bool:
        """Whether there is a reason."""
        return self.reason is not None

    def abort(self, reason: AutocompressError) -> None:
        """Stops the search; a later reason does not replace the first."""
        self.reason = self.reason or reason

    @contextmanager
    def abort_on_full_disk(self) -> Iterator[None]:
        """Around writing to the run's folder: a disk that takes no more, or a folder that is gone, stops the search."""
        try:
            yield
        except StorageError as error:
            self.abort(error)
        except OSError as error:
            if error.errno in _FULL:
                self.abort(StorageError(f"the run's disk takes no more ({error}); make room, then resume"))
            elif error.errno in _GONE:
                self.abort(StorageError(f"the run's folder was removed or changed ({error}); the search ends here"))
            else:
                raise
