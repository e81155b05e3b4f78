"""Transformer over rows with a summary token (the paper's strongest encoder), by default without positions.

The rows are a set: unless positions are asked for, nothing tells the network their order, so the summary does not
depend on it.
Architecture after Mittal et al., "Amortized In-Context Bayesian Posterior Estimation" (arXiv 2502.06601),
Appendix; the paper normalises after each residual sum and drops out 10% (``pre_norm=False, dropout=0.1``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from posteria.encoders.base import Encoder, EncoderSpec, rows_of, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint

# On a CPU the fused kernel saves memory, not time: up to this many tokens, plain matrix products are faster
# (several times so in bfloat16, where its backward pass is slow).
_SHORT = 512
_LONGEST_PERIOD = 10_000.0

Positions = Literal["none", "sinusoidal"]


class TransformerEncoder(Encoder):
    """Self-attention over the rows and one summary token, which starts from the dataset's size.

    Args:
        spec: what the rows look like.
        layers: attention layers; the last one computes the summary token only.
        width: token width, a multiple of ``heads``.
        heads: attention heads per layer.
        feedforward: hidden width of each layer's network, default 4 * width.
        pre_norm: normalise the input of each sublayer (trains without warm-up); else its residual sum.
        dropout: on attention weights, hidden units and sublayer outputs, in training mode. It draws from
            torch's global random state.
        positions: "none" (the rows are a set), or "sinusoidal": waves of the row's place among the real rows are
            added to its token (Vaswani et al. 2017, arXiv 1706.03762, section 3.5), and ``order_invariant`` is False.
            For studying what order costs.

    Raises:
        InputError: a size below one, a width that heads do not divide, a dropout outside [0, 1), positions that do
            not exist or that the width is too odd for.

    Examples:
        >>> encoder = TransformerEncoder(EncoderSpec(num_columns=2), layers=2, width=32)
        >>> encoder.summary_dim
        32
    """

    def __init__(self, spec: EncoderSpec, layers: int = 4, width: int = 256, heads: int = 4,
                 feedforward: int | None = None, pre_norm: bool = True, dropout: float = 0.0,
                 positions: Positions = "none"):
        super().__init__()
        _check_sizes(layers=layers, width=width, heads=heads, feedforward=feedforward or 1)
        if width % heads:
            raise InputError.of("width", width, f"a multiple of heads ({heads})")
        if not 0.0 <= dropout < 1.0:
            raise InputError.of("dropout", dropout, "a probability in [0, 1)")
        if positions not in _POSITIONS:
            raise InputError.of("positions", repr(positions), f"one of {sorted(_POSITIONS)}")
        if positions != "none" and width % 2:
            raise InputError.of("width", width, "an even number, half sines and half cosines of the position")
        self.order_invariant = positions == "none"
        self.place = _POSITIONS[positions]
        self.spec = spec
        self.summary_dim = width
        self.embed = nn.Linear(spec.row_dim, width)
        self.embed_sizes = nn.Linear(2, width)
        self.start = nn.Parameter(torch.randn(width) / width**0.5)
        stack = [_Layer(width, heads, feedforward or 4 * width, pre_norm, dropout) for _ in range(layers)]
        self.last = stack.pop()
        self.earlier = nn.ModuleList(stack)
        self.norm = nn.LayerNorm(width) if pre_norm else nn.Identity()

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        start = self.start + self.embed_sizes(sizes_of(dataset))
        rows = self.place(self.embed(rows_of(dataset, self.spec)), dataset.observed)
        tokens = torch.cat([start[:, None], rows], 1)
        real = _token_mask(dataset)
        for layer in self.earlier:
            tokens = layer(tokens, real)
        summary = self.norm(self.last.read(tokens, real))
        return Context(summary.to(dataset.x.dtype), log_joint.active)  # whatever autocast made of it


class _Layer(nn.Module):
    """Attention and a two-layer network, each added to its input."""

    def __init__(self, width: int, heads: int, feedforward: int, pre_norm: bool, dropout: float):
        super().__init__()
        self.pre_norm = pre_norm
        self.attention = _Attention(width, heads, dropout)
        # In place is safe (a linear map does not need its output again) and spares a pass over memory.
        self.network = nn.Sequential(
            nn.Linear(width, feedforward), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.attention_norm = nn.LayerNorm(width)
        self.network_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """(B, T, width) of tokens (B, T, width), of which ``real`` (B, T) are attended to."""
        attended = self.attention(self._before(self.attention_norm, tokens), real)
        return self._finish(tokens, attended)

    def read(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """(B, width): what :meth:`forward` gives for the first token, at the cost of that token alone."""
        attended = self.attention.first(self._before(self.attention_norm, tokens), real)
        return self._finish(tokens[:, 0], attended)

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        tokens = self._after(self.attention_norm, tokens + self.dropout(attended))
        change = self.network(self._before(self.network_norm, tokens))
        return self._after(self.network_norm, tokens + self.dropout(change))

    def _before(self, norm: nn.Module, tokens: Tensor) -> Tensor:
        return norm(tokens) if self.pre_norm else tokens

    def _after(self, norm: nn.Module, tokens: Tensor) -> Tensor:
        return tokens if self.pre_norm else norm(tokens)


class _Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.project = nn.Linear(width, 3 * width)
        self.combine = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.project.weight)
        nn.init.zeros_(self.project.bias)
        nn.init.zeros_(self.combine.bias)

    def forward(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """(B, T, width)."""
        batch, length, width = tokens.shape
        projected = self.project(tokens).view(batch, length, 3, self.heads, width // self.heads)
        queries, keys, values = projected.permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if real is None else real[:, None, None]
        dropout = self.dropout if self.training else 0.0
        short = tokens.device.type == "cpu" and length <= _SHORT
        attend = _attend_by_products if short else functional.scaled_dot_product_attention
        attended = attend(queries, keys, values, mask, dropout)
        return self.combine(attended.transpose(1, 2).reshape(batch, length, width))

    def first(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """(B, width): attention of the first token alone.

        A single query makes it cheaper to carry the query to the tokens than the tokens to keys and
        values: q . (K t) = (K^T q) . t, and sum_i a_i (V t_i) = V sum_i a_i t_i. The key bias shifts all
        scores alike, so the softmax drops it.
        """
        width = tokens.shape[-1]
        to_query, to_key, to_value = self.project.weight.view(3, self.heads, width // self.heads, width).unbind(0)
        bias = self.project.bias.view(3, self.heads, width // self.heads)
        queries = torch.einsum("bw,hdw->bhd", tokens[:, 0], to_query) + bias[0]
        carried = torch.einsum("bhd,hdw->bhw", queries, to_key) * (width // self.heads) ** -0.5
        scores = carried @ tokens.mT
        if real is not None:
            scores = scores.masked_fill(~real[:, None], -torch.inf)
        weights = functional.dropout(scores.softmax(-1), self.dropout, self.training)
        pooled = torch.einsum("bhw,hdw->bhd", weights @ tokens, to_value) + weights.sum(-1, keepdim=True) * bias[2]
        return self.combine(pooled.flatten(1))


def _attend_by_products(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """What ``scaled_dot_product_attention`` gives, (B, heads, T, width per head), with all weights in memory."""
    scores = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return functional.dropout(scores.softmax(-1), dropout) @ values


def _token_mask(dataset: Dataset) -> Tensor | None:
    """(B, 1 + N) bool for the summary token and the rows, or None when every row is real (the faster kernels)."""
    if dataset.observed.all():
        return None
    return functional.pad(dataset.observed, (1, 0), value=True)


def _without_positions(rows: Tensor, observed: Tensor) -> Tensor:
    return rows


def _add_waves(rows: Tensor, observed: Tensor) -> Tensor:
    """Rows (B, N, width) plus waves of their place among the real rows, so that padding between them shifts none."""
    place = (observed.cumsum(1) - 1).clamp(min=0)
    return rows + _waves(rows.shape[1], rows.shape[2], observed.device)[place]


def _waves(length: int, width: int, device: torch.device) -> Tensor:
    """(length, width): sine and cosine, in turn, of the position at periods that grow from 2 pi geometrically."""
    exponents = torch.arange(0, width, 2, device=device) / width
    angles = torch.arange(length, device=device)[:, None] * _LONGEST_PERIOD ** -exponents
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


_POSITIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"none": _without_positions, "sinusoidal": _add_waves}


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise InputError.of(name, size, "a positive integer")
