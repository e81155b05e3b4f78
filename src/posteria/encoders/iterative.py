"""The iterative encoder: sees the gradient and curvature of the log joint where the posterior lies.

Iterative amortized inference (Marino et al. 2018) and recurrent inference machines (Putzky & Welling 2017),
here over sets, with one token per parameter and messages between parameters. The state is a Gaussian guess of the
posterior, a centre and a curvature. In each layer the log joint is evaluated at candidates: first at the centre
alone, then at draws from the guess, so that the network sees the region which the posterior covers
and not only its mode. Averaged over the candidates, preconditioned gradient and curvature make a step of
natural-gradient variational inference (Khan & Nielsen 2018), which the network scales and corrects per parameter.

Up to a few hundred parameters the preconditioner is the full curvature (one Cholesky factor per layer), which is
exact for quadratic posteriors; beyond, its diagonal, with learned momentum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from posteria.encoders.base import Encoder, EncoderSpec, sizes_of
from posteria.errors import InputError
from posteria.types import Context, Dataset, LogJoint

# Largest Newton step, in prior standard deviations: keeps far starts from overshooting.
_TRUST_RADIUS = 4.0
_NOISE_SEED = 2502


class IterativeEncoder(Encoder):
    """One token per parameter; any number of features.

    The order of rows does not matter. The order of features matters only through the fixed pseudo-random
    directions of the candidates.

    Args:
        width: token width.
        layers: number of refinements.
        candidates: draws from the guess per layer, in the second half of the layers (even: they come in pairs).
        heads: attention heads.
        curvature: "full", "diagonal", or "auto": full up to ``full_up_to`` parameters.
        full_up_to: see ``curvature``; past it, tokens attend to pooled tokens instead of each other.
        inducing: number of pooled tokens.
    """

    free_size: ClassVar[bool] = True
    needs_likelihood: ClassVar[bool] = True
    located: ClassVar[bool] = True

    def __init__(self, spec: EncoderSpec, width: int = 48, layers: int = 6, candidates: int = 4, heads: int = 4,
                 curvature: Literal["auto", "full", "diagonal"] = "auto", full_up_to: int = 256, inducing: int = 16):
        super().__init__()
        if curvature not in ("auto", "full", "diagonal"):
            raise InputError.of("curvature", repr(curvature), "'auto', 'full' or 'diagonal'")
        if candidates < 2 or candidates % 2:
            raise InputError.of("candidates", repr(candidates), "an even number, 2 or more")
        self.summary_dim, self.token_dim = width, width
        self.candidates, self.curvature, self.full_up_to = candidates, curvature, full_up_to
        self.exchangeable, self.correlated = spec.exchangeable, spec.full_covariance
        self.roles = nn.Embedding(spec.num_blocks, width)
        nn.init.normal_(self.roles.weight, std=0.1)
        self.layers = nn.ModuleList(_Layer(width, heads, inducing) for _ in range(layers))
        self.read_out = _Mixer(width, heads, inducing)
        self.norm = nn.LayerNorm(width)
        self.summary = nn.Linear(width + 2, width)

    def forward(self, dataset: Dataset, log_joint: LogJoint) -> Context:
        size = log_joint.active.shape[-1]
        full = self.curvature == "full" or (self.curvature == "auto" and size <= self.full_up_to)
        look = _Look(log_joint, full, self.correlated, self.candidates, len(self.layers))
        messages = _Messages.of(log_joint, pooled=size > self.full_up_to)
        sizes = sizes_of(dataset)[:, None].expand(-1, size, -1)
        tokens = self.roles(log_joint.roles).expand(len(dataset), -1, -1)
        state = look.start(self._start(log_joint))
        for depth, layer in enumerate(self.layers):
            tokens, z = layer(tokens, state, sizes, messages)
            state = look.at(z, state, depth + 1)
        tokens = self.norm(self.read_out(tokens, state.features(sizes), messages))
        return self._context(log_joint, state, tokens, sizes)

    def _start(self, log_joint: LogJoint) -> Tensor:
        """(B, P): the prior's centre, or a fixed prior-like draw where zero is a saddle."""
        z = log_joint.fixed_noise(1, _NOISE_SEED)[0] * (0.7 if self.exchangeable else 0.0)
        return torch.where(log_joint.active, z, 0.0)

    def _context(self, log_joint: LogJoint, state: _State, tokens: Tensor, sizes: Tensor) -> Context:
        active = log_joint.active
        weights = active[..., None] / active.sum(-1)[:, None, None]
        summary = self.summary(torch.cat([(tokens * weights).sum(1), sizes[:, 0]], -1))
        location = log_joint.location + log_joint.scale * state.z
        if self.correlated and state.factor is not None:
            return Context(summary, active, tokens, location, log_joint.scale.expand_as(location), state.factor)
        return Context(summary, active, tokens, location, log_joint.scale * state.spread)


