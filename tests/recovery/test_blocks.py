"""Boundaries between blocks, and networks with taps there."""

from __future__ import annotations

import torch
from blocks_helpers import images, network
from torch import nn

import fxfactor
from fxfactor.recovery.blocks import boundaries, with_taps


def test_boundaries_are_the_ends_of_blocks():
    nodes = boundaries(network())
    assert [node.name for node in nodes] == ["_1", "_2_relu_1", "_3_relu_1"]


def test_boundaries_of_a_chain_are_before_each_layer():
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    nodes = boundaries(fxfactor.capture(chain.eval(), torch.zeros(1, 3, 16, 16)))
    assert [str(node.target) for node in nodes] == ["2", "4"]


def test_taps_share_the_modules():
    original = network()
    tapped = with_taps(original, ["_2_relu_1"])
    output, (block,) = tapped(images())
    assert torch.equal(output, original(images()))
    assert block.shape == (32, 16, 8, 10)
    assert tapped.get_submodule("2.conv1") is original.get_submodule("2.conv1")
