"""Coupling blocks that serve masked parameters, with weights of their own or made from parameter tokens.

A block splits the active parameters into two halves, leaves one half a as it is, and moves every
parameter of the other half b by a monotonic scalar map whose shape depends on a and the context:

    y_a = x_a,    y_b = f(x_b; raw(x_a, context)),    log|det J| = sum_b log f'(x_b)

Both directions cost one pass (Dinh et al., 2016, https://arxiv.org/abs/1605.08803). The network behind
``raw`` is one multilayer perceptron whose first and last weights are either learned per parameter (P
fixed) or generated from each parameter's token (P free, with one last layer V behind per-parameter gates):

    h = act(inward^T squash(x_a) + W summary),    raw_p = outward_p^T middle(h) + offset_p
    P free: inward_p = A token_p,    outward_p = diag(B token_p) V,    offset_p = C token_p
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.func import functional_call
from zuko.nn import MLP

# Conditioners see values up to this size; beyond it only the sign, so that no context can overflow them.
_LARGEST_INPUT = 5.0
# Width of the gates that tokens generate, for every parameter and draw.
_READOUT = 32

Univariate = Callable[[Tensor], Transform]


def squash(values: Tensor) -> Tensor:
    """Bounded, smooth and near the identity for ordinary values."""
    return values * torch.rsqrt(1 + (values / _LARGEST_INPUT).clamp(-1e15, 1e15).square())


def halves(active: Tensor, level: int) -> Tensor:
    """(B, P) bool: one half of the active parameters (B, P), by a bit of their rank among the active.

    Successive levels use successive bits (wrapping around), so that after log2 P levels any two
    parameters have been apart. Both halves have a member wherever two parameters are active.
    """
    rank = active.long().cumsum(-1) - 1
    count = active.sum(-1, keepdim=True)
    powers = 2 ** torch.arange(active.shape[-1].bit_length(), device=active.device)
    bits = (count > powers).sum(-1, keepdim=True).clamp(min=1)
    return ((rank >> (level % bits)) & 1).bool() & active


@dataclass(frozen=True)
class Conditioner:
    """The network of one block with its weights filled in for B datasets; see the module for the formula.

    Attributes:
        inward: (P, H) or (B, P, H).
        hidden: (B, 1, H), the summary's part of the first layer.
        middle: (B, S, H) -> (B, S, M).
        outward: (M, P*K), or (M, K) behind a gate.
        offset: (P*K,), or (B, 1, P, K) behind a gate.
        gate: None or (B, P, M).
    """

    inward: Tensor
    hidden: Tensor
    middle: Callable[[Tensor], Tensor]
    outward: Tensor
    offset: Tensor
    gate: Tensor | None = None

    def __call__(self, values: Tensor) -> Tensor:
        """Raw shape parameters (B, S, P, K) from values (B, S, P), zero where they must not be seen."""
        last = self.middle(self.hidden + squash(values) @ self.inward)
        if self.gate is not None:
            return (last[:, :, None] * self.gate[:, None]) @ self.outward + self.offset
        return (last @ self.outward + self.offset).unflatten(-1, (values.shape[-1], -1))

    def __getitem__(self, index: Tensor) -> Conditioner:
        """That of the chosen datasets."""
        if self.gate is None:
            return replace(self, hidden=self.hidden[index])
        return replace(self, inward=self.inward[index], hidden=self.hidden[index], offset=self.offset[index],
                       gate=self.gate[index])

    def detach(self) -> Conditioner:
        """The same network with all its weights cut from the graph."""
        inward, hidden, outward, offset = (t.detach() for t in (self.inward, self.hidden, self.outward, self.offset))
        gate = None if self.gate is None else self.gate.detach()
        return Conditioner(inward, hidden, _detached(self.middle), outward, offset, gate)


def _detached(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """The same function with a module's weights cut from the graph; differentiable in its input."""
    if not isinstance(function, nn.Module):
        return function
    weights = {name: weight.detach() for name, weight in function.state_dict(keep_vars=True).items()}
    return partial(_call_with, function, weights)


def _call_with(module: nn.Module, weights: dict[str, Tensor], values: Tensor) -> Tensor:
    return functional_call(module, weights, (values,))


