"""A posterior as ArviZ InferenceData."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from posteria.models.parameters import FEATURES
from posteria.refinement.weights import load_arviz

if TYPE_CHECKING:
    from arviz import InferenceData

    from posteria.posterior import Posterior, Seed


def inference_data(posterior: Posterior, num_samples: int, seed: Seed, predictive: bool) -> InferenceData:
    """See :meth:`posteria.posterior.Posterior.to_arviz`."""
    many = len(posterior) > 1
    draws = posterior.sample(num_samples, seed)
    groups = {"posterior": {name: _chain(_blanked(posterior, name, value), many) for name, value in draws.items()}}
    groups |= _data(posterior, many)
    if predictive:
        target = posterior.predict(num_samples=num_samples, seed=seed).draws[:, :, _rows(posterior)]
        if posterior.dataset.y is None:
            target = target[..., posterior.dataset.features.any(0)]
        groups["posterior_predictive"] = {"x" if posterior.dataset.y is None else "y": _chain(target, many)}
    dims, coords = _axes(posterior, many)
    label = posterior.label
    attributes = None if label is None else {"status": list(label.status), "reason": list(label.reason)}
    return load_arviz().from_dict(**groups, dims=dims, coords=coords, attrs=attributes)


def _chain(value: Tensor, many: bool) -> np.ndarray:
    """(B, S, ...) as (chain, draw, [dataset,] ...)."""
    array = value.detach().cpu().numpy()
    return np.moveaxis(array, 0, 1)[None] if many else array


def _blanked(posterior: Posterior, name: str, value: Tensor) -> Tensor:
    """NaN where a dataset lacks a feature."""
    present = posterior.labels.present(name).to(value.device).view(len(posterior), 1, *value.shape[2:])
    return torch.where(present, value, torch.nan)


def _axes(posterior: Posterior, many: bool) -> tuple[dict[str, list[str]], dict[str, list]]:
    lead = ["dataset"] if many else []
    dims = {"x": [*lead, "row", "column"], "y": [*lead, "row"]}
    coords: dict[str, list] = {"dataset": list(range(len(posterior)))} if many else {}
    for block in posterior.layout.blocks:
        names = [_dim_name(block.name, place, axis) for place, axis in enumerate(block.parameter.shape)]
        dims[block.name] = lead + names
        coords |= {name: posterior.labels.axis(block, place) for place, name in enumerate(names)}
    features = posterior.labels.coords.get(FEATURES, [str(i) for i in posterior.labels.shown.tolist()])
    coords["column"] = [*posterior.model.extra_columns, *features]
    coords["row"] = _rows(posterior).nonzero()[:, 0].tolist()
    return dims, coords


def _dim_name(block: str, place: int, axis: str | int) -> str:
    return axis if isinstance(axis, str) else f"{block}_dim_{place}"


def _rows(posterior: Posterior) -> Tensor:
    """(N,) bool: rows that at least one dataset has."""
    return posterior.dataset.observed.any(0)


def _data(posterior: Posterior, many: bool) -> dict[str, dict[str, np.ndarray]]:
    """Groups observed_data and constant_data, NaN at padding."""
    dataset, rows = posterior.dataset, _rows(posterior)
    kept = dataset.features.any(0)
    real = dataset.observed[:, :, None] & dataset.features[:, None]
    x = _plain(torch.where(real, dataset.x, torch.nan)[:, rows][:, :, kept], many)
    if dataset.y is None:
        return {"observed_data": {"x": x}}
    y = _plain(torch.where(dataset.observed, dataset.y, torch.nan)[:, rows], many)
    return {"observed_data": {"y": y}, "constant_data": {"x": x}}


def _plain(value: Tensor, many: bool) -> np.ndarray:
    array = value.detach().cpu().numpy()
    return array if many else array[0]
