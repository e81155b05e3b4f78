"""The iterative encoder: sees the gradient and curvature of the log joint where the posterior lies.

Iterative amortized inference (Marino et al. 2018) and recurrent inference machines (Putzky & Welling 2017),
here over sets, with one token per parameter and messages between parameters. A deterministic search
(:mod:`posteria.widening`) climbs to a mode and then widens into a Gaussian guess by looking at candidates drawn
from it. The network watches: after the climb and after every widening each token reads its parameter's
value, averaged gradient, curvature and how both vary over the candidates, tokens exchange messages, and in the end
they propose the last move. What is left for the network to learn is what the search cannot know: skewness, the
gap between local curvature and the best scale, and how far to trust either.

Gradients of the training loss do not pass through the search, which makes training cheap and keeps it stable
where the log joint is not concave.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from posteria.ascent import Guess, climb
from posteria.encoders.base import Encoder, EncoderSpec, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint
from posteria.widening import widened

_START_SEED = 2502
_TOKEN_FEATURES = 9
# Where zero is a saddle the log joint is far from quadratic: start beside it, with short steps.
_SADDLE_START, _SADDLE_DAMPING, _SADDLE_WIDENING = 0.7, 100.0, 10.0
# Where a line through the guess is looked at, in marginal standard deviations; lines of more parameters cost too much.
_LINE_PLACES, _MOST_LINES = (-2.0, -1.0, 1.0, 2.0), 128
# Rows times points times datasets that go through the likelihood together.
_MOST_LINE_ENTRIES = 10_000_000


class IterativeEncoder(Encoder):
    """One token per parameter; any number of features.

    The order of rows does not matter. The order of features matters only through the fixed pseudo-random
    directions of the candidates.

    Args:
        width: token width.
        climbs: at most so many steps towards a mode; ends early when all datasets have converged.
        widenings: at most so many looks at the region that the guess covers; where averages are exact, a dataset whose
            guess has settled (moves below 1e-3 standard deviations) is not looked at again.
        layers: network layers; they read the last so many guesses, the last one again if there are fewer.
        candidates: draws per look (even: they come in antithetic pairs).
        heads: attention heads.
        dense_up_to: up to this many parameters the curvature is a full matrix, and correlated densities get its
            factor; beyond, models with few observations are solved in the space of the observations.
        inducing: number of pooled tokens through which tokens attend to each other, at a cost linear in P.
        lines: tokens also see how far the log joint is from a parabola along the line on which their parameter moves
            and the others follow, at one and two standard deviations: skewness and tails. Up to 128 parameters.
        shared: tokens do not know which block of which model they belong to, so that one network serves every model.
    """

    free_size: ClassVar[bool] = True
    needs_likelihood: ClassVar[bool] = True
    located: ClassVar[bool] = True

    def __init__(self, spec: EncoderSpec, width: int = 48, climbs: int = 12, widenings: int = 8, layers: int = 3,
                 candidates: int = 8, heads: int = 4, dense_up_to: int = 256, inducing: int = 16,
                 lines: bool = False, shared: bool = False):
        super().__init__()
        if width < 1 or heads < 1 or width % heads:
            raise InputError.of("width", f"{width} with {heads} heads", "a multiple of heads, both at least 1")
        if layers < 1:
            raise InputError.of("layers", repr(layers), "1 or more")
        self.summary_dim, self.token_dim = width, width
        self.climbs, self.widenings, self.candidates, self.dense_up_to = climbs, widenings, candidates, dense_up_to
        self.start = 0  # where the climb starts, see looking
        self._check_search()
        self.exchangeable, self.correlated = spec.exchangeable, spec.full_covariance
        self.shared = shared
        self.roles = nn.Embedding(1 if shared else spec.num_blocks, width)
        nn.init.normal_(self.roles.weight, std=0.1)
        self.read_lines = nn.Linear(len(_LINE_PLACES), width) if lines else None
        self.layers = nn.ModuleList(_Mixer(width, heads, inducing) for _ in range(layers))
        self.move = nn.Linear(width, 2)
        nn.init.zeros_(self.move.weight)
        nn.init.zeros_(self.move.bias)
        self.norm = nn.LayerNorm(width)
        self.summary = nn.Linear(width + 2, width)

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        guesses = self._search(log_joint)
        messages = _Messages.of(log_joint)
        sizes = sizes_of(dataset)[:, None].expand(-1, log_joint.active.shape[-1], -1)
        roles = torch.zeros_like(log_joint.roles) if self.shared else log_joint.roles
        tokens = self.roles(roles).expand(len(dataset), -1, -1)
        if self.read_lines is not None:
            tokens = tokens + self.read_lines(_lines(log_joint, guesses[-1], self.correlated))
        for layer, guess in zip(self.layers, guesses, strict=True):
            tokens = layer(tokens, _features(guess, sizes), messages)
        return self._context(log_joint, guesses[-1], self.norm(tokens), sizes)

    def for_spec(self, spec: EncoderSpec) -> Encoder:
        """The same weights for another model, which takes an encoder whose tokens are ``shared``."""
        if not self.shared:
            return super().for_spec(spec)
        other = copy.copy(self)
        other.exchangeable, other.correlated = spec.exchangeable, spec.full_covariance
        return other

    def looking(self, **search: int) -> Encoder:
        """The same weights with other ``climbs``, ``widenings`` or ``candidates``; see the class.

        Or with another ``start`` of the climb: 0 is the prior's centre (or beside it), 1, 2, ... are fixed draws.
        """
        if unknown := sorted(set(search) - {"climbs", "widenings", "candidates", "start"}):
            raise InputError.of("search", str(unknown), "climbs, widenings, candidates or start")
        other = copy.copy(self)
        for name, value in search.items():
            setattr(other, name, value)
        other._check_search()
        return other

    def _check_search(self) -> None:
        """Raise an InputError where a setting is out of its range."""
        if self.candidates < 2 or self.candidates % 2:
            raise InputError.of("candidates", repr(self.candidates), "an even number, 2 or more")
        for name in ("climbs", "widenings", "start"):
            if getattr(self, name) < 0:
                raise InputError.of(name, repr(getattr(self, name)), "0 or more")

    def _search(self, log_joint: LogJoint) -> list[Guess]:
        """One guess per layer: the last of those after the climb and after every widening."""
        damping = _SADDLE_DAMPING if self.exchangeable else 0.0
        mode = climb(log_joint, self._start(log_joint), self.climbs, damping, self.dense_up_to)
        damping = _SADDLE_WIDENING if self.exchangeable else 0.0
        guesses = widened(log_joint, mode, self.widenings, self.candidates, self.correlated, damping, self.dense_up_to)
        missing = len(self.layers) - len(guesses)
        return guesses[-len(self.layers):] + guesses[-1:] * missing

    def _start(self, log_joint: LogJoint) -> Tensor:
        """(B, P): the prior's centre, a fixed prior-like draw where zero is a saddle, or another that was asked for."""
        if not self.exchangeable and not self.start:
            return torch.zeros(log_joint.active.shape).to(log_joint.scale)
        width = 1.0 if self.start else _SADDLE_START
        z = width * log_joint.fixed_noise(1, _START_SEED + self.start)[0]
        return torch.where(log_joint.active, z, 0.0)

    def _context(self, log_joint: LogJoint, guess: Guess, tokens: Tensor, sizes: Tensor) -> Context:
        active = log_joint.active
        weights = active[..., None] / active.sum(-1)[:, None, None]
        summary = self.summary(torch.cat([(tokens * weights).sum(1), sizes[:, 0]], -1))
        gain, nudge = self.move(tokens).float().unbind(-1)
        z = guess.z + guess.step * gain + guess.spread * torch.tanh(nudge)
        location = log_joint.location + log_joint.scale * z
        factor = guess.curvature.factor() if self.correlated else None
        scale = log_joint.scale * (guess.spread if factor is None else torch.ones_like(z))
        return Context(summary, active, tokens, location, scale, factor)


