"""The paper's networks and training step as one would write them first: the yardstick of this benchmark.

Everything is padded to 128 rows and masked, runs in float32, and draws one sample per dataset.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import zuko
from torch import Tensor, nn

MOST_ROWS = 128
NOISE_VARIANCE = 0.25

Batch = tuple[Tensor, Tensor, Tensor]  # x (B, N, D), y (B, N), observed (B, N)


class PlainTransformer(nn.Module):
    """torch's own encoder (normalising after each sum, ReLU), padding masked, all outputs of the last layer."""

    def __init__(self, columns: int, dropout: float = 0.1):
        super().__init__()
        self.embed = nn.Linear(columns + 1, 256)
        self.cls = nn.Parameter(torch.randn(1, 1, 256))
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.width = 256

    def forward(self, x: Tensor, y: Tensor, observed: Tensor) -> Tensor:
        rows = self.embed(torch.cat([x, y[..., None]], -1))
        tokens = torch.cat([self.cls.expand(len(x), -1, -1), rows], 1)
        padding = nn.functional.pad(~observed, (1, 0), value=False)
        return self.encoder(tokens, src_key_padding_mask=padding)[:, 0]


class PlainDeepSets(nn.Module):
    """Four layers per row, a masked mean, four layers."""

    def __init__(self, columns: int):
        super().__init__()
        self.width = 627
        self.rows, self.summarise = _network(columns + 1, self.width), _network(self.width, self.width)

    def forward(self, x: Tensor, y: Tensor, observed: Tensor) -> Tensor:
        rows = self.rows(torch.cat([x, y[..., None]], -1)) * observed[..., None]
        return self.summarise(rows.sum(1) / observed.sum(1, keepdim=True))


class PlainGRU(nn.Module):
    """torch's own GRU over the padded rows; the output at the last real row."""

    def __init__(self, columns: int):
        super().__init__()
        self.width = 256
        self.recur = nn.GRU(columns + 1, self.width, 4, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, observed: Tensor) -> Tensor:
        outputs, _ = self.recur(torch.cat([x, y[..., None]], -1))
        return outputs[torch.arange(len(x)), observed.sum(1) - 1]


class PlainGaussian(nn.Module):
    """Mean and log scale by a linear map."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.head = nn.Linear(width, 2 * size)

    def forward(self, summary: Tensor) -> tuple[Tensor, Tensor]:
        """One draw per dataset (B, P) and KL(q || N(0, I)) (B,), exact."""
        mean, log_scale = self.head(summary).chunk(2, -1)
        scale = log_scale.exp()
        divergence = 0.5 * (mean**2 + scale**2 - 1).sum(-1) - log_scale.sum(-1)
        return mean + scale * torch.randn_like(mean), divergence


class PlainFlow(nn.Module):
    """Six of zuko's affine coupling blocks (hidden width 128) over a Gaussian that the encoder gives."""

    def __init__(self, width: int, size: int):
        super().__init__()
        self.head = nn.Linear(width, 2 * size)
        self.flow = zuko.flows.NICE(size, width, transforms=6, hidden_features=(128,))

    def forward(self, summary: Tensor) -> tuple[Tensor, Tensor]:
        """One draw per dataset (B, P) and a one-draw estimate of KL(q || N(0, I)) (B,)."""
        mean, log_scale = self.head(summary).chunk(2, -1)
        base = torch.distributions.Normal(mean, log_scale.exp(), validate_args=False)
        start = base.rsample()
        theta, log_det = self.flow(summary).transform.inv.call_and_ladj(start)
        log_q = base.log_prob(start).sum(-1) - log_det
        return theta, log_q + 0.5 * (theta**2 + torch.log(torch.tensor(2 * torch.pi))).sum(-1)


def plain_batch(num_datasets: int, columns: int) -> Batch:
    """A fresh simulation, every dataset of its own size, padded."""
    rows = torch.randint(64, MOST_ROWS + 1, (num_datasets, 1))
    observed = torch.arange(MOST_ROWS) < rows
    x = torch.randn(num_datasets, MOST_ROWS, columns) * observed[..., None]
    theta = torch.randn(num_datasets, columns + 1)
    y = (x @ theta[:, :-1, None])[..., 0] + theta[:, -1:] + NOISE_VARIANCE**0.5 * torch.randn(x.shape[:2])
    return x, y * observed, observed


def plain_loss(theta: Tensor, divergence: Tensor, batch: Batch) -> Tensor:
    """Reverse KL per dataset, up to a constant."""
    x, y, observed = batch
    errors = (y - (x @ theta[:, :-1, None])[..., 0] - theta[:, -1:]) * observed
    return (divergence + 0.5 * errors.square().sum(-1) / NOISE_VARIANCE).mean()


def plain_step(encoder: nn.Module, density: nn.Module, batch_size: int, columns: int) -> Callable[[], None]:
    """A training step with Adam at the paper's learning rate."""
    optimizer = torch.optim.Adam([*encoder.parameters(), *density.parameters()], lr=1e-4)

    def step() -> None:
        batch = plain_batch(batch_size, columns)
        theta, divergence = density(encoder(*batch))
        loss = plain_loss(theta, divergence, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def _network(fan_in: int, width: int) -> nn.Sequential:
    hidden = [layer for _ in range(2) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(fan_in, width), nn.ReLU(), *hidden, nn.Linear(width, width))
