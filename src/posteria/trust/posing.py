"""Models and posteriors as the refinement room sees them: densities in prior-whitened parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.distributions import Categorical

from posteria.densities.selective import draws_of
from posteria.densities.symmetric import SymmetrisedTheta, permutations_of_axis
from posteria.errors import InputError, UnsupportedError
from posteria.models.base import Model
from posteria.models.hidden_units import unit_moves
from posteria.models.log_joint import ModelLogJoint
from posteria.models.ordering import in_order
from posteria.models.whitened import Whitened, whitened
from posteria.randomness import generator_for
from posteria.refinement import Problem, Source
from posteria.trust.nesting import nesting_of
from posteria.trust.outlying import led_by_few
from posteria.types import Dataset, ThetaDistribution

# Likelihood terms (datasets, draws, rows) that are computed at once.
_BLOCK_ENTRIES = 2**21
# Chains times rows that go through a processor together.
_CHAIN_ROWS = 2**17
_CHAINS = 64
_LONGEST_AXIS = 5
_PREDICTED_ROWS = 32
# Root mean square of what rounding changes in draws, in their sds: adds half a percent to an sd.
MOST_ROUNDING = 0.1


def problem_of(model: Model, dataset: Dataset, whiten: bool = True) -> Problem:
    """The posteriors of B datasets, in double precision.

    In parameters in which priors are normal, unless ``whiten`` is False: modes are not the same in all parameters.

    What an answer must get right are the parameters; where the model does not know the labels of some (mixture
    components), these in order along the data's widest direction; where those labels are too many to list (hidden
    units), the predictions at the dataset's first rows.

    Raises:
        UnsupportedError: the model has no likelihood.
    """
    if not model.has_likelihood:
        raise UnsupportedError.of("model", f"{model.name!r}, which can only be simulated", "a model with a likelihood")
    original, model, wide = model, whitened(model) if whiten else model, dataset.double()
    joint, plain = ModelLogJoint(model, wide), ModelLogJoint(model, dataset)
    view = _View(model, wide, joint)
    permutations = relabellings(model, joint)
    listed = permutations is not None or not model.exchangeable_axes
    if not model.exchangeable_axes:
        quantities, counted = view.parameters, joint.active
    elif listed:
        quantities, counted = view.ordered, joint.active
    else:
        quantities, counted = view.predictions, view.rows_mask
    moves = unit_moves(model, wide, joint)
    # Those go through datasets one by one.
    block = 1 if moves is not None else max(1, _CHAIN_ROWS // (_CHAINS * dataset.x.shape[1]))
    far = None if permutations is None else partial(led_by_few, model, dataset)
    return Problem(joint, view.density, quantities, counted, lambda index: problem_of(original, dataset[index], whiten),
                   permutations, listed, plain.steer, moves, block,
                   nesting_of(model, wide, joint), far)


def relabellings(model: Model, joint: ModelLogJoint) -> Tensor | None:
    """(G, P) permutations that leave the likelihood as it is; None where there are none, or too many to list."""
    axes = model.exchangeable_axes
    if len(axes) != 1 or model.axes.get(axes[0], 0) > _LONGEST_AXIS:
        return None
    return permutations_of_axis(joint.roles, joint.groups[axes[0]])


@dataclass(frozen=True)
class _View:
    """Functions of z (B, S, P) for a model and its datasets."""

    model: Model
    dataset: Dataset
    joint: ModelLogJoint

    def density(self, z: Tensor) -> Tensor:
        """(B, S) log joint density of z, with its constants."""
        volume = torch.where(self.joint.active, self.joint.scale.log(), 0.0).sum(-1, keepdim=True)
        block = max(1, _BLOCK_ENTRIES // (len(z) * self.dataset.x.shape[1]))
        with torch.no_grad():
            parts = [self.model.log_joint(self.joint.theta(part.double()), self.dataset) for part in z.split(block, 1)]
        return torch.cat(parts, 1) + volume

    def parameters(self, z: Tensor) -> Tensor:
        """(B, S, P) theta, up to location and scale."""
        return self.model.theta(self.joint.theta(z), self.dataset) if isinstance(self.model, Whitened) else z

    def ordered(self, z: Tensor) -> Tensor:
        """(B, S, P) parameters with exchangeable entries in an order that no relabelling changes."""
        return in_order(self.model, self.dataset, self.parameters(z))

    @property
    def _first_rows(self) -> Tensor:
        """(B, R) long: places of the first real rows."""
        return torch.sort((~self.dataset.observed).to(torch.uint8), dim=-1, stable=True).indices[:, :_PREDICTED_ROWS]

    @property
    def rows_mask(self) -> Tensor:
        """(B, R) bool: which of the predicted rows are real."""
        return self.dataset.observed.gather(1, self._first_rows)

    def predictions(self, z: Tensor) -> Tensor:
        """(B, S, R) predicted mean, or probability of the last class, at the first real rows."""
        rows = self._first_rows
        x = self.dataset.x.gather(1, rows[..., None].expand(-1, -1, self.dataset.x.shape[-1]))
        inputs = Dataset(x, None, self.rows_mask, self.dataset.features)
        block = max(1, _BLOCK_ENTRIES // (len(z) * rows.shape[1]))
        with torch.no_grad():
            parts = [_mean(self.model, self.joint.theta(part.double()), inputs) for part in z.split(block, 1)]
        return torch.cat(parts, 1)


def _mean(model: Model, theta: Tensor, inputs: Dataset) -> Tensor:
    distribution = model.predict(theta, inputs)
    return distribution.probs[..., -1] if isinstance(distribution, Categorical) else distribution.mean


def to_z(problem: Problem, theta: Tensor) -> Tensor:
    """(B, S, P) of theta, zero at inactive parameters."""
    joint, model = problem.joint, _model_of(problem)
    own = theta.double() if not isinstance(model, Whitened) else model.units(theta.double(), joint.dataset)
    return torch.where(joint.active[:, None], (own - joint.location) / joint.scale, 0.0)


def to_theta(problem: Problem, z: Tensor) -> Tensor:
    """(B, S, P) of z, zero at inactive parameters."""
    joint, model = problem.joint, _model_of(problem)
    own = joint.location + joint.scale * z
    theta = own if not isinstance(model, Whitened) else model.theta(own, joint.dataset)
    return torch.where(joint.active[:, None], theta, 0.0)


def log_volume(problem: Problem, z: Tensor) -> Tensor:
    """(B, S) log |dtheta / dz|."""
    joint, model = problem.joint, _model_of(problem)
    slopes = joint.scale.double().log().expand_as(z)
    if isinstance(model, Whitened):
        slopes = slopes + model.log_slopes(joint.location + joint.scale * z, joint.dataset)
    return torch.where(joint.active[:, None], slopes, 0.0).sum(-1)


def changed(problem: Problem, theta: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Draws (B, S, P) and their log densities (B, S), in z; NaN where rounding has changed how far draws are apart."""
    z = to_z(problem, theta)
    return z, torch.where(_distinct(theta, problem.active), log_q.double() + log_volume(problem, z), torch.nan)


