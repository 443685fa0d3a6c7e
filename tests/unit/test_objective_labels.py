"""From probabilities to labels."""

from __future__ import annotations

import math

import pytest
import torch

from sail.objective import orient, self_label

MODES = ("soft", "sampled", "argmax")


@pytest.mark.parametrize(
    ("probability", "mode", "uniform", "label"),
    [
        (0.8, "soft", 0.9, 0.8),
        (0.5, "soft", 0.0, 0.5),
        (0.8, "sampled", 0.79, 1.0),
        (0.8, "sampled", 0.8, 0.0),
        (0.0, "sampled", 0.0, 0.0),
        (1.0, "sampled", 0.9999999, 1.0),
        (0.8, "argmax", 0.9, 1.0),
        (0.2, "argmax", 0.0, 0.0),
        (0.5, "argmax", 0.0, None),
        (0.5 + 1e-12, "argmax", 0.9, 1.0),
    ],
)
def test_orient(probability: float, mode: str, uniform: float, label: float | None) -> None:
    assert orient(probability, mode, uniform) == label


@pytest.mark.parametrize("mode", MODES)
def test_abstention_stays_one(mode: str) -> None:
    """An oracle without an opinion is never turned into a coin or a tie."""
    assert orient(None, mode, 0.1) is None


@pytest.mark.parametrize("mode", ["soft", "argmax"])
@pytest.mark.parametrize("probability", [0.0, 0.125, 0.75, 1.0])
def test_swapping_the_responses_swaps_the_label(mode: str, probability: float) -> None:
    """Probabilities that binary floats hold exactly, so that 1 - (1 - p) = p."""
    assert orient(1.0 - probability, mode, 0.3) == 1.0 - orient(probability, mode, 0.3)


@pytest.mark.parametrize("probability", [0.0, 0.25, 0.8, 1.0])
def test_sampled_label_has_its_probability(probability: float) -> None:
    """The share of an even grid of uniforms that says 1 is p."""
    labels = [orient(probability, "sampled", (i + 0.5) / 1000) for i in range(1000)]
    assert sum(labels) / 1000 == pytest.approx(probability, abs=1e-9)


def test_self_label_modes() -> None:
    """h = log 3 and -log 3 are q = 3/4 and 1/4; h = 0 is an even tie."""
    margin = torch.tensor([math.log(3), -math.log(3), 0.0], dtype=torch.float64)
    uniform = torch.tensor([0.74, 0.26, 0.5], dtype=torch.float64)
    torch.testing.assert_close(self_label(margin, "soft", uniform), torch.tensor([0.75, 0.25, 0.5]).double())
    assert self_label(margin, "sampled", uniform).tolist() == [1.0, 0.0, 0.0]
    assert self_label(margin, "argmax", uniform).tolist() == [1.0, 0.0, 0.5]


@pytest.mark.parametrize("mode", MODES)
def test_no_gradient_flows_through_a_self_label(mode: str) -> None:
    margin = torch.tensor([0.3], requires_grad=True)
    label = self_label(margin, mode, torch.tensor([0.1]))
    assert not label.requires_grad
    assert label.dtype == margin.dtype


@pytest.mark.parametrize("mode", ["soft", "sampled"])
def test_self_label_agrees_with_orient(mode: str) -> None:
    """The policy's and the oracle's labels are made by the same rule."""
    margin = torch.linspace(-3, 3, 13, dtype=torch.float64)
    uniform = torch.linspace(0.02, 0.98, 13, dtype=torch.float64)
    expected = [
        orient(1 / (1 + math.exp(-h)), mode, u)
        for h, u in zip(margin.tolist(), uniform.tolist(), strict=True)
    ]
    torch.testing.assert_close(self_label(margin, mode, uniform), torch.tensor(expected, dtype=torch.float64))
