"""Batch norms of a StackMFF V1 that several processes train together."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.nn.functional import all_reduce

from stackmff_v1.model import StackMFFV1


def share_batch_norms(model: StackMFFV1) -> StackMFFV1:
    """Let the batch norms see the whole batch, as in one process, not each process its own share."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.__class__ = SharedBatchNorm
    return model


class SharedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the samples of all processes. PyTorch's own runs on graphics cards only."""

    def _check_input_dim(self, x: torch.Tensor) -> None:
        pass  # the class that this one takes the place of has checked what it is for

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return super().forward(x)
        axes, shape = [0, *range(2, x.ndim)], (-1, *[1] * (x.ndim - 2))
        count = torch.tensor(x.numel() / x.shape[1], dtype=torch.float64, device=x.device)
        dist.all_reduce(count)
        mean = all_reduce(x.float().sum(axes)) / count.float()
        centred = x - mean.view(shape)
        variance = all_reduce(centred.float().square().sum(axes)) / count.float()
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)).float(), self.momentum)
        return centred * (self.weight * torch.rsqrt(variance + self.eps)).view(shape) + self.bias.view(shape)
