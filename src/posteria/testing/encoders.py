"""Contract of an encoder, for posteria's own and for yours.

Examples:
    >>> from posteria.encoders import DeepSetsEncoder
    >>> from posteria.testing.encoders import check_encoder
    >>> check_encoder(lambda spec: DeepSetsEncoder(spec, width=32))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from posteria.curvature import DenseCurvature, DiagonalCurvature
from posteria.encoders.base import Encoder, EncoderSpec
from posteria.randomness import generator_for
from posteria.types import Context, Curvature, Dataset, Geometry, LogJoint

Build = Callable[[EncoderSpec], Encoder]
LogJointOf = Callable[[Dataset], LogJoint]

_SPEC = EncoderSpec(num_columns=4, num_blocks=2)
_BATCH, _ROWS = 3, 7
# Sums in another order differ by rounding alone.
_RTOL, _ATOL = 1e-3, 1e-4


class LinearLogJoint:
    """Linear regression with weights and a bias, all N(0, 1), and noise variance 0.25: a known log joint.

    Implements :class:`posteria.types.LogJoint` without any model, so that encoders can be tested alone.
    """

    noise_variance = 0.25

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        batch, _, columns = dataset.x.shape
        bias = torch.ones(batch, 1, dtype=torch.bool, device=dataset.device)
        self.active = torch.cat([dataset.features, bias], -1)
        self.location, self.scale = dataset.x.new_zeros(columns + 1), dataset.x.new_ones(columns + 1)
        self.roles = torch.tensor([0] * columns + [1], device=dataset.device)
        index = torch.arange(columns + 1, device=dataset.device)
        self.groups: Mapping[str, Tensor] = {"features": torch.where(index < columns, index, -1)}
        ones = dataset.x.new_ones(*dataset.x.shape[:2], 1)
        real = dataset.observed[..., None] & self.active[:, None]
        self._design = torch.where(real, torch.cat([dataset.x, ones], -1), 0.0)
        y = dataset.x.new_zeros(dataset.x.shape[:2]) if dataset.y is None else dataset.y
        self._y = torch.where(dataset.observed, y, 0.0)

    def __getitem__(self, index: Tensor) -> LinearLogJoint:
        """That of the chosen datasets."""
        return LinearLogJoint(self.dataset[index])

    def score(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Log density (B, C) and its gradient (B, C, P) at z (B, C, P)."""
        z = torch.where(self.active[:, None], z, 0.0)
        errors = self._y[:, None] - z @ self._design.mT
        density = -0.5 * (errors.square().sum(-1) / self.noise_variance + z.square().sum(-1))
        return density, errors @ self._design / self.noise_variance - z

    def geometry(self, z: Tensor) -> Geometry:
        """Density, score and diagonal curvature at z (B, C, P)."""
        curvature = self._design.square().sum(1) / self.noise_variance + 1.0
        return Geometry(*self.score(z), curvature[:, None].expand_as(z))

    def curvature(self, z: Tensor, dense_up_to: int) -> Curvature:
        """The negative Hessian, the same at every z (B, C, P); its diagonal beyond ``dense_up_to`` parameters."""
        if z.shape[-1] > dense_up_to:
            return DiagonalCurvature(self.geometry(z).curvature.mean(1))
        eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
        return DenseCurvature(self._design.mT @ self._design / self.noise_variance + eye)

    def expectation(self, z: Tensor, spread: Tensor, factor: Tensor | None, dense_up_to: int) -> None:
        return None

    def fixed_noise(self, num: int, seed: int) -> Tensor:
        """(num, P) standard normal numbers; a parameter's do not depend on how many others there are."""
        keys = [*range(1, len(self.scale)), 0]  # the bias comes last, wherever that is
        columns = [torch.randn(num, generator=generator_for(seed, key)) for key in keys]
        return torch.stack(columns, -1).to(self.scale)


def random_dataset(spec: EncoderSpec = _SPEC, num_datasets: int = _BATCH, rows: int = _ROWS, seed: int = 0) -> Dataset:
    """A batch without padding that fits ``spec``: standard normal x, and y noise or random classes."""
    generator = generator_for(seed)
    x = torch.randn(num_datasets, rows, spec.num_columns, generator=generator)
    y = torch.randn(num_datasets, rows, generator=generator)
    if spec.num_classes:
        y = torch.randint(spec.num_classes, (num_datasets, rows), generator=generator).float()
    return Dataset.of(x, y if spec.has_y else None)


