"""Norms and pooling that keep their digits, and little memory, on large pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64  # that are squared at once: they stay in the cache
STRIP = 1 << 20  # numbers of a picture that are calculated at once: as fast on one core as smaller ones, faster on more


def lies_by_pixel(x: Tensor) -> bool:
    """Return whether x (B, C, H, W) lies pixel by pixel, channels last, on a processor: float32, without gradients."""
    plain = torch.is_grad_enabled() or torch.jit.is_tracing() or x.device.type != "cpu" or x.dtype != torch.float32
    return not plain and x.is_contiguous(memory_format=torch.channels_last)


class GroupNorm(nn.GroupNorm):
    """PyTorch's own, but that of a picture in channels-last layout on a processor.

    There PyTorch adds up all pixels one by one in float32, and the larger the sum, the less of a pixel is left: of 12
    megapixels the values are off by up to a third of their standard deviation. Here the sums are taken along the
    columns first, which costs a third more time.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not lies_by_pixel(x):
            return super().forward(x)
        return torch.cat([self.normalise(picture[None]) for picture in x]) if len(x) > 1 else self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise one picture (1, C, H, W)."""
        mean, variance = self.moments(torch.stack(column_sums(x)), x.shape[2])
        return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)

    def moments(self, sums: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Return mean and variance of every channel's group, (C,), of the sums of columns and of squares (2, W * C)."""
        moments = (sums / height).view(2, -1, self.num_channels).mean(1).double()
        of_groups = moments.view(2, self.num_groups, -1).mean(2)
        mean, square = of_groups.repeat_interleave(self.num_channels // self.num_groups, 1)
        return mean.float(), (square - mean**2).float()


def normalise_and_pool(encode: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return max_pool2d(norm(encode(x)), 2); of one picture a 3x3 convolution with a GroupNorm works in strips.

    So its whole result, the largest tensor of all, is never in memory. What is the largest of four pixels after
    normalising is so before it; where the weight is negative it is the smallest, hence the signs.
    """
    in_strips = isinstance(encode, nn.Conv2d) and isinstance(norm, GroupNorm) and len(x) == 1 and lies_by_pixel(x)
    if not in_strips or x.shape[2] % 2:
        return pool(norm(encode(x)))
    (_, _, height, width), channels = x.shape, encode.out_channels
    sign = torch.where(norm.weight < 0, -1.0, 1.0)
    weight, bias = encode.weight * sign[:, None, None, None], encode.bias * sign
    x = F.pad(x, (0, 0, 1, 1))  # rows above and below; those beside are the convolution's
    largest = x.new_empty((1, height // 2, width // 2, channels)).permute(0, 3, 1, 2)
    sums = torch.zeros(2, width * channels, dtype=torch.float64)
    rows = max(1, STRIP // (2 * width * channels)) * 2
    for top in range(0, height, rows):
        strip = F.conv2d(x[:, :, top : top + rows + 2], weight, bias, padding=(0, 1))
        sums += torch.stack(column_sums(strip))
        largest[:, :, top // 2 : (top + rows) // 2] = pool(strip)
    sums[0] *= sign.repeat(width)
    mean, variance = norm.moments(sums, height)
    return F.batch_norm(largest, mean * sign, variance, norm.weight.abs(), norm.bias, eps=norm.eps)


def column_sums(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of a picture's columns (1, C, H, W), and of their squares, both (W * C,)."""
    lines = x[0].permute(1, 2, 0).flatten(1)  # a view: its channels are last
    return lines.sum(0), sum((part * part).sum(0) for part in lines.split(ROWS))


def pool(x: Tensor) -> Tensor:
    """Return max_pool2d(x, 2). Where no gradient needs to know which pixel was the largest it takes a quarter of it."""
    if not lies_by_pixel(x) or x.shape[2] % 2 or x.shape[3] % 2:
        return F.max_pool2d(x, 2)
    x = torch.maximum(x[:, :, ::2], x[:, :, 1::2])
    return torch.maximum(x[..., ::2], x[..., 1::2])
