"""Algorithm 1 (arXiv:2604.19238): from a batch of pairs to the losses of one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
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
from allosr2.losses.perceptual import LPIPS
from allosr2.losses.reconstruction import latent_reconstruction
from allosr2.model import AlloSR2
from allosr2.training.config import LossConfig
from allosr2.training.noise import normal, uniform


def algorithm_1(
    model: AlloSR2,
    frozen: Codec,
    batch: Batch,
    generators: Sequence[torch.Generator],
    *,
    loss: LossConfig,
    lpips: LPIPS | None,
    perceptual_weight: float,
) -> dict[str, Tensor]:
    """The terms of Algorithm 1 and, as `total`, their weighted sum.

    The velocity field runs once with gradient, on the doubled batch [z_lr at t*, z_t_sr at t], and once
    without, on z_t_gen. Also returned, without gradient: `atm_cosine`, the cosine of ATM's direction with
    z_sr - z_hr, and the mean absolute clean errors of the two paths.

    Args:
        model: codec and velocity field, with adapters.
        frozen: the codec without adapters.
        batch: LR and HR images.
        generators: one a sample; each draws its t and eps, in this order.
        loss: weights and options.
        lpips: perceptual distance; None leaves it out.
        perceptual_weight: the lambda of Eq. 8.
    """
    assert batch.lr is not None
    t_star = model.config.t_star
    size, device = batch.hr.shape[0], batch.hr.device
    at_t_star = torch.full((size,), t_star, device=device)

    # Algorithm 1, line 8
    z_lr = model.codec.encode(enlarge(batch.lr, model.config.scale))
    with torch.no_grad():
        z_hr = frozen.encode(batch.hr)

    # lines 9 and 14-15: z_sr by Eq. 7 and the SR path's state by Eq. 9, from one evaluation of the field
    t = t_star * uniform(generators)
    eps = normal(generators, z_hr.shape[1:])
    z_end = z_lr.detach() if loss.fatc_detach else z_lr
    z_t_sr = sr_state(z_end, z_hr, t, t_star)
    if loss.fatc_weight:
        v = model.velocity(torch.cat([z_lr, z_t_sr]), torch.cat([at_t_star, t]))
        v_lr, v_sr = v.chunk(2)
    else:
        v_lr, v_sr = model.velocity(z_lr, at_t_star), None
    z_sr = clean_prediction(z_lr, v_lr, at_t_star)

    # lines 10-12
    terms = {"reconstruction": latent_reconstruction(z_sr, z_hr)}
    total = terms["reconstruction"]
    if lpips is not None or loss.grid_weight:
        with float32_for_grids(loss.grid_weight, device):
            x_sr = model.codec.decode(z_sr)
        if lpips is not None:
            target = batch.hr if loss.perceptual_target == "image" else _decoded(frozen, z_hr)
            terms["perceptual"] = lpips(x_sr, target).mean()
            total = total + perceptual_weight * terms["perceptual"]
        if loss.grid_weight:
            terms["grid"], terms["hatch"] = grid(x_sr, batch.hr), hatch(x_sr, batch.hr)
            total = total + loss.grid_weight * (terms["grid"] + terms["hatch"])

    # line 16
    if v_sr is not None:
        terms["fatc"] = fatc(v_sr, z_end, z_hr, t_star)
        total = total + loss.fatc_weight * terms["fatc"]

    # lines 18-21
    z_t_gen = interpolate(z_hr, eps, t)
    if loss.atm_weight:
        with torch.no_grad():
            if loss.atm_state == "renoised":
                z_t_sr, v_sr = interpolate(z_sr, eps, t), None
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
        terms["atm"] = matching.size
        total = total + loss.atm_weight * matching.loss
        with torch.no_grad():
            error = z_sr - z_hr
            terms["atm_cosine"] = functional.cosine_similarity(
                delta.flatten(1), error.flatten(1)
            ).mean()
            terms["sr_clean_error"] = (clean_prediction(z_t_sr, v_sr, t) - z_hr).abs().mean()
            terms["gen_clean_error"] = (clean_prediction(z_t_gen, v_gen, t) - z_hr).abs().mean()
    if loss.generative_weight:
        v_gen = model.velocity(z_t_gen, t)
        terms["generative"] = functional.mse_loss(v_gen, velocity(z_hr, eps))
        total = total + loss.generative_weight * terms["generative"]
    return terms | {"total": total}


def _decoded(frozen: Codec, z_hr: Tensor) -> Tensor:
    with torch.no_grad():
        return frozen.decode(z_hr)