def _features(guess: Guess, sizes: Tensor) -> Tensor:
    """(B, P, 9) squashed inputs of every token."""
    spread = guess.spread
    columns = (guess.z, torch.asinh(3 * guess.step), torch.asinh(guess.step / spread),
               torch.asinh(guess.moved / spread), torch.asinh(guess.score * spread),
               torch.asinh(guess.wobble * spread), spread.log() / 2)
    return torch.cat([torch.stack(columns, -1), sizes], -1)


@torch.no_grad()
def _lines(log_joint: LogJoint, guess: Guess, correlated: bool) -> Tensor:
    """(B, P, L) squashed log density along every parameter's line, relative to the guess and without its parabola.

    A line runs along the parameter's column of the guess's covariance: the parameter moves by its marginal standard
    deviation and the others to where they are then expected. Zero where the posterior is the guess.
    """
    batch, size = guess.z.shape
    places = torch.tensor(_LINE_PLACES).to(guess.z)
    if size > _MOST_LINES:
        return guess.z.new_zeros(batch, size, len(places))
    factor = guess.curvature.factor() if correlated else None
    covariance = torch.diag_embed(guess.spread.square()) if factor is None else torch.cholesky_inverse(factor)
    directions = covariance / covariance.diagonal(dim1=-2, dim2=-1).clamp(min=1e-12).sqrt()[..., None]
    height = log_joint.score(guess.z[:, None])[0][..., None]  # (B, 1, 1)
    block = max(1, _MOST_LINE_ENTRIES // (batch * log_joint.dataset.x.shape[1] * len(places)))
    found = []
    for part in directions.split(block, dim=1):
        points = guess.z[:, None, None] + places[:, None] * part[:, :, None]  # (B, p, L, P)
        along = log_joint.score(points.flatten(1, 2))[0].unflatten(1, points.shape[1:3])
        found.append(along - height + places.square() / 2)
    lines = torch.asinh(torch.cat(found, 1).nan_to_num(0.0, 1e6, -1e6))
    return torch.where(log_joint.active[..., None], lines, 0.0)


@dataclass(frozen=True)
class _Messages:
    """Who talks to whom: everyone by attention, and parameters that share an index along a named axis by means."""

    active: Tensor  # (B, P)
    all_active: bool
    groups: tuple[tuple[Tensor, int], ...]  # (index (P,), number of groups)

    @classmethod
    def of(cls, log_joint: LogJoint) -> _Messages:
        groups = []
        for index in log_joint.groups.values():
            count = int(index.max()) + 1
            if bool((index >= 0).sum() > count):  # someone shares an index
                groups.append((torch.where(index < 0, count, index), count + 1))
        return cls(log_joint.active, bool(log_joint.active.all()), tuple(groups))

    def group_means(self, tokens: Tensor, group: tuple[Tensor, int]) -> tuple[Tensor, Tensor]:
        """Mean (B, P, T) over the active parameters of the same index, and (B, P, 1) whether there is more than one.

        A parameter alone in its group gets no message, so that padding does not decide whether it gets one.
        """
        index, count = group
        weight = self.active[..., None].to(tokens.dtype)
        sums = tokens.new_zeros(tokens.shape[0], count, tokens.shape[2]).index_add(1, index, tokens * weight)
        sizes = weight.new_zeros(weight.shape[0], count, 1).index_add(1, index, weight)
        shared = (sizes > 1)[:, index] & (index < count - 1)[:, None]
        return (sums / sizes.clamp(min=1))[:, index], shared


class _Mixer(nn.Module):
    """Reads features into tokens, lets tokens exchange messages, then an MLP (pre-norm residual)."""

    def __init__(self, width: int, heads: int, inducing: int):
        super().__init__()
        self.heads = heads
        self.read = nn.Linear(_TOKEN_FEATURES, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.seeds = nn.Parameter(torch.randn(inducing, width) * width**-0.5)
        self.share = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(approximate="tanh"), nn.Linear(2 * width, width))
        for layer in (self.out, self.share, self.mlp[2]):
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, tokens: Tensor, features: Tensor, messages: _Messages) -> Tensor:
        tokens = tokens + self.read(features)
        normed = self.norm1(tokens)
        update = self._attend(normed, messages)
        for group in messages.groups:
            means, shared = messages.group_means(normed, group)
            update = update + torch.where(shared, self.share(means), 0.0)
        tokens = tokens + update
        return tokens + self.mlp(self.norm2(tokens))

    def _attend(self, tokens: Tensor, messages: _Messages) -> Tensor:
        """Induced attention (Lee et al. 2019): a few pooled tokens read all tokens, and all tokens read those."""
        q, k, v = self.qkv(tokens).chunk(3, -1)
        mask = None if messages.all_active else messages.active[:, None, None]
        seeds = self.seeds.expand(tokens.shape[0], -1, -1)
        return self.out(self._attention(q, seeds, self._attention(seeds, k, v, mask), None))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