@dataclass(frozen=True)
class _State:
    """The guess and what the log joint looks like there; all in prior-whitened parameters."""

    z: Tensor  # (B, P) centre
    moved: Tensor  # (B, P) the last move of the centre
    score: Tensor  # (B, P) gradient, averaged over the candidates
    wobble: Tensor  # (B, P) standard deviation of the gradient over the candidates
    curvature: Tensor  # (B, P) diagonal of the precision
    factor: Tensor | None  # (B, P, P) Cholesky factor of the precision
    gained: Tensor  # (B, 1) change of log density at the last move

    log_density: Tensor  # (B, 1)

    @property
    def spread(self) -> Tensor:
        """(B, P) standard deviation of each parameter given the others."""
        return self.curvature.rsqrt()

    @property
    def step(self) -> Tensor:
        """(B, P) preconditioned gradient, bounded."""
        if self.factor is None:
            return torch.tanh(self.score / self.curvature)
        newton = torch.cholesky_solve(self.score[..., None], self.factor)[..., 0]
        length = newton.detach().abs().amax(-1, keepdim=True)
        return newton * (_TRUST_RADIUS / length.clamp(min=_TRUST_RADIUS))

    def features(self, sizes: Tensor) -> Tensor:
        """(B, P, 9) squashed inputs of every token."""
        spread = self.spread
        columns = (self.z, torch.asinh(3 * self.step), torch.asinh(self.score * spread), torch.asinh(self.score / 10),
                   self.curvature.log() / 4, torch.asinh(self.wobble * spread),
                   torch.tanh(self.gained / 10).expand_as(self.z))
        return torch.cat([torch.stack(columns, -1), sizes], -1)


_TOKEN_FEATURES = 9


