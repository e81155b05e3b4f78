"""Names of a posterior's scalars, and draws as data frames."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from posteria.models.parameters import FEATURES, Block, Layout

Coords = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Labels:
    """Names the entries of constrained blocks whose feature axis holds only some of the features.

    Attributes:
        layout: the model's layout, for all columns of the dataset.
        shown: (F,) long, the features that at least one dataset has.
        active: (B, F) bool, which dataset has which of them.
        coords: labels along named axes; the rest count from 0.
    """

    layout: Layout
    shown: Tensor
    active: Tensor
    coords: Coords

    def axis(self, block: Block, place: int) -> list[str]:
        """Labels along one axis of a block."""
        axis = block.parameter.shape[place]
        if axis in self.coords:
            return list(self.coords[axis])  # type: ignore[index]
        return [str(i) for i in (self.shown.tolist() if axis == FEATURES else range(block.shape[place]))]

    def names(self, parameter: str) -> list[str]:
        """Names of a block's entries in order, such as ``weights[age]``."""
        block = self.layout[parameter]
        axes = [self.axis(block, place) for place in range(len(block.shape))]
        return [parameter + (f"[{','.join(entry)}]" if entry else "") for entry in itertools.product(*axes)]

    def present(self, parameter: str) -> Tensor:
        """(B, K) bool: the entries of a block that each dataset has."""
        block = self.layout[parameter]
        lengths = [len(self.axis(block, place)) for place in range(len(block.shape))]
        present = torch.ones(len(self.active), *lengths, dtype=torch.bool)
        for place, axis in enumerate(block.parameter.shape):
            if axis == FEATURES:
                view = [len(self.active)] + [1] * len(lengths)
                view[place + 1] = lengths[place]
                present &= self.active.cpu().view(view)
        return present.reshape(len(present), -1)

    def select(self, block: Block, value: Tensor) -> Tensor:
        """Keep the shown features of constrained values (..., *shape)."""
        for place, axis in enumerate(block.parameter.shape):
            if axis == FEATURES and len(self.shown) < block.shape[place]:
                value = value.index_select(place - len(block.shape), self.shown.to(value.device))
        return value

    def widen(self, block: Block, value: Tensor, filler: Tensor) -> Tensor:
        """Undo :meth:`select`, with ``filler`` (*shape) at the features that are not shown."""
        for place, axis in enumerate(block.parameter.shape):
            if axis == FEATURES and len(self.shown) < block.shape[place]:
                lead = value.shape[: value.ndim - len(block.shape)]
                full = filler.expand(lead + filler.shape).clone()
                value = full.index_copy(place - len(block.shape), self.shown.to(value.device), value)
        return value

    def frames(self, draws: Mapping[str, Tensor]) -> list[pd.DataFrame]:
        """One frame per dataset, a row per draw and a column per active scalar, of draws (B, S, *shape)."""
        names = np.array([name for parameter in draws for name in self.names(parameter)])
        present = torch.cat([self.present(parameter) for parameter in draws], 1).numpy()
        values = torch.cat([value.detach().cpu().reshape(*value.shape[:2], -1) for value in draws.values()], 2).numpy()
        return [pd.DataFrame(one[:, keep], columns=names[keep])
                for one, keep in zip(values, present, strict=True)]


def summarise(frame: pd.DataFrame, quantiles: Sequence[float]) -> pd.DataFrame:
    """Mean, sd and quantiles of every column, one row per parameter."""
    values = frame.to_numpy(dtype=np.float64)
    columns = {"mean": values.mean(0), "sd": values.std(0, ddof=min(1, len(values) - 1))}
    columns |= {f"{100 * q:g}%": row
                for q, row in zip(quantiles, np.quantile(values, list(quantiles), axis=0), strict=True)}
    return pd.DataFrame(columns, index=pd.Index(frame.columns, name="parameter"))
