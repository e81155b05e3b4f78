"""Training: what to train, how, and the loop."""

from posteria.training.config import ModelConfig, PartConfig, Recipe, TrainConfig, build
from posteria.training.loop import fit, train
from posteria.training.presets import PRESETS, Preset
from posteria.training.run import TrainResult

__all__ = ["PRESETS", "ModelConfig", "PartConfig", "Preset", "Recipe", "TrainConfig", "TrainResult", "build", "fit",
           "train"]
