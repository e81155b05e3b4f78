"""Time of one training step at the paper's size, posteria against the same networks written plainly.

    python benchmarks/step_speed/bench.py                       # everything, a few minutes
    python benchmarks/step_speed/bench.py --sections transformer ablation

Both sides of a comparison alternate in one process, and the smallest time of each counts. Seconds are
seconds of processor time (with one thread they are what the wall clock shows on an idle machine), so
that others on the machine disturb little. Results are merged into results.json, and README.md is
written from it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from plain import PlainDeepSets, PlainFlow, PlainGaussian, PlainGRU, PlainTransformer, plain_batch, plain_step
from report import write_report
from torch import Tensor, nn

from posteria.encoders import transformer
from posteria.estimator import Estimator, EstimatorInfo
from posteria.models import LinearRegression
from posteria.objectives import ReverseKL
from posteria.objectives.base import Step
from posteria.parts import Part
from posteria.randomness import generator_for
from posteria.tasks import SimulatedTask
from posteria.types import Dataset

HERE = Path(__file__).parent
BATCH, COLUMNS, MEAN_ROWS = 128, 100, 96
PAPER_FLOW = Part("flow", {"transforms": 6, "hidden": (128,)})
PLAIN = {"transformer": PlainTransformer, "deepsets": PlainDeepSets, "gru": PlainGRU}
TARGETS = {"transformer": 4.0, "deepsets": 1.5, "gru": 1.5, "transformer+flow": 1.5, "deepsets+flow": 1.5,
           "gru+flow": 1.5}
StepFunction = Callable[[], None]


def build_estimator(encoder: str, density: str | Part = "gaussian", columns: int = COLUMNS,
                    bf16: bool = True) -> Estimator:
    """An estimator at the paper's size, its encoder in bfloat16."""
    estimator = Estimator(LinearRegression(), encoder, density, EstimatorInfo((columns, columns)))
    estimator.encoder_dtype = torch.bfloat16 if bf16 else None
    return estimator.train()


def our_step(estimator: Estimator, batch_size: int = BATCH, rows: int | None = MEAN_ROWS, columns: int = COLUMNS,
             draw: Callable[[int, torch.Generator], Dataset] | None = None) -> StepFunction:
    """A training step of posteria: one size per batch, four draws per dataset, fused Adam, clipping."""
    task = SimulatedTask(estimator.model, rows=(64, 128), columns=(columns, columns))
    weights = list(estimator.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-4, weight_decay=0.0, fused=True)
    objective, generator = ReverseKL(), generator_for(0)

    def step() -> None:
        dataset = draw(batch_size, generator) if draw else task.draw(batch_size, generator, rows=rows)[0]
        loss = objective(estimator.distribution(dataset), dataset, None, estimator.model, Step(1.0, generator))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()

    return step


def time_steps(steps: dict[str, StepFunction], repeats: int) -> dict[str, float]:
    """Least processor seconds of each step, the steps taking turns; the first turn warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            began = time.process_time()
            step()
            if turn:
                seconds[name].append(time.process_time() - began)
    return {name: min(times) for name, times in seconds.items()}


def compare(name: str, repeats: int) -> dict[str, float]:
    """Seconds of a plain step and of ours, and their ratio."""
    encoder, _, flow = name.partition("+")
    torch.manual_seed(0)
    plain = PLAIN[encoder](COLUMNS)
    density = (PlainFlow if flow else PlainGaussian)(plain.width, COLUMNS + 1)
    ours = our_step(build_estimator(encoder, PAPER_FLOW if flow else "gaussian"))
    seconds = time_steps({"plain": plain_step(plain, density, BATCH, COLUMNS), "posteria": ours}, repeats)
    return {**seconds, "ratio": seconds["plain"] / seconds["posteria"], "target": TARGETS[name]}


# -- what bought how much ---------------------------------------------------------------------


def _padded(num_datasets: int, _: torch.Generator) -> Dataset:
    x, y, observed = plain_batch(num_datasets, COLUMNS)
    return Dataset(x, y, observed, torch.ones(num_datasets, COLUMNS, dtype=torch.bool))


@contextmanager
def _changed(target: Any, name: str, value: Any) -> Any:
    before = getattr(target, name)
    setattr(target, name, value)
    try:
        yield
    finally:
        setattr(target, name, before)


def _variant(step: StepFunction, fused: bool, whole: bool) -> StepFunction:
    """The step with torch's fused attention kernel, and with the whole last layer computed."""

    def read(layer: Any, tokens: Tensor, real: Tensor | None) -> Tensor:
        return layer(tokens, real)[:, 0]

    def run() -> None:
        layer = transformer._Layer
        with (_changed(transformer, "_SHORT", 0 if fused else transformer._SHORT),
              _changed(layer, "read", read if whole else layer.read)):
            step()

    return run


