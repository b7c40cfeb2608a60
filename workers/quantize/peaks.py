"""Which samples hold the largest magnitudes of a graph's tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Magnitudes = NDArray[np.float32]


class Peaks:
    """The largest magnitude of each tensor in each sample, in the samples' order.

    Parameters:
        block: samples that are taken together, since the model runs no smaller batch.
    """

    def __init__(self, block: int = 1) -> None:
        self._block = max(1, block)
        self._found: dict[str, list[Magnitudes]] = {}
        self.are_finite = True  #: whether all values were

    def saw(self, name: str, magnitudes: Magnitudes, count: int) -> None:
        """Add a tensor's magnitudes in the next samples: one a sample, or one for all of them."""
        finite = np.isfinite(magnitudes)
        if not finite.all():
            self.are_finite = False
            magnitudes = np.where(finite, magnitudes, np.float32(0))
        self._found.setdefault(name, []).append(np.broadcast_to(magnitudes, (count,)))

    def tops(self) -> dict[str, np.float32]:
        """The largest magnitude of each tensor."""
        return {name: max(map(np.max, parts)) for name, parts in self._found.items()}

    def rows(self, most: int) -> NDArray[np.intp]:
        """Up to about so many samples, those first that hold the largest values of the most tensors."""
        counts: dict[int, int] = {}
        count = 0
        for parts in self._found.values():
            values = np.concatenate(parts)
            count = len(values)
            # The last block is a whole one too.
            first = int(np.argmax(values)) // self._block * self._block
            first = max(0, min(first, count - self._block))
            counts[first] = counts.get(first, 0) + 1
        taken: set[int] = set()
        for first in sorted(counts, key=lambda first: (-counts[first], first)):
            if taken and len(taken) + self._block > most:
                break
            taken.update(range(first, min(first + self._block, count)))
        return np.array(sorted(taken), np.intp)

    def near(self, share: float) -> NDArray[np.bool_]:
        """Marks the samples whose magnitude of some tensor is within this share of its largest.

        Of samples that are level the first: they are copies, or an operator saturates in them.
        """
        found: NDArray[np.bool_] | None = None
        for parts in self._found.values():
            values = np.concatenate(parts)
            if found is None:
                found = np.zeros(len(values), bool)
            most = values.max()
            level, first = np.unique(values, return_index=True)
            found[first[(level >= most * np.float32(1 - share)) & (level > 0)]] = True
        return np.zeros(0, bool) if found is None else found
