"""Algorithm 1 (arXiv:2604.19238): from a batch of pairs to the losses of one optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from allosr2.backbones.codec import Codec
from allosr2.backbones.lora import adapters_off
from allosr2.data.pairs import Batch
from allosr2.flow import clean_prediction, interpolate, velocity
from allosr2.imaging.resize import enlarge
from allosr2.losses.atm import atm, path_discrepancy
from allosr2.losses.fatc import fatc, sr_state
from allosr2.losses.grid import float32_for_grids, grid, hatch
from allosr2.losses.reconstruction import latent_reconstruction
from allosr2.model import AlloSR2
from allosr2.training.config import LossConfig
from allosr2.training.noise import Window, normal, parts, uniform, windows

ImageDistance = Callable[[Tensor, Tensor], Tensor]
"""Distance of each image of a batch to its reference, as `allosr2.losses.perceptual.LPIPS`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Draw:
    """What is drawn for a batch."""

    t: Float[Tensor, " b"]
    """Times in [0, t*] (Algorithm 1, line 14)."""
    eps: Float[Tensor, "b c h w"]
    """Noise of the generative path (line 18)."""
    windows: Sequence[Window] | None
    """The part of each latent that is decoded for the losses on images; None is all of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """The losses of a batch."""

    weighted: dict[str, Tensor]
    """Each term times its weight; their sum is what is differentiated. The value of `atm` means nothing."""
    values: dict[str, Tensor]
    """What each term is without its weight, and what else is worth to look at."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """The sum of the weighted terms."""
        return torch.stack(list(self.weighted.values())).sum()


def algorithm_1(
    model: AlloSR2,
    frozen: Codec,
    batch: Batch,
    generators: Sequence[torch.Generator],
    *,
    loss: LossConfig,
    lpips: ImageDistance | None,
    perceptual_weight: float,
) -> dict[str, Tensor]:
    """The terms of Algorithm 1 and, as `total`, their weighted sum.

    Also returned, without gradient: `atm_cosine`, the cosine of ATM's direction with z_sr - z_hr, and the
    mean absolute clean errors of the two paths.

    Args:
        model: codec and velocity field, with adapters.
        frozen: the codec without adapters.
        batch: LR and HR images.
        generators: one a sample; each draws its t, eps and window, in this order.
        loss: weights and options.
        lpips: perceptual distance; None leaves it out.
        perceptual_weight: the lambda of Eq. 8.
    """
    terms = weighted_terms(
        model,
        frozen,
        batch,
        draw(generators, batch, frozen, t_star=model.config.t_star, crop=loss.perceptual_crop),
        loss=loss,
        lpips=lpips,
        perceptual_weight=perceptual_weight,
    )
    return terms.values | {"total": terms.total}


def draw(
    generators: Sequence[torch.Generator],
    batch: Batch,
    codec: Codec,
    *,
    t_star: float,
    crop: int | None,
) -> Draw:
    """Draw what a step needs, a generator a sample; of images larger than `crop` pixels a part is decoded."""
    height, width = (side // codec.factor for side in batch.hr.shape[-2:])
    t = t_star * uniform(generators)
    eps = normal(generators, (codec.channels, height, width))
    # last, so that t and eps do not depend on it
    part = crop and crop // codec.factor
    places = (
        windows(generators, height, width, part) if part and part < min(height, width) else None
    )
    return Draw(t=t, eps=eps, windows=places)


def weighted_terms(
    model: AlloSR2,
    frozen: Codec,
    batch: Batch,
    drawn: Draw,
    *,
    loss: LossConfig,
    lpips: ImageDistance | None,
    perceptual_weight: float,
) -> Terms:
    """Algorithm 1 for what was drawn; arguments as for `algorithm_1`.

    The velocity field runs once with gradient, on the doubled batch [z_lr at t*, z_t_sr at t], and once
    without, on z_t_gen.
    """
    assert batch.lr is not None
    t_star, t = model.config.t_star, drawn.t
    at_t_star = torch.full_like(t, t_star)
    weighted, values = dict[str, Tensor](), dict[str, Tensor]()

    # Algorithm 1, line 8
    z_lr = model.codec.encode(enlarge(batch.lr, model.config.scale))
    with torch.no_grad():
        z_hr = frozen.encode(batch.hr)

    # lines 9 and 14-15: z_sr by Eq. 7 and the SR path's state by Eq. 9, from one evaluation of the field
    z_end = z_lr.detach() if loss.fatc_detach else z_lr
    z_t_sr = sr_state(z_end, z_hr, t, t_star)
    if loss.fatc_weight:
        v = model.velocity(torch.cat([z_lr, z_t_sr]), torch.cat([at_t_star, t]))
        v_lr, v_sr = v.chunk(2)
    else:
        v_lr, v_sr = model.velocity(z_lr, at_t_star), None
    z_sr = clean_prediction(z_lr, v_lr, at_t_star)

    # lines 10-12, Eq. 8
    values["reconstruction"] = weighted["reconstruction"] = latent_reconstruction(z_sr, z_hr)
    if lpips is not None or loss.grid_weight:
        z_part, x_hr = _part(z_sr, drawn), _part(batch.hr, drawn, frozen.factor)
        with float32_for_grids(loss.grid_weight, z_sr.device):
            x_sr = model.codec.decode(z_part)
        if lpips is not None:
            target = x_hr
            if loss.perceptual_target == "decoded":
                with torch.no_grad():
                    target = frozen.decode(_part(z_hr, drawn))
            values["perceptual"] = lpips(x_sr, target).mean()
            weighted["perceptual"] = perceptual_weight * values["perceptual"]
        if loss.grid_weight:
            values["grid"], values["hatch"] = grid(x_sr, x_hr), hatch(x_sr, x_hr)
            weighted |= {name: loss.grid_weight * values[name] for name in ("grid", "hatch")}

    # line 16
    if v_sr is not None:
        values["fatc"] = fatc(v_sr, z_end, z_hr, t_star)
        weighted["fatc"] = loss.fatc_weight * values["fatc"]

    # lines 18-21
    z_t_gen = interpolate(z_hr, drawn.eps, t)
    if loss.atm_weight:
        with torch.no_grad():
            if loss.atm_state == "renoised":
                z_t_sr, v_sr = interpolate(z_sr, drawn.eps, t), None
            if v_sr is None:
                v_sr = model.velocity(z_t_sr, t)
            anchor = (
                model.velocity
                if loss.atm_guidance is None
                else model.velocity.with_guidance(loss.atm_guidance)
            )
            with adapters_off(anchor) if loss.atm_reference == "frozen" else nullcontext():
                v_gen = anchor(z_t_gen, t)
        delta = path_discrepancy(z_t_sr, v_sr, z_t_gen, v_gen, t)
        matching = atm(z_sr, z_hr, delta)
        weighted["atm"], values["atm"] = loss.atm_weight * matching.loss, matching.size
        with torch.no_grad():
            error = z_sr - z_hr
            values["atm_cosine"] = functional.cosine_similarity(
                delta.flatten(1), error.flatten(1)
            ).mean()
            values["sr_clean_error"] = (clean_prediction(z_t_sr, v_sr, t) - z_hr).abs().mean()
            values["gen_clean_error"] = (clean_prediction(z_t_gen, v_gen, t) - z_hr).abs().mean()
    if loss.generative_weight:
        v_gen = model.velocity(z_t_gen, t)
        values["generative"] = functional.mse_loss(v_gen, velocity(z_hr, drawn.eps))
        weighted["generative"] = loss.generative_weight * values["generative"]
    return Terms(weighted=weighted, values=values)


def _part(x: Tensor, drawn: Draw, unit: int = 1) -> Tensor:
    """What is decoded of latents, or of images that have `unit` pixels a latent element."""
    return x if drawn.windows is None else parts(x, drawn.windows, unit)
