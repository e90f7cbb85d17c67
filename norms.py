"""A group norm that keeps its digits on large pictures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 64  # that are squared at once: they stay in the cache


class GroupNorm(nn.GroupNorm):
    """PyTorch's own, but that of a picture in channels-last layout on a processor.

    There PyTorch adds up all pixels one by one in float32, and the larger the sum, the less of a pixel is left: of 12
    megapixels the values are off by up to a third of their standard deviation. Here the sums are taken along the
    columns first, which costs a third more time.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = torch.is_grad_enabled() or x.device.type != "cpu" or x.dtype != torch.float32
        if plain or not x.is_contiguous(memory_format=torch.channels_last):
            return super().forward(x)
        return torch.cat([self.normalise(picture[None]) for picture in x]) if len(x) > 1 else self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """Normalise one picture (1, C, H, W)."""
        _, channels, height, width = x.shape
        lines = x[0].permute(1, 2, 0).reshape(height, width * channels)
        square = sum((part * part).sum(0) for part in lines.split(ROWS)) / height
        moments = torch.stack((lines.mean(0), square)).view(2, width, channels).mean(1).double()
        mean, square = moments.view(2, self.num_groups, -1).mean(2).repeat_interleave(channels // self.num_groups, 1)
        return F.batch_norm(x, mean.float(), (square - mean**2).float(), self.weight, self.bias, eps=self.eps)