def ablation(repeats: int) -> dict[str, float]:
    """Seconds per step as the changes to the plain Transformer add up."""
    torch.manual_seed(0)
    head = PlainGaussian(256, COLUMNS + 1)
    build = build_estimator
    steps = {
        "plain": plain_step(PlainTransformer(COLUMNS), head, BATCH, COLUMNS),
        "no dropout": plain_step(PlainTransformer(COLUMNS, 0.0), head, BATCH, COLUMNS),
        "posteria's layers and loss": _variant(our_step(build("transformer", bf16=False), draw=_padded), True, True),
        "last layer for the summary token only":
            _variant(our_step(build("transformer", bf16=False), draw=_padded), True, False),
        "one size per batch, no mask": _variant(our_step(build("transformer", bf16=False)), True, False),
        "bfloat16 matrix products": _variant(our_step(build("transformer")), True, False),
        "attention by products": our_step(build("transformer")),
    }
    return time_steps(steps, repeats)


# -- loss per step ----------------------------------------------------------------------------


def expected_loss(mean: Tensor, scale: Tensor, dataset: Dataset) -> Tensor:
    """Exact reverse KL (up to the evidence) of a diagonal Gaussian, a mean over datasets and per observation."""
    assert dataset.y is not None
    design = torch.cat([dataset.x, torch.ones_like(dataset.x[..., :1])], -1)
    errors = (dataset.y - (design @ mean[..., None])[..., 0]).square() + (design**2 @ scale[..., None] ** 2)[..., 0]
    divergence = 0.5 * (mean**2 + scale**2 - 1).sum(-1) - scale.log().sum(-1)
    return ((2.0 * errors.sum(-1) + divergence) / errors.shape[-1]).mean()


def loss_per_step(steps: int, batch_size: int, columns: int) -> dict[str, list[float]]:
    """Loss on the same test datasets along the same number of steps, both sides at the paper's learning rate."""
    torch.manual_seed(0)
    test = SimulatedTask(LinearRegression(), columns=(columns, columns)).draw(64, generator_for(1), rows=MEAN_ROWS)[0]
    plain, head = PlainTransformer(columns), PlainGaussian(256, columns + 1)
    ours = build_estimator("transformer", columns=columns)
    take = {"plain": plain_step(plain, head, batch_size, columns),
            "posteria": our_step(ours, batch_size, rows=None, columns=columns)}
    read: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
        "plain": lambda: _plain_moments(plain, head, test), "posteria": lambda: _our_moments(ours, test)}
    curves: dict[str, list[float]] = {"steps": [], "plain": [], "posteria": []}
    for done in range(steps + 1):
        if done % max(1, steps // 5) == 0:
            curves["steps"].append(done)
            for name, moments in read.items():
                curves[name].append(round(float(expected_loss(*moments(), test)), 3))
        if done < steps:
            for step in take.values():
                step()
    return curves


@torch.no_grad()
def _plain_moments(encoder: nn.Module, density: PlainGaussian, dataset: Dataset) -> tuple[Tensor, Tensor]:
    encoder.eval()
    mean, log_scale = density.head(encoder(dataset.x, dataset.y, dataset.observed)).chunk(2, -1)
    encoder.train()
    return mean, log_scale.exp()


@torch.no_grad()
def _our_moments(estimator: Estimator, dataset: Dataset) -> tuple[Tensor, Tensor]:
    distribution: Any = estimator.distribution(dataset)
    return distribution.mean, distribution.scale


def _sections(repeats: int, steps: int) -> dict[str, Callable[[], Any]]:
    sections: dict[str, Callable[[], Any]] = {name: lambda n=name: compare(n, repeats) for name in TARGETS}
    sections["ablation"] = lambda: ablation(repeats)
    sections["loss_2"] = lambda: loss_per_step(steps, 16, 2)
    sections["loss_100"] = lambda: loss_per_step(steps, 16, COLUMNS)
    return sections


def main() -> None:
    """Run the chosen sections and write results.json and README.md beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="timed turns, after one to warm up")
    parser.add_argument("--steps", type=int, default=150, help="of the loss-per-step comparison")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--sections", nargs="*", help="default: all")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    sections = _sections(arguments.repeats, arguments.steps)
    path = HERE / "results.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results["machine"] = {"processor": _processor(), "threads": arguments.threads, "torch": torch.__version__}
    for name in arguments.sections or sections:
        results[name] = sections[name]()
        settings = {"steps": arguments.steps} if name.startswith("loss") else {"repeats": arguments.repeats}
        results.setdefault("settings", {})[name] = settings
        sys.stdout.write(f"{name}: {results[name]}\n")
        path.write_text(json.dumps(results, indent=1) + "\n")
    write_report(results, HERE / "README.md")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    flags = " with avx512_bf16" if info.exists() and "avx512_bf16" in info.read_text() else ""
    return (names[0].partition(":")[2].strip() if names else platform.processor()) + flags


if __name__ == "__main__":
    main()
