"""Encoders: dataset -> context.

A new encoder is one file with an :class:`Encoder`, one entry here, and nothing else: the contract suite in
``posteria.testing`` runs over this registry.
"""

from __future__ import annotations

from posteria.encoders.base import Encoder, EncoderSpec
from posteria.encoders.deepsets import DeepSetsEncoder
from posteria.encoders.gru import GRUEncoder
from posteria.encoders.iterative import IterativeEncoder
from posteria.encoders.transformer import TransformerEncoder

ENCODERS: dict[str, type[Encoder]] = {
    "iterative": IterativeEncoder,
    "transformer": TransformerEncoder,
    "deepsets": DeepSetsEncoder,
    "gru": GRUEncoder,
}

__all__ = ["ENCODERS", "DeepSetsEncoder", "Encoder", "EncoderSpec", "GRUEncoder", "IterativeEncoder",
           "TransformerEncoder"]
