"""Algorithm 1 of arXiv:2604.19238 line by line: nothing shared, nothing batched, every formula written out.

The gradient of Eq. 12 is taken as it is printed, w times the bracket times the Jacobian of the SR latent, and
needs no loss to stand for it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Field = Callable[[Tensor, Tensor], Tensor]


def algorithm_1_plain(
    *,
    encode: Callable[[Tensor], Tensor],
    encode_frozen: Callable[[Tensor], Tensor],
    v: Field,
    v_frozen: Field,
    v_guided: Field,
    decode: Callable[[Tensor], Tensor],
    lpips: Callable[[Tensor, Tensor], Tensor] | None,
    parameters: dict[str, Tensor],
    x_l: Tensor,
    x_h: Tensor,
    t_star: float,
    t: Tensor,
    eps: Tensor,
    windows: list[tuple[int, int, int]] | None = None,
    perceptual_weight: float,
    perceptual_target: str = "image",
    fatc_weight: float = 1.0,
    fatc_detach: bool = False,
    atm_weight: float = 1.0,
    atm_reference: str = "shared",
    atm_state: str = "anchored",
    atm_guidance: float | None = None,
    generative_weight: float = 0.0,
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """Loss terms, and the gradient of their weighted sum for each of `parameters`."""
    size = x_h.shape[0]
    t_4d = t.reshape(size, 1, 1, 1)
    t_star_each = torch.full((size,), t_star, dtype=x_h.dtype)

    # Line 8; the encoder sees the LR image at the HR image's size
    enlarged = functional.interpolate(
        x_l, size=x_h.shape[-2:], mode="bicubic", align_corners=False, antialias=True
    )
    z_l = encode(enlarged.clip(0, 1))
    z_h = encode_frozen(x_h).detach()

    # Line 9, as Eq. 7 has it
    z_hat = z_l - t_star * v(z_l, t_star_each)
    # Line 10, of all of it or of a square of each latent
    x_hat = decode(_cut(z_hat, windows, 1))
    # Line 12
    mse = ((z_hat - z_h) ** 2).sum() / z_h.numel()
    losses = {"reconstruction": mse.item()}
    objective = mse
    if lpips is not None:
        if perceptual_target == "image":
            target = _cut(x_h, windows, x_h.shape[-1] // z_h.shape[-1])
        else:
            target = decode(_cut(z_h, windows, 1)).detach()
        perceptual = lpips(x_hat, target).mean()
        losses["perceptual"] = perceptual.item()
        objective = objective + perceptual_weight * perceptual

    # Lines 14 to 16; t was drawn from [0, t*]
    z_end = z_l.detach() if fatc_detach else z_l
    z_t_sr = (1 - t_4d / t_star) * z_h + (t_4d / t_star) * z_end
    if fatc_weight > 0:
        difference = v(z_t_sr, t) - (z_end - z_h) / t_star
        fatc = (difference**2).sum() / z_h.numel()
        losses["fatc"] = fatc.item()
        objective = objective + fatc_weight * fatc

    # Line 19
    z_t_gen = (1 - t_4d) * z_h + t_4d * eps
    if generative_weight > 0:
        difference = v(z_t_gen, t) - (eps - z_h)
        generative = (difference**2).sum() / z_h.numel()
        losses["generative"] = generative.item()
        objective = objective + generative_weight * generative

    names, leaves = list(parameters), list(parameters.values())
    gradients = torch.autograd.grad(
        objective, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
    )
    losses["total"] = objective.item()

    # Lines 20 and 21 by Eq. 12
    if atm_weight > 0:
        with torch.no_grad():
            if atm_state == "renoised":
                z_t_sr = (1 - t_4d) * z_hat + t_4d * eps
            reference = v if atm_reference == "shared" else v_frozen
            reference = reference if atm_guidance is None else v_guided
            w = 1 / (z_hat - z_h).abs().mean(dim=(1, 2, 3)).reshape(size, 1, 1, 1)
            bracket = (z_t_sr - z_t_gen) - t_4d * (v(z_t_sr, t) - reference(z_t_gen, t))
            direction = w * bracket
        gradients_atm = torch.autograd.grad(
            z_hat,
            leaves,
            grad_outputs=direction / z_h.numel(),
            allow_unused=True,
            materialize_grads=True,
        )
        gradients = [a + atm_weight * b for a, b in zip(gradients, gradients_atm, strict=True)]
        losses["atm"] = float(direction.abs().mean())
        losses["total"] += atm_weight * float((direction * z_hat.detach()).mean())
    return losses, dict(zip(names, gradients, strict=True))


def _cut(x: Tensor, windows: list[tuple[int, int, int]] | None, factor: int) -> Tensor:
    if windows is None:
        return x
    parts = []
    for i, (top, left, side) in enumerate(windows):
        rows = range(factor * top, factor * (top + side))
        columns = range(factor * left, factor * (left + side))
        parts.append(x[i][:, list(rows)][:, :, list(columns)])
    return torch.stack(parts)
