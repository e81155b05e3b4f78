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
    def products(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        """(C, H, H) of the picked (C, H) columns with each other, and (C, H) with the target."""

    @abstractmethod
    def sweep(self, order: Tensor, chains: Chains) -> None:
        """Every unit's choice, in an order (H,), put down in ``chains``, which may be some of all."""

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

    def products(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        current = self.values[torch.arange(len(picked))[:, None], picked, torch.arange(picked.shape[1])]
        return current @ current.mT, (current @ self.target[..., None])[..., 0]

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

        def per_unit(values: Tensor) -> Tensor:
            return (values[0].unflatten(0, (-1, places)) * scale * root[:, None, None]).mT.contiguous()

        slope, offset = per_unit(found.slope), per_unit(found.offset + middle * found.slope)
        powers = torch.stack([torch.ones_like(x), x, x.square(), y, x * y], -1)
        sums = functional.pad(powers.cumsum(0), (0, 0, 1, 0))
        largest = torch.maximum(slope.square().amax() * sums[-1, 2], offset.square().amax() * sums[-1, 0])
        if not bool(largest * torch.finfo(x.dtype).eps < _MOST_ROUNDING):
            return None
        kink = torch.where(slope == 0.0, torch.where(offset > 0.0, -torch.inf, torch.inf), -offset / slope)
        place = torch.searchsorted(x, kink)
        first, last = torch.where(slope < 0.0, 0, place), torch.where(slope < 0.0, place, len(x))
        return cls(Lines(*(values.numpy() for values in (slope, offset, first, last, sums, root))))

    def products(self, picked: Tensor) -> tuple[Tensor, Tensor]:
        from posteria.models.unit_sweeps import products_of_lines
        gram = torch.empty(*picked.shape, picked.shape[1], dtype=torch.double)
        pulls = torch.empty(picked.shape, dtype=torch.double)
        products_of_lines(self.lines, picked.numpy(), gram.numpy(), pulls.numpy())
        return gram, pulls

    def sweep(self, order: Tensor, chains: Chains) -> None:
        from posteria.models.unit_sweeps import sweep_lines
        sweep_lines(self.lines, order.numpy(), chains)

    def __getitem__(self, part: slice) -> LineColumns:
        own = {name: getattr(self.lines, name)[part] for name in ("slope", "offset", "first", "last", "root")}
        return LineColumns(self.lines._replace(**own))

    def __len__(self) -> int:
        return len(self.lines.slope)
