"""README.md from results.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

_TIMED = {
    "transformer": "Transformer 4 × 256, diagonal Gaussian",
    "deepsets": "DeepSets 4 + 4 × 627, diagonal Gaussian",
    "gru": "GRU 4 × 256, diagonal Gaussian",
    "transformer+flow": "Transformer, 6 affine couplings",
    "deepsets+flow": "DeepSets, 6 affine couplings",
    "gru+flow": "GRU, 6 affine couplings",
}

_INTRODUCTION = """# Time of a training step

100-D linear regression, batch 128, 64 to 128 observations, reverse KL. *Plain* is the same architecture as one would
write it first (`plain.py`: torch's own modules, padded to 128 rows with a mask, dropout 0.1 in the Transformer, a
fresh simulation per step, float32, Adam). *posteria* is `Estimator` + `SimulatedTask` + `ReverseKL` (96
rows, the mean size; four draws per dataset where plain takes one; clipping), with the encoder in bfloat16,
which is the default on processors that multiply it (`precision="auto"`), for encoders that do not evaluate the
likelihood.

    python benchmarks/step_speed/bench.py

Seconds are the least processor time of alternating steps. """


def write_report(results: dict[str, Any], path: Path) -> None:
    """Write whichever sections there are."""
    machine = results["machine"]
    parts = [_INTRODUCTION + f"Machine: {machine['processor']}, {machine['threads']} thread(s), "
             f"torch {machine['torch']}. Timed turns: {_turns(results)}.\n", _timings(results)]
    if "ablation" in results:
        parts.append(_ablation(results["ablation"]))
    parts += [_losses(results[f"loss_{n}"], n) for n in (2, 100) if f"loss_{n}" in results]
    notes = path.parent / "notes.md"
    parts += [notes.read_text()] if notes.exists() else []
    path.write_text("\n".join(parts))


def _turns(results: dict[str, Any]) -> str:
    settings = results.get("settings", {})
    return ", ".join(f"{name} {s['repeats']}" for name, s in settings.items() if "repeats" in s)


def _timings(results: dict[str, Any]) -> str:
    lines = ["| | plain, s | posteria, s | ratio | goal |", "|---|---|---|---|---|"]
    for name, title in _TIMED.items():
        if name in results:
            r = results[name]
            lines.append(f"| {title} | {r['plain']:.2f} | {r['posteria']:.2f} | **{r['ratio']:.1f}** | {r['target']} |")
    return "\n".join(lines) + "\n"


def _ablation(seconds: dict[str, float]) -> str:
    lines = ["## What bought how much (Transformer, each line adds to those above)\n",
             "| | s per step | times faster than the line above | than plain |", "|---|---|---|---|"]
    plain = before = seconds["plain"]
    for name, value in seconds.items():
        lines.append(f"| {name} | {value:.2f} | {before / value:.2f} | {plain / value:.2f} |")
        before = value
    return "\n".join(lines) + "\n"


def _losses(curves: dict[str, list[float]], columns: int) -> str:
    lines = [f"## Loss per step, {columns} features\n",
             "Exact negative evidence bound per observation on 64 fixed test datasets; batch 16, Adam at 1e-4 both.\n",
             "| step | " + " | ".join(f"{n}" for n in curves["steps"]) + " |",
             "|---" * (len(curves["steps"]) + 1) + "|"]
    lines += [f"| {name} | " + " | ".join(f"{v:.2f}" for v in curves[name]) + " |" for name in ("plain", "posteria")]
    return "\n".join(lines) + "\n"
