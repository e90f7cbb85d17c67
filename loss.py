"""What training minimises and what is reported: the focus loss, depth errors, PSNR and SSIM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from utils import OnUse

if TYPE_CHECKING:
    from torch import Tensor

torch, metrics = OnUse("torch"), OnUse("skimage.metrics")


def focus_loss(index: Tensor, probabilities: Tensor, target: Tensor, *, ce_weight: float = 0.0,
               fusion_weight: float = 0.0, blend_weight: float = 0.0, stack: Tensor | None = None,
               aif: Tensor | None = None, sample_weight: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Compare a focus map with the normalised depth (Eq. 9): MSE of index / (N - 1) against `target`.

    index: (B, H, W) in frames, 0..N-1; probabilities: (B, N, H, W); target: (B, H, W) in 0..1.
    ce_weight adds the cross-entropy of P, its soft target being the two frames around the true focus index.
    fusion_weight and blend_weight add `fusion_error` and `blend_error` of stack (B, N, H, W) against aif (B, H, W).
    sample_weight: (B,), by default 1/B each. Returns the loss and {"mse", "ce", "fusion", "blend"}, detached.
    """
    b, n = probabilities.shape[:2]
    weight = target.new_full((b,), 1 / b) if sample_weight is None else sample_weight
    mse = ((index / max(n - 1, 1) - target) ** 2).mean((1, 2)) @ weight
    ce = soft_cross_entropy(probabilities, target * (n - 1)) @ weight if ce_weight else torch.zeros_like(mse)
    fusion = fusion_error(probabilities, stack, aif) @ weight if fusion_weight else torch.zeros_like(mse)
    blend = blend_error(probabilities, stack, aif) @ weight if blend_weight else torch.zeros_like(mse)
    loss = mse + ce_weight * ce + fusion_weight * fusion + blend_weight * blend
    return loss, {"mse": mse.detach(), "ce": ce.detach(), "fusion": fusion.detach(), "blend": blend.detach()}


def fusion_error(probabilities: Tensor, stack: Tensor, aif: Tensor) -> Tensor:
    """Return per sample (B,) in dB the mean square error expected when each pixel's frame is drawn from P.

    It weighs a wrong frame by what it does to the picture: little in flat areas, much at depth edges. Floor -50 dB.
    """
    error = (probabilities * (stack - aif[:, None]) ** 2).sum(1).mean((1, 2))
    return 10 * torch.log10(error + 1e-5)


def blend_error(probabilities: Tensor, stack: Tensor, aif: Tensor) -> Tensor:
    """Return per sample (B,) in dB the mean square error of the frames mixed by a softened P. Floor -50 dB.

    Unlike `fusion_error` it gains from several frames where all are alike: their noise averages out. The root is P at
    twice its temperature, as fusion.py mixes clean frames: P itself may be as sharp as choosing wants it.
    """
    weights = (probabilities + 1e-8).sqrt()  # at 0 its slope would be infinite
    error = ((weights * stack).sum(1) / weights.sum(1) - aif).square().mean((1, 2))
    return 10 * torch.log10(error + 1e-5)


def soft_cross_entropy(probabilities: Tensor, position: Tensor) -> Tensor:
    """Return per sample (B,) the cross-entropy of P (B, N, H, W) with a position (B, H, W) in 0..N-1.

    The soft target shares a pixel between its two neighbouring frames in proportion to their nearness.
    """
    n = probabilities.shape[1]
    low = position.floor().clamp(0, max(n - 2, 0)).long()
    share = position - low
    log_p = probabilities.clamp_min(1e-30).log()
    nearest = torch.stack((low, (low + 1).clamp(max=n - 1)), dim=1)
    low_p, high_p = log_p.gather(1, nearest).unbind(1)
    return -((1 - share) * low_p + share * high_p).mean((1, 2))


def depth_errors(index: np.ndarray, target: np.ndarray, num_frames: int) -> dict[str, float]:
    """Return MSE and MAE of the normalised depth: index (H, W) in 0..N-1 against target (H, W) in 0..1."""
    error = index / max(num_frames - 1, 1) - target
    return {"depth_mse": float((error**2).mean()), "depth_mae": float(np.abs(error).mean())}


def image_quality(fused: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return PSNR in dB (at most 100) and SSIM of two pictures (H, W) or (H, W, 3) in 0..255, data range 255.

    SSIM is scikit-image's with its 7x7 window, the mean over the channels. Both are nan if a pixel is not finite.
    """
    fused, reference = fused.astype(np.float64), reference.astype(np.float64)
    if not (np.isfinite(fused).all() and np.isfinite(reference).all()):
        return {"psnr": float("nan"), "ssim": float("nan")}
    mse = ((fused - reference) ** 2).mean()
    psnr = 10 * np.log10(255**2 / mse) if mse > 255**2 * 1e-10 else 100.0
    window = min(7, *(side - 1 + side % 2 for side in fused.shape[:2]))  # odd, within the picture
    axis = 2 if fused.ndim == 3 else None
    ssim = (metrics.structural_similarity(fused, reference, data_range=255, win_size=window, channel_axis=axis)
            if window >= 3 else float(mse == 0))
    return {"psnr": float(psnr), "ssim": float(ssim)}
