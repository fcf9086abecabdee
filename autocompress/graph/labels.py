"""Labels on the slots of tensor dimensions, and which of them are the same channel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Fixed:
    """A dimension whose size cannot change, and why."""

    why: str


Dim = Slots | Fixed
"""One dimension of a tensor: a label for each of its slots, or the reason why it keeps its size."""

Dims = tuple[Dim, ...]


class NoRuleError(Exception):
    """A rule does not cover this use of its op; the message completes "... is left as it is: "."""


class Labels:
    """Collects ties between labels and freezes of labels; `resolve` then finds the connected components.

    Ties are only written down, so that a rule costs one append, and the components are found at the end by
    vectorised hooking and pointer jumping (Shiloach and Vishkin, 1982), in near-linear time.
    """

    def __init__(self) -> None:
        self._n = 0
        self._ties: list[tuple[Slots, Slots]] = []
        self._frozen: list[tuple[Slots, str]] = []
        self._uniform: set[int] = set()

    def fresh(self, size: int, *, uniform: bool = False) -> Slots:
        """New labels, shape `(size,)`, tied to nothing; `uniform` when all slots hold equal values."""
        first = self._n
        self._n += size
        if uniform:
            self._uniform.update(range(first, self._n))
        return np.arange(first, self._n, dtype=np.int64)

    def is_uniform(self, dim: Dim) -> bool:
        """Whether the slots of `dim` were made equal to each other, by a constant or by repetition."""
        return not isinstance(dim, Fixed) and dim.size > 0 and int(dim[0]) in self._uniform

    def freeze(self, dim: Dim, why: str) -> None:
        """The labels of `dim` must keep their slots; the first reason given for a component is the one shown."""
        if not isinstance(dim, Fixed) and dim.size:
            self._frozen.append((dim.ravel(), why))

    def tie(self, first: Dim, second: Dim) -> None:
        """Slot i of one dimension is the same channel as slot i of the other; a fixed dimension freezes its partner.

        Raises:
            NoRuleError: the sizes differ.
        """
        if isinstance(first, Fixed):
            self.freeze(second, first.why)
        elif isinstance(second, Fixed):
            self.freeze(first, second.why)
        elif first.shape != second.shape:
            raise NoRuleError(f"sizes {first.size} and {second.size} do not line up")
        elif first is not second:
            self._ties.append((first, second))

    def tie_rows(self, table: Slots) -> Slots:
        """All rows of `table`, shape `(n_rows, n)`, are the same channels; returns the first row."""
        first: Slots = table[0]
        for row in table[1:]:
            self.tie(first, row)
        return first

    def resolve(self) -> tuple[Slots, dict[int, str]]:
        """The component of every label, shape `(n_labels,)`, and the reason of each frozen component."""
        component = self._components()
        reasons: dict[int, str] = {}
        for labels, why in self._frozen:
            for item in np.unique(component[labels]):
                reasons.setdefault(int(item), why)
        return component, reasons

    def _components(self) -> Slots:
        root = np.arange(self._n, dtype=np.int64)
        if not self._ties:
            return root
        left = np.concatenate([a for a, _ in self._ties])
        right = np.concatenate([b for _, b in self._ties])
        while True:
            lowest = np.minimum(root[left], root[right])
            hooked = root.copy()
            np.minimum.at(hooked, root[left], lowest)
            np.minimum.at(hooked, root[right], lowest)
            while not np.array_equal(hooked, hooked[hooked]):
                hooked = hooked[hooked]
            if np.array_equal(hooked, root):
                return root
            root = hooked
