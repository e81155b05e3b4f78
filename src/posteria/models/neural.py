"""Neural regression and classification: one or two hidden layers, biases in the first only (as in arXiv 2502.06601)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Distribution

from posteria.errors import InputError
from posteria.models.blocks import in_blocks
from posteria.models.heads import CategoricalHead, Head, regression_head
from posteria.models.outputs import OutputModel
from posteria.models.parameters import FEATURES, Layout, Parameter
from posteria.models.rectified import Rectified
from posteria.models.unit_columns import LineColumns
from posteria.types import Dataset

# Rows of all draws of a dataset from which sums over sorted rows are worth the seconds that compiling them takes once.
_MANY_ROWS = 2**19


class _Activation(ABC):
    @abstractmethod
    def __call__(self, values: Tensor) -> Tensor: ...

    @abstractmethod
    def slope(self, activations: Tensor) -> Tensor:
        """The derivative, as a function of the activations."""


class _Relu(_Activation):
    def __call__(self, values: Tensor) -> Tensor:
        return values.relu()

    def slope(self, activations: Tensor) -> Tensor:
        return activations.sign()  # they are not negative; many times faster than a comparison


class _Tanh(_Activation):
    def __call__(self, values: Tensor) -> Tensor:
        return values.tanh()

    def slope(self, activations: Tensor) -> Tensor:
        return 1.0 - activations**2


ACTIVATIONS: dict[str, _Activation] = {"relu": _Relu(), "tanh": _Tanh()}


@dataclass(frozen=True)
class _NeuralLine:
    """Outputs of the network and products with their Jacobian, by back-propagation written out.

    ``levels`` are the inputs of each weight matrix: x, then the hidden activations.
    ``weights`` are the matrices after the first, which the cotangents travel back through.
    """

    outputs: Tensor
    levels: tuple[Tensor, ...]  # (B, 1, N, D), (B, S, N, H), ...
    weights: tuple[Tensor, ...]  # (B, S, H2, H), ..., (B, S, K, H)
    activation: _Activation

    def pull_back(self, cotangent: Tensor) -> Tensor:
        signals = self._signals(cotangent)
        parts = _products(signals, self.levels)
        return torch.cat([parts[0], signals[0].sum(2), *parts[1:]], -1)

    def pull_back_squared(self, root: Tensor) -> Tensor:
        # Every square of the Jacobian is a product of squares: of a layer's signal and of its input.
        squares = [(signal**2).sum(-2) for signal in self._root_signals(root)]
        parts = _products(squares, [level**2 for level in self.levels])
        return torch.cat([parts[0], squares[0].sum(2), *parts[1:]], -1)

    def jacobian(self, root: Tensor) -> Tensor:
        signals = self._root_signals(root)
        parts = [(signal[..., None] * level[:, :, :, None, None]).flatten(4)
                 for signal, level in zip(signals, self.levels, strict=True)]
        return torch.cat([parts[0], signals[0], *parts[1:]], -1).flatten(2, 3)

    def _backwards(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights, and slopes (B, S, N, H) of the layer before them, the last layer first."""
        for weight, level in zip(reversed(self.weights), reversed(self.levels), strict=False):
            yield weight, self.activation.slope(level)

    def _signals(self, cotangent: Tensor) -> list[Tensor]:
        """(B, S, N, width) of every layer's input sums, the first layer first, for a cotangent (B, S, N, K)."""
        signals = [cotangent]
        for weight, slope in self._backwards():
            signals.insert(0, (weight.mT @ signals[0].mT).mT * slope)  # in memory as the slopes are
        return signals

    def _root_signals(self, root: Tensor) -> list[Tensor]:
        """(B, S, N, R, width): the same for the R columns of a root at once."""
        signals = [root.mT]
        for weight, slope in self._backwards():
            signals.insert(0, (signals[0] @ weight[:, :, None]) * slope[:, :, :, None])
        return signals