def check_encoder(build: Build, spec: EncoderSpec = _SPEC, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Run every check below on the encoder that ``build(spec)`` makes.

    Args:
        build: makes an encoder; called twice (the second takes the state of the first).
        spec: what its datasets look like; at least two columns.
        log_joint_of: the log joint of a dataset; by default linear regression's.

    Raises:
        AssertionError: the first promise that the encoder breaks.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder, other = build(spec).eval(), build(spec).eval()
    dataset = random_dataset(spec)
    check_context(encoder, dataset, log_joint_of)
    check_row_padding(encoder, dataset, log_joint_of)
    check_column_padding(encoder, dataset, log_joint_of)
    check_batching(encoder, dataset, log_joint_of)
    check_order(encoder, dataset, log_joint_of)
    check_size_is_visible(encoder, dataset, log_joint_of)
    check_single_row(encoder, dataset, log_joint_of)
    check_gradients(encoder, dataset, log_joint_of)
    check_state(encoder, other, dataset, log_joint_of)


def check_context(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Shapes, finite values, and exactly what the class says it gives; the same values on every call."""
    context = _context(encoder, dataset, log_joint_of)
    batch, size = log_joint_of(dataset).active.shape
    assert context.summary.shape == (batch, encoder.summary_dim), f"summary: shape {tuple(context.summary.shape)}"
    assert torch.equal(context.active, log_joint_of(dataset).active), "active differs from the log joint's"
    assert (context.tokens is None) == (encoder.token_dim is None), "token_dim does not say whether there are tokens"
    assert (context.location is not None) == encoder.located == (context.scale is not None), "located is not true"
    expected = {"tokens": (batch, size, encoder.token_dim), "location": (batch, size), "scale": (batch, size),
                "factor": (batch, size, size)}
    for name, value in _values(context).items():
        assert value.isfinite().all(), f"{name} is not finite"
        assert value.shape == expected.get(name, value.shape), f"{name}: shape {tuple(value.shape)}"
    assert context.scale is None or (context.scale > 0).all(), "scale is not positive"
    _same(context, _context(encoder, dataset, log_joint_of), "a second call")


def check_row_padding(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Padded rows, at the end or between real ones and whatever they hold, change nothing."""
    want = _context(encoder, dataset, log_joint_of)
    rows, columns = dataset.x.shape[1:]
    padded = dataset.padded(rows + 5, columns)
    _same(want, _context(encoder, _junk_rows(padded), log_joint_of), "row padding")
    spread = _rows(padded, _interleaved(rows, 5))
    _same(want, _context(encoder, _junk_rows(spread), log_joint_of), "padding between rows")


def check_column_padding(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """What padded columns hold changes nothing; where any size is accepted, nor does their number."""
    narrow = _without_last_column(dataset)
    masked = narrow.padded(narrow.x.shape[1], dataset.x.shape[2])
    want = _context(encoder, masked, log_joint_of)
    junk = torch.where(masked.features[:, None], masked.x, 37.0)
    _same(want, _context(encoder, replace(masked, x=junk), log_joint_of), "contents of padded columns")
    if encoder.free_size:
        _same(_active_only(want), _active_only(_context(encoder, narrow, log_joint_of)), "column padding")


def check_batching(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """A dataset's context does not depend on the others in its batch, of other sizes included."""
    columns = torch.arange(dataset.x.shape[2])
    rows = torch.arange(dataset.x.shape[1])
    index = torch.arange(len(dataset))[:, None]
    features, observed = columns < columns.numel() - index % 2, rows < rows.numel() - index
    x = dataset.x * features[:, None] * observed[..., None]
    mixed = Dataset(x, None if dataset.y is None else dataset.y * observed, observed, features)
    together = _context(encoder, mixed, log_joint_of)
    for i in range(len(mixed)):
        alone = _context(encoder, mixed[i:i + 1], log_joint_of)
        _same(_take(together, i), alone, f"dataset {i} alone")


def check_order(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Permuted rows give the same context where ``order_invariant`` claims it, and another one where not."""
    flipped = _rows(dataset, torch.arange(dataset.x.shape[1]).flip(0))
    want, got = (_context(encoder, d, log_joint_of) for d in (dataset, flipped))
    if encoder.order_invariant:
        _same(want, got, "the order of rows")
    else:
        assert _differ(want, got), "order_invariant is False, yet the order of rows changes nothing"


def check_size_is_visible(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Every row twice is more evidence, and must change the context."""
    doubled = _rows(dataset, torch.arange(dataset.x.shape[1]).repeat(2))
    want, got = (_context(encoder, d, log_joint_of) for d in (dataset, doubled))
    assert _differ(want, got), "twice the rows give the same context: the size of the dataset is invisible"


def check_single_row(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """One real row among padding gives the finite context of that row."""
    observed = torch.zeros_like(dataset.observed)
    observed[:, 2] = True
    alone = _rows(dataset, torch.tensor([2]))
    _same(_context(encoder, alone, log_joint_of),
          _context(encoder, replace(dataset, observed=observed), log_joint_of), "all rows but one masked")


def check_gradients(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """Gradients reach the weights and are finite, with and without padding."""
    for batch in (dataset, dataset.padded(dataset.x.shape[1] + 1, dataset.x.shape[2])):
        encoder.zero_grad()
        values = _values(encoder(batch, log_joint_of(batch)))
        torch.stack([value.square().sum() for value in values.values() if value.requires_grad]).sum().backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        assert gradients, "no weight gets a gradient"
        assert all(g.isfinite().all() for g in gradients), "gradients are not finite"
    encoder.zero_grad()


def check_state(encoder: Encoder, other: Encoder, dataset: Dataset,
                log_joint_of: LogJointOf = LinearLogJoint) -> None:
    """An encoder built anew gives the same context once it has loaded the state."""
    other.load_state_dict(encoder.state_dict())
    _same(_context(encoder, dataset, log_joint_of), _context(other, dataset, log_joint_of), "loading its state")


@torch.no_grad()
def _context(encoder: Encoder, dataset: Dataset, log_joint_of: LogJointOf) -> Context:
    return encoder(dataset, log_joint_of(dataset))


def _values(context: Context) -> dict[str, Tensor]:
    """Everything in a context but its mask."""
    named = {f.name: getattr(context, f.name) for f in fields(context) if f.name != "active"}
    return {name: value for name, value in named.items() if value is not None}


def _same(want: Context, got: Context, what: str) -> None:
    for name, value in _values(want).items():
        torch.testing.assert_close(_values(got)[name], value, rtol=_RTOL, atol=_ATOL,
                                   msg=lambda m, n=name: f"{what}: {n}: {m}")


def _differ(one: Context, two: Context) -> bool:
    pairs = zip(_values(one).values(), _values(two).values(), strict=True)
    return any(not torch.allclose(a, b, rtol=_RTOL, atol=_ATOL) for a, b in pairs)


def _take(context: Context, index: int) -> Context:
    part = {name: value[index:index + 1] for name, value in _values(context).items()}
    return replace(context, active=context.active[index:index + 1], **part)


def _active_only(context: Context) -> Context:
    """The context without the columns of inactive parameters, which must be the same ones throughout."""
    keep = context.active[0]
    per_parameter = {"tokens", "location", "scale", "factor"}
    part = {n: v[:, keep] for n, v in _values(context).items() if n in per_parameter}
    if "factor" in part:
        part["factor"] = part["factor"][:, :, keep]
    return replace(context, active=context.active[:, keep], **part)


def _rows(dataset: Dataset, index: Tensor) -> Dataset:
    y = None if dataset.y is None else dataset.y[:, index]
    return Dataset(dataset.x[:, index], y, dataset.observed[:, index], dataset.features)


def _interleaved(real: int, padded: int) -> Tensor:
    """Indices that put padding (the last ``padded`` of real + padded rows) between real rows, in their order."""
    place = torch.cat([2.0 * torch.arange(real), 2.0 * torch.arange(padded) - 1])
    return place.argsort()


def _junk_rows(dataset: Dataset) -> Dataset:
    """Large finite values in padded rows; y stays a class that exists."""
    y = None if dataset.y is None else torch.where(dataset.observed, dataset.y, 1.0)
    return replace(dataset, x=torch.where(dataset.observed[..., None], dataset.x, 37.0), y=y)


def _without_last_column(dataset: Dataset) -> Dataset:
    return Dataset(dataset.x[..., :-1], dataset.y, dataset.observed, dataset.features[:, :-1])
