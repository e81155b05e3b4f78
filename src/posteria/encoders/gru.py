"""Gated recurrent network over the rows in the order given (Cho et al. 2014, arXiv 1406.1078).

The paper's example of an encoder that does not know that rows are exchangeable.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from posteria.encoders.base import Encoder, EncoderSpec, rows_of, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint


class GRUEncoder(Encoder):
    """The last layer's state after the last real row, beside the dataset's size.

    Args:
        spec: what the rows look like.
        layers: recurrent layers.
        width: state width; ``summary_dim`` is two more.
        sizes: the summary is told the number of rows and of features. For ablations only: False leaves it to the
            network to count.

    Raises:
        InputError: a size below one.

    Examples:
        >>> GRUEncoder(EncoderSpec(num_columns=2), layers=1, width=32).summary_dim
        34
    """

    order_invariant = False

    def __init__(self, spec: EncoderSpec, layers: int = 4, width: int = 256, sizes: bool = True):
        super().__init__()
        for name, size in {"layers": layers, "width": width}.items():
            if size < 1:
                raise InputError.of(name, size, "a positive integer")
        self.spec, self.sizes = spec, sizes
        self.summary_dim = width + 2
        self.recur = nn.GRU(spec.row_dim, width, layers, batch_first=True)

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        rows = rows_of(dataset, self.spec)
        if not dataset.observed.all():
            rows = _packed(rows, dataset.observed)
        _, states = self.recur(rows)
        state = states[-1].to(dataset.x.dtype)  # undoes autocast
        summary = torch.cat([state, sizes_of(dataset, self.sizes)], -1)
        return Context(summary, log_joint.active)


def _packed(rows: Tensor, observed: Tensor) -> nn.utils.rnn.PackedSequence:
    """The real rows of each dataset, in their order. One that has none keeps one row of padding."""
    order = torch.argsort(~observed, dim=1, stable=True)
    rows = rows.gather(1, order[..., None].expand_as(rows))
    lengths = observed.sum(-1).clamp(min=1)
    return pack_padded_sequence(rows, lengths.cpu(), batch_first=True, enforce_sorted=False)
