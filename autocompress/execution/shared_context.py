"""How the context of a search reaches its workers: by reference, so that a worker can report what it cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ray

from autocompress.config import SearchSettings
from autocompress.search_context import SearchContext


@dataclass(frozen=True)
class SharedContext:
    """A context in Ray's object store.

    Attributes:
        settings: of the search, which every worker can read.
        reference: one object reference, in a list: Ray passes it on as it is. Reading it fails on a machine that lacks
            a module of the task.
    """

    settings: SearchSettings
    reference: list[Any]

    @classmethod
    def of(cls, context: SearchContext) -> SharedContext:
        """Puts a context into the object store of the Ray that is initialized."""
        return cls(context.settings, [ray.put(context)])

    def get(self) -> SearchContext:
        """The context; each worker of a machine reads its arrays from the same memory.

        Raises:
            Exception: whatever reading the task raises here, such as a missing module.
        """
        context = ray.get(self.reference[0])
        assert isinstance(context, SearchContext)
        return context
