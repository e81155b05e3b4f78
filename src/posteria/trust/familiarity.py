"""Is a dataset like those an estimator was trained on: in the encoder's summary, and in size and scale.

p-values are ranks among training datasets that were held out of the fit, (1 + number at least as extreme) / (1 +
number), so that they hold whatever the distribution of summaries (conformal p-values; Vovk et al. 2005).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from posteria.errors import InputError
from posteria.randomness import generator_for
from posteria.types import Dataset

SIZES = ("rows", "features")
SCALES = ("x location", "x scale", "x tails", "x correlation", "y location", "y scale", "y tails")
# Datasets of one draw share their size in some tasks: few per draw show more sizes.
_BATCH = 4
LEAST_FAMILIAR = 64
# Columns that were standardised have a location of 1e-8, say: rounding errors must not rank them.
_DECIMALS = 2
# Of a summary's directions, in units of its entries' variances.
_LEAST_VARIANCE = 1e-6
_SALT = 86_028_121


@dataclass(frozen=True)
class Familiarity:
    """What training datasets look like.

    Attributes:
        centre: (E,) mean of the encoder's summaries.
        whitening: (E, E) W with |W (s - centre)| the Mahalanobis distance of a summary s.
        distances: (M,) ascending, of held-out training datasets.
        traits: (M, R) ascending per column, see :func:`traits_of`.
    """

    centre: Tensor
    whitening: Tensor
    distances: Tensor
    traits: Tensor

    @classmethod
    def of(cls, summaries: Tensor, traits: Tensor) -> Familiarity:
        """From (2 M, E) summaries, half of which give the distances, and (2 M, R) traits.

        The covariance is shrunk as Ledoit & Wolf (2004) say.

        Raises:
            InputError: fewer than 64 datasets.
        """
        if len(summaries) < LEAST_FAMILIAR:
            raise InputError.of("num_datasets", len(summaries), f"{LEAST_FAMILIAR} or more")
        from sklearn.covariance import LedoitWolf

        fitted, held_out = summaries.double().cpu().chunk(2)
        fitted = fitted.nan_to_num(0.0, 0.0, 0.0)
        centre, spread = fitted.mean(0), fitted.std(0).clamp(min=1e-9)
        shrunk = torch.as_tensor(LedoitWolf().fit(((fitted - centre) / spread).numpy()).covariance_)
        # Summaries that all say the same leave nothing to shrink to.
        lower = torch.linalg.cholesky(shrunk + _LEAST_VARIANCE * torch.eye(len(shrunk), dtype=shrunk.dtype))
        root = torch.linalg.inv(lower) / spread
        distances = ((held_out - centre) @ root.mT).norm(dim=-1).nan_to_num(torch.inf)
        return cls(centre, root, distances.sort().values, traits.double().cpu().sort(0).values)

    def distance(self, summary: Tensor) -> Tensor:
        """(B,) Mahalanobis distance of summaries (B, E)."""
        return ((summary.detach().cpu().double() - self.centre) @ self.whitening.mT).norm(dim=-1).nan_to_num(torch.inf)

    def p_value(self, summary: Tensor) -> Tensor:
        """(B,) share of training datasets at least as far out."""
        further = len(self.distances) - torch.searchsorted(self.distances, self.distance(summary))
        return (1.0 + further) / (1.0 + len(self.distances))

    def p_values(self, dataset: Dataset) -> dict[str, Tensor]:
        """(B,) two-sided p-value of every trait that the model's datasets have."""
        found = traits_of(dataset).cpu()
        known = self.traits.mT.contiguous()
        below = torch.searchsorted(known, found.mT.contiguous(), right=True)
        above = known.shape[1] - torch.searchsorted(known, found.mT.contiguous())
        tails = (2.0 * (1.0 + torch.minimum(below, above)) / (1.0 + known.shape[1])).clamp(max=1.0)
        return dict(zip(_names(dataset.y is not None), tails, strict=True))

    def tensors(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {name: getattr(self, name).contiguous() for name in self.__dataclass_fields__}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Familiarity | None:
        """What :meth:`tensors` gave; None where there is nothing."""
        return cls(**{name: tensors[name] for name in cls.__dataclass_fields__}) if tensors else None


def _names(has_y: bool) -> tuple[str, ...]:
    return (*SIZES, *(name for name in SCALES if has_y or name.startswith("x")))


def learn_familiarity(draw: Callable[[int, torch.Generator], Dataset], summaries_of: Callable[[Dataset], Tensor],
                      num_datasets: int = 1024, seed: int = 0,
                      device: torch.device | str = "cpu") -> Familiarity:
    """Draw training datasets and remember what they look like.

    Args:
        draw: (number, generator) -> training datasets.
        summaries_of: datasets -> (B, E) their encoder's summaries.
        num_datasets: how many, 64 or more.
        seed: of the datasets.
        device: where the generator lives.
    """
    summaries, traits, seen = [], [], 0
    while seen < num_datasets:
        dataset = draw(min(_BATCH, num_datasets - seen), generator_for(seed + _SALT, seen, device))
        summaries.append(summaries_of(dataset))
        traits.append(traits_of(dataset))
        seen += len(dataset)  # a task may draw fewer large datasets than it is asked for
    return Familiarity.of(torch.cat(summaries), torch.cat(traits))


def traits_of(dataset: Dataset) -> Tensor:
    """(B, 2 + 4 or 7) double: log rows, log features; of x: root mean square of the columns' means, log of their mean
    variance, largest absolute value in sds, root mean square correlation of columns; of y: mean, log sd, largest
    absolute value in sds.
    """
    rows = dataset.observed.sum(-1).double().clamp(min=1.0)
    columns = dataset.features.sum(-1).double().clamp(min=1.0)
    x = dataset.x.double() * dataset.features[:, None]
    location, scale, unit = _standardised(x, dataset.observed[..., None], rows[:, None])
    mean_square = (location.square().sum(-1) / columns).sqrt()
    variance = (scale.square().sum(-1) / columns).clamp(min=1e-30).log() / 2
    correlations = ((unit.mT @ unit) / rows[:, None, None]).square().flatten(1).sum(-1)
    # The diagonal of the correlations is one for every column that varies.
    varying = (unit.square().sum(1) > 0).sum(-1)
    pairs = (varying * (varying - 1)).clamp(min=1)
    traits = [rows.log(), columns.log(), mean_square, variance, unit.abs().flatten(1).amax(-1),
              ((correlations - varying).clamp(min=0.0) / pairs).sqrt()]
    if dataset.y is not None:
        location, scale, unit = _standardised(dataset.y.double(), dataset.observed, rows)
        traits += [location, scale.clamp(min=1e-15).log(), unit.abs().amax(-1)]
    return torch.stack(traits, -1).round(decimals=_DECIMALS)


def _standardised(values: Tensor, real: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means and sds over rows, and values less means over sds; zero at padding and where nothing varies."""
    values = torch.where(real, values, 0.0)
    location = values.sum(1) / rows
    away = torch.where(real, values - location[:, None], 0.0)
    scale = (away.square().sum(1) / rows).sqrt()
    return location, scale, torch.where(scale[:, None] > 1e-12, away / scale[:, None].clamp(min=1e-12), 0.0)