@dataclass(frozen=True)
class _Look:
    """Evaluates the log joint around a centre."""

    log_joint: LogJoint
    full: bool
    correlated: bool
    candidates: int
    layers: int

    def start(self, z: Tensor) -> _State:
        state = self._state(z, z[:, None], torch.zeros_like(z), None)
        return state

    def at(self, z: Tensor, last: _State, depth: int) -> _State:
        """The state at a new centre: candidates are draws from the last guess in the second half of the layers."""
        moved = z - last.z
        if 2 * depth <= self.layers:
            return self._state(z, z[:, None], moved, last)
        return self._state(z, z[:, None] + self._offsets(last, depth), moved, last)

    def _offsets(self, last: _State, depth: int) -> Tensor:
        """(B, C, P) antithetic draws from the last guess, around zero."""
        noise = self.log_joint.fixed_noise(self.candidates // 2, _NOISE_SEED + depth)
        noise = torch.where(self.log_joint.active[:, None], noise, 0.0)
        if self.correlated and last.factor is not None:
            offsets = torch.linalg.solve_triangular(last.factor.mT, noise.mT, upper=True).mT
        else:
            offsets = noise * last.spread[:, None]
        return torch.cat([offsets, -offsets], 1).detach()

    def _state(self, z: Tensor, points: Tensor, moved: Tensor, last: _State | None) -> _State:
        if self.full:
            log_density, score = self.log_joint.score(points)
            precision = self.log_joint.precision(points)
            factor, curvature = _cholesky(precision), precision.diagonal(dim1=-2, dim2=-1)
        else:
            geometry = self.log_joint.geometry(points)
            log_density, score = geometry.log_density, geometry.score
            factor, curvature = None, geometry.curvature.mean(1)
        average = log_density.mean(1, keepdim=True)
        gained = torch.zeros_like(average) if last is None else (average - last.log_density).nan_to_num()
        wobble = (score - score.mean(1, keepdim=True)).square().mean(1).add(1e-12).sqrt()
        return _State(z, moved, score.mean(1), wobble, curvature, factor, gained, average)


def _cholesky(precision: Tensor) -> Tensor:
    """Lower factor in float32, through double precision where that fails."""
    factor, failed = torch.linalg.cholesky_ex(precision)
    if not failed.any():
        return factor
    wide = precision.double()
    jitter = 1e-10 * wide.diagonal(dim1=-2, dim2=-1).amax(-1)
    wide = wide + torch.diag_embed(jitter[:, None].expand(wide.shape[:2]))
    return torch.linalg.cholesky(wide).to(precision.dtype)


@dataclass(frozen=True)
class _Messages:
    """Who talks to whom: everyone by attention, and parameters that share an index along a named axis by means."""

    active: Tensor  # (B, P)
    all_active: bool
    pooled: bool
    groups: tuple[tuple[Tensor, int], ...]  # (index (P,), number of groups)

    @classmethod
    def of(cls, log_joint: LogJoint, pooled: bool) -> _Messages:
        groups = []
        for index in log_joint.groups.values():
            count = int(index.max()) + 1
            if bool((index >= 0).sum() > count):  # someone shares an index
                groups.append((torch.where(index < 0, count, index), count + 1))
        return cls(log_joint.active, bool(log_joint.active.all()), pooled, tuple(groups))

    def group_means(self, tokens: Tensor, group: tuple[Tensor, int]) -> Tensor:
        """(B, P, T) mean over the active parameters of the same index; zero for those that have none."""
        index, count = group
        weight = self.active[..., None].to(tokens.dtype)
        sums = tokens.new_zeros(tokens.shape[0], count, tokens.shape[2]).index_add(1, index, tokens * weight)
        sizes = weight.new_zeros(weight.shape[0], count, 1).index_add(1, index, weight)
        means = (sums / sizes.clamp(min=1))[:, index]
        return torch.where((index < count - 1)[:, None], means, 0.0)


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
        for weight in (self.out.weight, self.mlp[-1].weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, tokens: Tensor, features: Tensor, messages: _Messages) -> Tensor:
        tokens = tokens + self.read(features)
        normed = self.norm1(tokens)
        update = self._attend(normed, messages)
        for group in messages.groups:
            update = update + self.share(messages.group_means(normed, group))
        tokens = tokens + update
        return tokens + self.mlp(self.norm2(tokens))

    def _attend(self, tokens: Tensor, messages: _Messages) -> Tensor:
        q, k, v = self.qkv(tokens).chunk(3, -1)
        mask = None if messages.all_active else messages.active[:, None, None]
        if messages.pooled:  # P × inducing, in place of P × P
            seeds = self.seeds.expand(tokens.shape[0], -1, -1)
            v = self._attention(seeds, k, v, mask)
            k, mask = seeds, None
        return self.out(self._attention(q, k, v, mask))

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class _Layer(nn.Module):
    """One refinement: mix, then move the centre by a scaled step, momentum and a small nudge of its own."""

    def __init__(self, width: int, heads: int, inducing: int):
        super().__init__()
        self.mixer = _Mixer(width, heads, inducing)
        self.move = nn.Linear(width, 3)
        nn.init.normal_(self.move.weight, std=0.02)
        nn.init.zeros_(self.move.bias)

    def forward(self, tokens: Tensor, state: _State, sizes: Tensor, messages: _Messages) -> tuple[Tensor, Tensor]:
        tokens = self.mixer(tokens, state.features(sizes), messages)
        gain, inertia, nudge = self.move(tokens).unbind(-1)
        own = state.spread * torch.tanh(nudge)
        if state.factor is not None:
            return tokens, state.z + state.step * 2 * torch.sigmoid(gain) + own
        momentum = state.moved * 0.9 * torch.sigmoid(inertia)
        return tokens, state.z + state.step * 0.6 * torch.sigmoid(gain) + momentum + own