@dataclass(frozen=True)
class CouplingBlock:
    """One block bound to B datasets: a bijection of (B, S, P).

    Attributes:
        given: (B, 1, P) bool, parameters that stay and that the conditioner sees.
        moved: (B, 1, P) bool, parameters that move. Inactive ones are in neither.
    """

    given: Tensor
    moved: Tensor
    conditioner: Conditioner
    univariate: Univariate

    def forward(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Moved values (B, S, P) and the log-determinant (B, S)."""
        transform = self._transform(values)
        result, log_slopes = transform.call_and_ladj(values)  # type: ignore[attr-defined]
        return self._masked(values, result, log_slopes)

    def inverse(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The values (B, S, P) that :meth:`forward` sends here, and the log-determinant of *forward* there."""
        transform = self._transform(values)
        source: Tensor = transform.inv(values)  # type: ignore[assignment]
        return self._masked(values, source, transform.log_abs_det_jacobian(source, values))

    def __getitem__(self, index: Tensor) -> CouplingBlock:
        """That of the chosen datasets."""
        return replace(self, given=self.given[index], moved=self.moved[index], conditioner=self.conditioner[index])

    def detach(self) -> CouplingBlock:
        """The same bijection with its conditioner cut from the graph."""
        return replace(self, conditioner=self.conditioner.detach())

    def _transform(self, values: Tensor) -> Transform:
        return self.univariate(self.conditioner(torch.where(self.given, values, 0.0)))

    def _masked(self, before: Tensor, after: Tensor, log_slopes: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(self.moved, after, before), torch.where(self.moved, log_slopes, 0.0).sum(-1)


class Coupling(nn.Module, ABC):
    """Learned part of one block: fills in a :class:`Conditioner` for the datasets of a context."""

    @abstractmethod
    def conditioner(self, summary: Tensor, tokens: Tensor | None, given: Tensor) -> Conditioner:
        """Weights from the squashed summary (B, E) and tokens (B, P, T); given (B, P) marks the seen half."""


class FixedCoupling(Coupling):
    """Weights of their own for each of P parameters."""

    def __init__(self, num_parameters: int, summary_dim: int, hidden: Sequence[int], raw_dim: int):
        super().__init__()
        self.of_summary = nn.Linear(summary_dim, hidden[0])
        self.inward = nn.Linear(num_parameters, hidden[0], bias=False)
        self.middle = _middle(hidden)
        self.outward = _zeroed(nn.Linear(hidden[-1], num_parameters * raw_dim))

    def conditioner(self, summary: Tensor, tokens: Tensor | None, given: Tensor) -> Conditioner:
        """See :meth:`Coupling.conditioner`; the summary only."""
        hidden = self.of_summary(summary)[:, None]
        return Conditioner(self.inward.weight.mT, hidden, self.middle, self.outward.weight.mT, self.outward.bias)


class TokenCoupling(Coupling):
    """First and last weights generated from each parameter's token, so that any P works."""

    def __init__(self, token_dim: int, summary_dim: int, hidden: Sequence[int], raw_dim: int):
        super().__init__()
        self.of_summary = nn.Linear(summary_dim, hidden[0])
        self.inward = nn.Linear(token_dim, hidden[0])
        self.middle = _middle((*hidden, _READOUT))
        self.gate = nn.Linear(token_dim, _READOUT)
        self.outward = _zeroed(nn.Linear(_READOUT, raw_dim, bias=False))
        self.offset = _zeroed(nn.Linear(token_dim, raw_dim))

    def conditioner(self, summary: Tensor, tokens: Tensor | None, given: Tensor) -> Conditioner:
        """See :meth:`Coupling.conditioner`."""
        assert tokens is not None
        # A sum over many parameters of about unit variance: keep its size free of their number.
        count = given.sum(-1).clamp(min=1).to(tokens.dtype)[:, None, None]
        inward = self.inward(tokens) * count.rsqrt()
        hidden, offset = self.of_summary(summary)[:, None], self.offset(tokens)[:, None]
        return Conditioner(inward, hidden, self.middle, self.outward.weight.mT, offset, self.gate(tokens))


def _middle(widths: Sequence[int]) -> nn.Module:
    """What lies between the first and the last layer, activations included."""
    if len(widths) == 1:
        return nn.SiLU()
    return nn.Sequential(nn.SiLU(), MLP(widths[0], widths[-1], widths[1:-1], activation=nn.SiLU), nn.SiLU())


def _zeroed(layer: nn.Linear) -> nn.Linear:
    """Start at zero, hence the block at the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
