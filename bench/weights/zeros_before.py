"""The zeros that weights had before a method saw them, told from those that the method made."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from bench.core.errors import BenchError
from bench.core.pattern import Pattern
from bench.weights.patterns import holds, local
from bench.weights.targets import Target


class ZerosBefore:
    """The places of all zeros in the targets, a bit for each weight of a matrix that has some.

    Attributes:
        zeros: number of zeros.
        total: number of weights.
    """

    def __init__(self, targets: Iterable[Target]) -> None:
        self.zeros = self.total = 0
        self._places: dict[str, np.ndarray] = {}
        for target in targets:
            stored = target.stored
            self.total += stored.numel()
            zeros = stored.numel() - int(torch.count_nonzero(stored))
            if zeros:
                self.zeros += zeros
                self._places[target.name] = np.packbits((stored == 0).cpu().numpy())

    @property
    def fraction(self) -> float:
        """Zeros as a fraction of the weights."""
        return self.zeros / self.total

    def of(self, name: str) -> int:
        """Returns the zeros that one matrix had."""
        places = self._places.get(name)
        return 0 if places is None else int(np.bitwise_count(places).sum())

    def kept(self, targets: Iterable[Target]) -> int:
        """Returns how many of these zeros are zeros in `targets`, too."""
        kept = 0
        for target in targets:
            if (places := self._places.get(target.name)) is not None:
                now = np.packbits((target.stored == 0).cpu().numpy())
                kept += int(np.bitwise_count(places & now).sum())
        return kept

    def check_room(
        self, targets: list[Target], pattern: Pattern, sparsity: float, name: str
    ) -> None:
        """Refuses a model that is sparser already than what is asked for.

        N:M and other patterns may ask for zeros elsewhere: they are refused where they hold.

        Raises:
            BenchError: with both numbers.
        """
        rounding = len(targets) / self.total + 1e-4
        if not sparsity or self.fraction <= sparsity + rounding:
            return
        if all(holds(target.weight, local(pattern, target)) for target in targets):
            raise BenchError(
                f"{name} is {100 * self.fraction:.2f} % sparse already; "
                f"ask for a sparsity above that, not for {sparsity:g}"
            )