def _distinct(theta: Tensor, active: Tensor) -> Tensor:
    """(B, 1) bool: the numbers that theta's type has are close together beside the spread of its draws (B, S, P).

    Where they are not, draws do not follow the density that is theirs, and no weight sees that.
    """
    rounding = theta.abs().amax(1) * torch.finfo(theta.dtype).eps / 12**0.5
    return ((rounding <= MOST_ROUNDING * theta.std(1)) | ~active).all(-1, keepdim=True)


def _model_of(problem: Problem) -> Model | None:
    return problem.joint.model if isinstance(problem.joint, ModelLogJoint) else None


def symmetric(distribution: ThetaDistribution, problem: Problem) -> ThetaDistribution:
    """The distribution, averaged over relabellings where the model has some that it does not know of."""
    if problem.permutations is None or isinstance(distribution, SymmetrisedTheta):
        return distribution
    return SymmetrisedTheta(distribution, problem.permutations)


def source_of(problem: Problem, distribution: ThetaDistribution, num_samples: int, seed: int) -> Source:
    """An estimator's distribution as the ladder takes it; without densities where it has none."""
    def generator(number: int) -> torch.Generator:
        return generator_for(seed, number, problem.joint.dataset.device)

    def draw(number: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return changed(problem, *distribution.rsample_and_log_prob(num_samples, generator(number)))

    def more(index: Tensor, number: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            return changed(problem[index], *draws_of(distribution, index, num_samples, generator(number)))

    def log_prob(z: Tensor) -> Tensor:
        kind = problem.joint.scale.dtype
        with torch.no_grad():
            return distribution.log_prob(to_theta(problem, z).to(kind)).double() + log_volume(problem, z)

    try:
        z, log_q = draw(0)
    except UnsupportedError:
        return Source(to_z(problem, distribution.rsample(num_samples, generator(0))), None)
    return Source(z, log_q, more, log_prob)


def given_source(problem: Problem, theta: Tensor, log_prob: Tensor | None) -> Source:
    """Draws theta (B, S, P) and their log densities (B, S) from elsewhere.

    Raises:
        InputError: shapes that do not fit, or draws that are not finite.
    """
    batch, size = problem.active.shape
    if theta.ndim != 3 or (theta.shape[0], theta.shape[2]) != (batch, size):
        raise InputError.of("theta", f"shape {tuple(theta.shape)}", f"shape ({batch}, draws, {size})")
    if not theta.isfinite().all():
        raise InputError.of("theta", f"{int((~theta.isfinite()).sum())} values that are not finite", "finite draws")
    if log_prob is None:
        return Source(to_z(problem, theta), None)
    if log_prob.shape != theta.shape[:2]:
        raise InputError.of("log_prob", f"shape {tuple(log_prob.shape)}", f"shape {tuple(theta.shape[:2])}")
    return Source(*changed(problem, theta, log_prob))