class _Neural(OutputModel):
    """f(x) = W_out a(... a(W x + b)); one axis per hidden layer, so that tokens can be grouped by unit."""

    linear_blocks = ("output_weights",)

    def __init__(self, head: Head, hidden: int, layers: int, activation: str,
                 priors: Mapping[str, Distribution] | None):
        if not isinstance(hidden, int) or hidden < 1:
            raise InputError.of("hidden", repr(hidden), "a width of 1 or more")
        if layers not in (1, 2):
            raise InputError.of("layers", repr(layers), "1 or 2")
        if activation not in ACTIVATIONS:
            raise InputError.of("activation", repr(activation), f"one of {sorted(ACTIVATIONS)}")
        self.hidden, self.layers, self.activation = hidden, layers, activation
        self.exchangeable_axes = ("hidden", "hidden2")[:layers]
        self.separate_units = layers == 1
        many = head.target == "class"
        axes = dict.fromkeys(self.exchangeable_axes, hidden) | ({"classes": head.num_outputs} if many else {})
        super().__init__(head, _blocks(self.exchangeable_axes, many), axes, priors)

    def design(self, theta: Tensor, dataset: Dataset) -> Tensor:
        return self.linearize(theta, dataset).levels[-1]

    def rectified(self, theta: Tensor, dataset: Dataset) -> Rectified | None:
        root, real = self._root(theta, dataset), dataset.observed[0]
        one_line_each = self.activation == "relu" and self.separate_units and dataset.features.sum() == 1
        if not one_line_each or root.shape[2] > 1 or dataset.y is None:
            return None
        layout, features = self.layout_of(dataset), dataset.features[0]
        slope = (layout["hidden_weights"].take(theta).double() * features).sum(-1)
        offset = layout["hidden_bias"].take(theta).double()
        x = (dataset.x[0, real] * features).sum(-1).double()
        return Rectified(x, dataset.y[0, real].double(), slope, offset, root[:, :, 0, 0].square())

    def likelihood_score(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        value, score = in_blocks(super().likelihood_score, theta, dataset, self.hidden)
        return value, score

    def likelihood_gradient(self, theta: Tensor, dataset: Dataset) -> Tensor:
        def gradient(theta: Tensor, dataset: Dataset) -> tuple[Tensor, ...]:
            return (super(_Neural, self).likelihood_gradient(theta, dataset),)

        return in_blocks(gradient, theta, dataset, self.hidden)[0]

    def outputs(self, theta: Tensor, dataset: Dataset) -> Tensor:
        def outputs(theta: Tensor, dataset: Dataset) -> tuple[Tensor, ...]:
            return (super(_Neural, self).outputs(theta, dataset),)

        return in_blocks(outputs, theta, dataset, self.hidden)[0]

    def conditional(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor]:
        products = self._products_of_lines(theta, dataset)
        if products is not None:
            return self._given_products(theta, dataset, *products)
        mean, factor = in_blocks(super().conditional, theta, dataset, self.hidden)
        return mean, factor

    def _products_of_lines(self, theta: Tensor, dataset: Dataset) -> tuple[Tensor, Tensor] | None:
        """Products of :meth:`rectified` designs, where there are draws enough to go through datasets one by one."""
        few = theta.shape[1] * dataset.x.shape[1] < _MANY_ROWS
        if few or theta.requires_grad or theta.device.type != "cpu":
            return None
        parts = []
        for i in range(len(dataset)):
            found = self.rectified(theta[i:i + 1], dataset[i:i + 1])
            lines = None if found is None else LineColumns.of(found, 1, theta.new_ones(self.hidden).double())
            if lines is None:
                return None
            parts.append(lines.products())
        products, pulls = (torch.stack(part) for part in zip(*parts, strict=True))
        return products, pulls[..., None]

    def linearize(self, theta: Tensor, dataset: Dataset) -> _NeuralLine:
        layout, activation = self.layout_of(dataset), ACTIVATIONS[self.activation]
        x = dataset.x * dataset.features[:, None]
        levels = [x[:, None]]
        sums = _inputs_times(x, layout["hidden_weights"].take(theta)) + layout["hidden_bias"].take(theta)[:, :, None]
        later = [self._matrix(name, theta, layout) for name in ("hidden2_weights", "output_weights")[2 - self.layers:]]
        for weight in later:
            levels.append(activation(sums))
            sums = (weight @ levels[-1].mT).mT
        return _NeuralLine(sums, tuple(levels), tuple(later), activation)

    def _matrix(self, name: str, theta: Tensor, layout: Layout) -> Tensor:
        """(B, S, out, in), the single output of a regression included."""
        values = layout[name].take(theta)
        return values if values.ndim == 4 else values[:, :, None]


class NeuralRegression(_Neural):
    """y ~ N(f(x), noise), f a network with one output; every weight N(0, 1) by default.

    Args:
        hidden: width of every hidden layer.
        layers: 1 or 2 hidden layers; only the first has biases.
        activation: "relu" or "tanh".
        noise: known noise variance (0.25 in the paper), or "inferred": then ``noise_scale``, a standard
            deviation with a half-normal prior, is a parameter too.
        priors: distributions per parameter name, in place of the defaults.

    Examples:
        >>> NeuralRegression(hidden=8).layout(3).size
        40
    """

    name = "neural_regression"

    def __init__(self, hidden: int = 32, layers: int = 1, activation: str = "relu", noise: str | float = 0.25,
                 priors: Mapping[str, Distribution] | None = None):
        self._options = {"hidden": hidden, "layers": layers, "activation": activation, "noise": noise}
        super().__init__(regression_head(noise), hidden, layers, activation, priors)


class NeuralClassification(_Neural):
    """y ~ softmax(f(x) / temperature), f a network with one output per class; every weight N(0, 1) by default.

    Args:
        hidden: width of every hidden layer.
        layers: 1 or 2 hidden layers; only the first has biases.
        activation: "relu" or "tanh".
        classes: number of classes, 2 or more.
        temperature: 0.1 in the paper.
        priors: distributions per parameter name, in place of the defaults.
    """

    name = "neural_classification"

    def __init__(self, hidden: int = 32, layers: int = 1, activation: str = "relu", classes: int = 2,
                 temperature: float = 0.1, priors: Mapping[str, Distribution] | None = None):
        self._options = {"hidden": hidden, "layers": layers, "activation": activation, "classes": classes,
                         "temperature": temperature}
        super().__init__(CategoricalHead(classes, temperature), hidden, layers, activation, priors)


def _blocks(hidden_axes: tuple[str, ...], many: bool) -> tuple[Parameter, ...]:
    first = (Parameter("hidden_weights", ("hidden", FEATURES)), Parameter("hidden_bias", ("hidden",)))
    second = (Parameter("hidden2_weights", ("hidden2", "hidden")),) if len(hidden_axes) == 2 else ()
    outputs = ("classes",) if many else ()
    return (*first, *second, Parameter("output_weights", (*outputs, hidden_axes[-1])))


def _inputs_times(x: Tensor, weights: Tensor) -> Tensor:
    """(B, S, N, H) x Wᵀ for x (B, N, D) and weights (B, S, H, D), as one product per dataset.

    Rows are last in memory: the products that follow take such a transpose as it is, and would copy another order.
    """
    return (weights.flatten(1, 2) @ x.mT).unflatten(1, weights.shape[1:3]).mT


def _products(signals: Sequence[Tensor], levels: Sequence[Tensor]) -> list[Tensor]:
    """(B, S, out * in) Gᵀ a per layer, for signals G (B, S, N, out) and inputs a (B, S, N, in); the first has S = 1."""
    units = signals[0].mT
    first = (units.flatten(1, 2) @ levels[0][:, 0]).unflatten(1, units.shape[1:3])  # without a copy of x per draw
    later = [signal.mT @ level for signal, level in zip(signals[1:], levels[1:], strict=True)]
    return [part.flatten(2) for part in (first, *later)]
