"""What hidden units would put into the regression of the output weights, at several places each; see `hidden_units`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from posteria.models.rectified import Rectified

if TYPE_CHECKING:
    from posteria.models.unit_sweeps import Chains, Lines

# Products of rectified lines are differences of sums: columns are written out where those may be off by more.
_MOST_ROUNDING = 1e-7


class Columns(ABC):
    """Columns of H units at K places of C chains, in units of the noise."""

    @abstractmethod
    def sweep(self, order: Tensor, chains: Chains) -> None:
        """Every unit's choice, in an order (H,), and then output weights: put down in ``chains``, maybe some of all."""

    @abstractmethod
    def __getitem__(self, part: slice) -> Columns:
        """Of some chains."""

    @abstractmethod
    def __len__(self) -> int:
        """C."""

    def sweep_all(self, order: Tensor, chains: Chains) -> None:
        """The same, chains shared out among as many threads as torch uses."""
        threads = torch.get_num_threads()
        size = -(-len(chains.place) // threads)
        parts = [slice(first, first + size) for first in range(0, len(chains.place), size)]
        if len(parts) == 1:
            return self.sweep(order, chains)
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda part: self[part].sweep(order, type(chains)(*(a[part] for a in chains))), parts))


@dataclass(frozen=True)
class DenseColumns(Columns):
    """Written out.

    Attributes:
        values: (C, K, H, N).
        target: (C, N).
    """

    values: Tensor
    target: Tensor

    def sweep(self, order: Tensor, chains: Chains) -> None:
        from posteria.models.unit_sweeps import sweep_columns
        sweep_columns(self.values.numpy(), self.target.numpy(), order.numpy(), chains)

    def __getitem__(self, part: slice) -> DenseColumns:
        return DenseColumns(self.values[part], self.target[part])

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class LineColumns(Columns):
    """Positive parts of lines of a single feature: products are differences of sums over sorted rows.

    Attributes:
        lines: see there.
    """

    lines: Lines

    @classmethod
    def of(cls, found: Rectified, places: int, scale: Tensor) -> LineColumns | None:
        """Of lines (1, C K, H), of which every K are a chain's, times scale (H,); None where rounding is too much."""
        from posteria.models.unit_sweeps import Lines
        root = found.strength[0].expand(found.slope.shape[1])[::places].sqrt()
        middle = found.x.mean()  # where sums of squares are smallest
        order = found.x.argsort()
        x, y = (found.x - middle)[order], found.target[order]
        units = scale * root[:, None, None]
        slope, offset = (values[0].unflatten(0, (-1, places)) * units
                         for values in (found.slope, found.offset + middle * found.slope))
        powers = torch.stack([torch.ones_like(x), x, x.square(), y, x * y], -1)
        sums = functional.pad(powers.cumsum(0), (0, 0, 1, 0))
        largest = torch.maximum(slope.square().amax() * sums[-1, 2], offset.square().amax() * sums[-1, 0])
        if not bool(largest * torch.finfo(x.dtype).eps < _MOST_ROUNDING):
            return None
        return cls(Lines(*(values.numpy() for values in (slope, offset, x, sums, root))))

    def products(self) -> tuple[Tensor, Tensor]:
        """(C, H, H) of the lines at the first place with each other, and (C, H) with the target."""
        from posteria.models.unit_sweeps import products_of_lines
        chains, _, units = self.lines.slope.shape
        gram = torch.empty(chains, units, units, dtype=torch.double)
        pulls = torch.empty(chains, units, dtype=torch.double)
        products_of_lines(self.lines, gram.numpy(), pulls.numpy())
        return gram, pulls

    def sweep(self, order: Tensor, chains: Chains) -> None:
        from posteria.models.unit_sweeps import sweep_lines
        sweep_lines(self.lines, order.numpy(), chains)

    def __getitem__(self, part: slice) -> LineColumns:
        own = {name: getattr(self.lines, name)[part] for name in ("slope", "offset", "root")}
        return LineColumns(self.lines._replace(**own))

    def __len__(self) -> int:
        return len(self.lines.slope)
