"""What training of StackMFF minimises: four differences between the painted and the all-in-focus picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

WINDOW = 11  # pixels, side of the windows of SSIM and spatial frequency
SIGMA = 1.5  # pixels, of the Gaussian window of SSIM
C1, C2 = 0.01**2, 0.03**2  # of SSIM, for values in 0..1


def painting_loss(output: Tensor, target: Tensor, weights: tuple[float, float, float, float] = (0.1, 0.7, 0.1, 0.1),
                  sample_weight: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare pictures (B, H, W) in 0..1, float32: weighted sum of L1, 1 - SSIM, Laplacian and spatial frequency.

    sample_weight: (B,), by default 1/B each. Returns the loss and {"l1", "ssim", "laplacian", "frequency"}: the four
    errors before their weights, detached; 0 where the pictures are equal.
    """
    b = len(target)
    sample_weight = target.new_full((b,), 1 / b) if sample_weight is None else sample_weight
    parts = {"l1": (output - target).abs().mean((1, 2)), "ssim": ssim_error(output, target),
             "laplacian": laplacian_error(output, target), "frequency": frequency_error(output, target)}
    parts = {name: error @ sample_weight for name, error in parts.items()}
    loss = sum(weight * part for weight, part in zip(weights, parts.values(), strict=True))
    return loss, {name: part.detach() for name, part in parts.items()}


def ssim_error(output: Tensor, target: Tensor) -> Tensor:
    """Return per sample (B,) 1 - SSIM (Wang et al., 2004), Gaussian window; outside the pictures are zeros."""
    x = torch.arange(WINDOW, device=target.device, dtype=target.dtype) - WINDOW // 2
    window = torch.softmax(-(x**2) / (2 * SIGMA**2), 0)
    moments = torch.stack((output, target, output**2, target**2, output * target))
    blurred = F.conv2d(moments.flatten(0, 1)[:, None], window[:, None].expand(1, 1, -1, 1), padding=(WINDOW // 2, 0))
    blurred = F.conv2d(blurred, window.expand(1, 1, 1, -1), padding=(0, WINDOW // 2))
    m_p, m_t, pp, tt, pt = blurred.view_as(moments)
    similarity = (2 * m_p * m_t + C1) * (2 * (pt - m_p * m_t) + C2)
    similarity = similarity / ((m_p**2 + m_t**2 + C1) * (pp - m_p**2 + tt - m_t**2 + C2))
    return 1 - similarity.mean((1, 2))


def laplacian_error(output: Tensor, target: Tensor) -> Tensor:
    """Return per sample (B,) the mean absolute difference of the 4-neighbour Laplacians, zeros outside."""
    d = F.pad(output - target, (1, 1, 1, 1))
    neighbours = d[:, :-2, 1:-1] + d[:, 2:, 1:-1] + d[:, 1:-1, :-2] + d[:, 1:-1, 2:]
    return (neighbours - 4 * d[:, 1:-1, 1:-1]).abs().mean((1, 2))


def frequency_error(output: Tensor, target: Tensor) -> Tensor:
    """Return per sample (B,) the mean absolute difference of the spatial frequencies.

    They are squared differences to the left and to the upper neighbour, summed (not averaged) over the window.
    """
    difference = squared_steps(output) - squared_steps(target)
    rows = F.avg_pool2d(difference, (WINDOW, 1), 1, (WINDOW // 2, 0), divisor_override=1)
    return F.avg_pool2d(rows, (1, WINDOW), 1, (0, WINDOW // 2), divisor_override=1).abs().mean((1, 2))


def squared_steps(picture: Tensor) -> Tensor:
    """Return (left step)^2 + (upper step)^2 of (B, H, W), zeros outside."""
    x = F.pad(picture, (1, 0, 1, 0))
    return (picture - x[:, 1:, :-1]) ** 2 + (picture - x[:, :-1, 1:]) ** 2
