"""Axes are known by where they come from: small networks whose axes are known by hand, whatever their lengths."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from xact.capture.follow_axes import AxisFollower
from xact.capture.name_axes import name_by_origins

MAP, LAST = ("channel", "y", "x"), ("y", "x", "channel")
TOKENS, MIXED = ("token", "feature"), ("feature", "token")


def conv(x, n=8, size=1):
    return F.conv2d(x, x.new_zeros(n, x.shape[1], size, size), stride=size)


def linear(x, n=8):
    return F.linear(x, x.new_zeros(n, x.shape[-1]))


def tokens(x):
    """(n, 16, 8) of pictures of 16 x 16: as many tokens as each patch has rows times columns."""
    return conv(x, 8, 4).flatten(2).transpose(1, 2)


def add_class_token(x, n=1):
    t = tokens(x)
    return torch.cat([torch.zeros(1, n, 8, device=x.device).expand(len(x), -1, -1), t], 1)


def partition(x, size):
    n, height, width, c = x.shape
    windows = x.view(n, height // size, size, width // size, size, c).transpose(2, 3)
    return windows.reshape(-1, size * size, c)


def unpartition(windows, shape, size):
    n, height, width, c = shape
    return windows.view(n, height // size, width // size, size, size, c).transpose(2, 3).reshape(shape)


def attend(x):
    q, k, v = linear(x, 24).reshape(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
    return (q @ k.transpose(-2, -1)).softmax(-1), v


def swin(x):
    y = conv(x, 8).permute(0, 2, 3, 1)
    return y + unpartition(linear(torch.roll(partition(y, 4), 1, 1)), y.shape, 4)


def fill(x):
    held = torch.zeros(len(x), 8, 16, device=x.device)
    held[:, :, 4:] = tokens(x).transpose(1, 2)[:, :, 4:]
    return held


CASES = [
    # what a network does, the names of its axes, why they could be missed
    (lambda x: conv(x, 16), MAP, "three equal axes, the channel first"),
    (lambda x: conv(x, 16).permute(0, 2, 3, 1), LAST, "three equal axes, the channel last"),
    (lambda x: conv(x).transpose(2, 3), ("channel", "x", "y"), "columns before rows"),
    (tokens, TOKENS, "patches"),
    (lambda x: linear(tokens(x).transpose(1, 2), 16), MIXED, "the MLP over tokens of a mixer"),
    (lambda x: linear(tokens(x).transpose(1, 2), 5), MIXED, "its hidden layer"),
    (lambda x: tokens(x) + linear(tokens(x).transpose(1, 2), 16).transpose(1, 2), TOKENS, "its block"),
    (lambda x: add_class_token(x) + torch.zeros(1, 17, 8, device=x.device), TOKENS, "a position embedding is added"),
    (lambda x: attend(tokens(x))[0][:, 0], None, "attention from tokens to tokens"),
    (lambda x: attend(tokens(x))[0], None, "the same, of each head"),
    (lambda x: (lambda a, v: (a @ v).transpose(1, 2).reshape(len(x), 16, 8))(*attend(tokens(x))), TOKENS, "attention"),
    (
        lambda x: F.scaled_dot_product_attention(tokens(x)[:, None], tokens(x)[:, None], tokens(x)[:, None])[:, 0],
        TOKENS,
        "fused attention",
    ),
    (swin, LAST, "windows cut, shifted and put together"),
    (lambda x: swin(x).flatten(1, 2), TOKENS, "the same as tokens"),
    (lambda x: tokens(x).view(len(x), 4, 4, 8), LAST, "tokens as a map again"),
    (lambda x: add_class_token(x)[:, 1:].transpose(1, 2).reshape(len(x), 8, 4, 4), MAP, "without the class token"),
    (lambda x: F.conv1d(x.flatten(1, 2), x.new_zeros(10, 48, 3)), ("channel", "x"), "a convolution over columns"),
    (lambda x: F.unfold(x, 4, stride=4), MIXED, "im2col"),
    (lambda x: x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2), TOKENS, "unfold"),
    (lambda x: x.view(len(x), 3, 4, 4, 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(3), LAST, "space to depth"),
    (lambda x: conv(x).mean((2, 3), keepdim=True), MAP, "pooled, the axes kept"),
    (lambda x: F.adaptive_avg_pool2d(conv(x), 1), MAP, "pooled by a function"),
    (lambda x: F.interpolate(conv(x), size=(8, 8)), MAP, "another size"),
    (lambda x: conv(x).mean(3), ("channel", "y"), "columns averaged"),
    (lambda x: conv(x)[:, :, 2], ("channel", "x"), "one row"),
    (lambda x: conv(x)[:, :, torch.arange(7, device=x.device)], MAP, "rows chosen by their numbers"),
    (lambda x: F.pixel_shuffle(conv(x), 2), MAP, "channels become places"),
    (lambda x: add_class_token(x)[:, :1], TOKENS, "the class token alone"),
    (lambda x: torch.einsum("nchw,dc->nhwd", x, x.new_zeros(8, 3)), LAST, "einsum"),
    (fill, None, "a tensor filled in part"),
    (lambda x: torch.cdist(tokens(x), tokens(x).new_zeros(8, 8)), None, "an operation without a rule"),
    (lambda x: conv(x).flatten(1), None, "one axis"),
]


@pytest.mark.parametrize(("forward", "names", "reason"), CASES, ids=[reason for _, _, reason in CASES])
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_axes_are_named_by_where_they_come_from(forward, names, reason, device):
    picture = torch.zeros(11, 3, 16, 16, device=device)
    follower = AxisFollower(picture)
    with torch.no_grad(), follower:
        output = forward(picture)
    assert name_by_origins(follower.get(output)[1:]) == names, reason


def test_what_does_not_depend_on_the_picture_is_constant_and_no_tensor_is_kept():
    picture = torch.zeros(11, 3, 16, 16)
    follower = AxisFollower(picture)
    with torch.no_grad(), follower:
        weights = nn.Parameter(torch.zeros(4, 5)) + 1
        conv(picture)
    assert name_by_origins(follower.get(weights)) is None
    assert len(follower._axes) == 1  # the picture
