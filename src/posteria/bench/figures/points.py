"""What is drawn, as numbers: frames with a row per point, which are painted and written to CSV as they are.

Columns: kind (what the point belongs to), draw (of the posterior), part (component, or piece of a line), x, y, value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from posteria.types import Dataset

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = ["setup", "method", "kind", "draw", "part", "x", "y", "value"]


def numbers(kind: str, x: Any = np.nan, y: Any = np.nan, draw: Any = 0, part: Any = 0,
            value: Any = np.nan) -> pd.DataFrame:
    """Points of one kind; what is single is repeated."""
    import pandas as pd

    given = (np.asarray(values).ravel() for values in np.broadcast_arrays(draw, part, x, y, value))
    frame = pd.DataFrame(dict(zip(("draw", "part", "x", "y", "value"), given, strict=True)))
    return frame.assign(kind=kind)


def stacked(*frames: pd.DataFrame) -> pd.DataFrame:
    """The frames below each other."""
    import pandas as pd

    return pd.concat([frame for frame in frames if len(frame)] or [frames[0]], ignore_index=True)


def only(frame: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows with these values in the named columns."""
    for name, value in values.items():
        frame = frame.loc[frame[name] == value]
    return frame


def rows_of(dataset: Dataset) -> pd.DataFrame:
    """The rows of a single dataset: two columns of x, or x and y; classes in ``value``."""
    x = dataset.x[0, dataset.observed[0]].cpu().numpy()
    y = None if dataset.y is None else dataset.y[0, dataset.observed[0]].cpu().numpy()
    if x.shape[1] == 1:
        assert y is not None
        return numbers("row", x[:, 0], y)
    return numbers("row", x[:, 0], x[:, 1], value=np.nan if y is None else y)


def means_of(kind: str, theta: Tensor) -> pd.DataFrame:
    """Component means in two dimensions of theta (S, P)."""
    means = theta.cpu().numpy().reshape(len(theta), -1, 2)
    draw, part = np.indices(means.shape[:2])
    return numbers(kind, means[..., 0], means[..., 1], draw, part)


def contours(kind: str, x: np.ndarray, y: np.ndarray, values: np.ndarray, level: float, draw: int = 0,
             value: float = np.nan) -> pd.DataFrame:
    """Lines of a level of values (len(y), len(x)); ``part`` numbers the pieces."""
    from contourpy import contour_generator

    pieces = contour_generator(x, y, values).lines(level)
    return stacked(numbers(kind, [], []), *(numbers(kind, piece[:, 0], piece[:, 1], draw, part, value)
                                            for part, piece in enumerate(map(np.asarray, pieces))))


def pieces_of(frame: pd.DataFrame, kind: str) -> list[np.ndarray]:
    """The open lines (n, 2) of a kind."""
    lines = only(frame, kind=kind).groupby(["draw", "part", "value"], dropna=False, sort=False)
    return [np.stack([line.x, line.y], -1) for _, line in lines]
