"""An exploration of a small network, for the tests of explore."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from networks import ResidualNet, randomized
from torch import nn

import fxfactor
from fxfactor import Exploration
from fxfactor.exploration.state_file import Candidate

GENERATOR = torch.Generator().manual_seed(5)
TRAIN = list(torch.randn(16, 3, 16, 16, generator=GENERATOR).split(8))
VALIDATION = [(torch.randn(8, 3, 16, 16, generator=GENERATOR), torch.arange(8)) for _ in range(2)]


def model() -> nn.Module:
    torch.manual_seed(7)
    return randomized(ResidualNet(16))


def output_norm(model: nn.Module, validation: Any) -> float:
    """A metric that tells any two networks apart."""
    with torch.no_grad():
        return float(sum(model(images).double().square().sum() for images, _ in validation))


def without_seconds(result: Exploration) -> list[Candidate]:
    return [dataclasses.replace(each, seconds=0.0) for each in result.candidates]


def explore(state: Path, **settings: Any) -> Exploration:
    settings = {"levels": (0, 2, 4), "bits": (3, 8), "metric": output_norm, **settings}
    return fxfactor.explore(model(), TRAIN, VALIDATION, state=state, **settings)


def halve(qmodel: nn.Module, original: nn.Module) -> None:
    """A stand-in for fine-tuning: it changes the weights, with random numbers."""
    with torch.no_grad():
        for parameter in qmodel.parameters():
            parameter.mul_(1 - 0.1 * torch.rand(()))


def candidate(level: int, bops: int, metric: float) -> Candidate:
    return Candidate(str(level), 1.0, 4, 4, "done", metric, bops, bops, bops, 0.0, "", None)


RESULT = Exploration(tuple(candidate(*each) for each in ((0, 100, 0.9), (1, 60, 0.92), (2, 30, 0.5), (3, 20, 0.6))))
