"""Draw the parameters of a degradation, and apply drawn degradations to a batch of HR images.

The order is Real-ESRGAN's (arXiv:2107.10833, Fig. 2): blur, resize, noise, JPEG; again blur,
resize, noise; then the final size with a circular low-pass and the second JPEG, in either order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from allosr2.data.degradation import operators
from allosr2.data.degradation.kernels import (
    KERNEL_SIZES,
    EllipticalKernel,
    Kernel,
    KernelFamily,
    SincKernel,
    build_kernel,
)
from allosr2.data.degradation.operators import ResizeMode
from allosr2.data.degradation.presets import (
    BlurConfig,
    DegradationConfig,
    DegradationMix,
    NoiseConfig,
    Range,
    ResizeConfig,
    StageConfig,
)
from allosr2.errors import ConfigError

_Option = TypeVar("_Option")

_RESIZE_MODES: tuple[ResizeMode, ...] = ("area", "bilinear", "bicubic")
_KERNEL_FAMILIES: tuple[KernelFamily, ...] = ("gaussian", "generalized", "plateau")
_KERNEL_KINDS: tuple[tuple[KernelFamily, bool], ...] = tuple(  # as in KernelProbabilities
    (family, isotropic) for family in _KERNEL_FAMILIES for isotropic in (True, False)
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Resize:
    """A drawn resize."""

    factor: float
    """Factor on the sides."""
    mode: ResizeMode
    """Interpolation."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Noise:
    """A drawn noise."""

    kind: Literal["gaussian", "poisson"]
    """Distribution."""
    strength: float
    """Standard deviation in 1/255 of Gaussian noise, factor on the shot noise of Poisson noise."""
    gray: bool
    """Whether the channels share one field."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """The drawn parameters of one stage."""

    blur: Kernel | None
    """Kernel, or None for no blur."""
    resize: Resize
    """Resize: relative to the HR size in the first stage, to the LR size in the second."""
    noise: Noise
    """Noise; its field is drawn from `Degradation.noise_seed`."""
    jpeg_quality: int
    """JPEG quality."""

    def describe(self) -> str:
        """Blur, resize and noise in one line; the JPEG is left out, as its place varies."""
        color = "gray" if self.noise.gray else "color"
        return " | ".join(
            (
                self.blur.describe() if self.blur else "no blur",
                f"{self.resize.mode} x{self.resize.factor:.2f}",
                f"{self.noise.kind} noise {self.noise.strength:.2f} {color}",
            )
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Degradation:
    """Every drawn parameter of one sample's degradation; `dataclasses.asdict` gives plain JSON."""

    undegraded: bool
    """Whether the image is only reduced, by an antialiased bicubic; the rest is unused then."""
    first: Stage
    """First stage."""
    second: Stage
    """Second stage."""
    final_mode: ResizeMode
    """Interpolation to the final size."""
    final_sinc: SincKernel | None
    """Low-pass at the final size, or None for none."""
    jpeg_last: bool
    """Whether the second JPEG follows the final size and low-pass, instead of preceding them."""
    noise_seed: int
    """Seed of the noise fields of both stages."""

    def describe(self) -> str:
        """One line: the steps in the order in which they are applied."""
        if self.undegraded:
            return "undegraded: antialiased bicubic to the final size"
        low_pass = self.final_sinc.describe() if self.final_sinc else "no low-pass"
        final = [f"jpeg {self.second.jpeg_quality}", f"{self.final_mode} to size, {low_pass}"]
        if self.jpeg_last:
            final.reverse()
        first = f"{self.first.describe()} | jpeg {self.first.jpeg_quality}"
        return " | ".join((first, self.second.describe(), *final))


def sample_degradation(
    config: DegradationConfig | DegradationMix, seed: int, index: int
) -> Degradation:
    """Draw the degradation of one sample; it depends on `(config, seed, index)` and nothing else.

    Raises:
        ConfigError: a negative seed or index.
    """
    if seed < 0 or index < 0:
        raise ConfigError(f"seed is {seed} and index is {index}: choose numbers from 0 up")
    # The index goes in as a spawn key, which is mixed apart from the seed: no two pairs collide.
    sequence = np.random.SeedSequence(seed, spawn_key=(index,))
    rng = np.random.Generator(np.random.PCG64DXSM(sequence))
    if isinstance(config, DegradationMix):
        config = _pick(rng, config.parts)
    return Degradation(
        undegraded=_happens(rng, config.undegraded_probability),
        first=_draw_stage(rng, config.first),
        second=_draw_stage(rng, config.second),
        final_mode=_pick(rng, _RESIZE_MODES),
        final_sinc=_draw_sinc(rng, math.pi / 3)
        if _happens(rng, config.final_sinc_probability)
        else None,
        jpeg_last=_happens(rng, 0.5),
        noise_seed=int(rng.integers(2**32)),
    )


@torch.no_grad()
def degrade(
    hr: Float[Tensor, "b 3 h w"], degradations: Sequence[Degradation], scale: int = 4
) -> Float[Tensor, "b 3 h_lr w_lr"]:
    """Apply one drawn degradation to each HR image; no gradient is kept.

    Args:
        hr: float32 images in [0, 1], sides multiples of `scale`.
        degradations: as many as there are images.
        scale: how much smaller the result is: `h_lr = h / scale`, `w_lr = w / scale`.

    Returns:
        LR images in [0, 1], on the 8-bit grid. Samples are processed one by one, so an image comes
        out the same, to the bit, alone and in any batch; noise is drawn on the images' device, from
        each sample's own seed. (torch's bilinear resize rounds its last bit by the number of
        threads, so other thread counts and devices may move single pixels.)

    Raises:
        ConfigError: sides are no multiples of `scale`, or the numbers of images and degradations
            differ.
    """
    height, width = hr.shape[-2:]
    if scale < 1 or height % scale or width % scale:
        raise ConfigError(
            f"HR size {width}x{height} is no multiple of scale {scale}: crop it to a multiple"
        )
    if len(degradations) != len(hr):
        raise ConfigError(
            f"{len(hr)} HR images came with {len(degradations)} degradations: draw one per image"
        )
    lr_size = (height // scale, width // scale)
    lr = hr.new_empty((len(hr), 3, *lr_size))
    for index, drawn in enumerate(degradations):
        lr[index] = _degrade_one(hr[index : index + 1], drawn, lr_size)[0]
    return operators.round_to_8_bits(lr)


def _degrade_one(
    image: Float[Tensor, "1 3 h w"], drawn: Degradation, lr_size: tuple[int, int]
) -> Float[Tensor, "1 3 h_lr w_lr"]:
    if drawn.undegraded:
        return F.interpolate(image, size=lr_size, mode="bicubic", antialias=True)
    generator = torch.Generator(image.device).manual_seed(drawn.noise_seed)
    image = _apply_stage(image, drawn.first, (image.shape[-2], image.shape[-1]), generator)
    image = operators.jpeg(image, drawn.first.jpeg_quality)
    image = _apply_stage(image, drawn.second, lr_size, generator)
    if not drawn.jpeg_last:
        image = operators.jpeg(image, drawn.second.jpeg_quality)
    image = operators.resize(image, lr_size, drawn.final_mode)
    if drawn.final_sinc is not None:
        image = operators.blur(image, build_kernel(drawn.final_sinc)[None])
    if drawn.jpeg_last:
        image = operators.jpeg(image, drawn.second.jpeg_quality)
    return image


def _apply_stage(
    image: Float[Tensor, "1 3 h w"],
    stage: Stage,
    unit_size: tuple[int, int],
    generator: torch.Generator,
) -> Float[Tensor, "1 3 _h _w"]:
    """Blur, resize to `factor * unit_size`, add noise."""
    if stage.blur is not None:
        image = operators.blur(image, build_kernel(stage.blur)[None])
    height, width = (max(1, int(side * stage.resize.factor)) for side in unit_size)
    image = operators.resize(image, (height, width), stage.resize.mode)
    add_noise = (
        operators.add_gaussian_noise
        if stage.noise.kind == "gaussian"
        else operators.add_poisson_noise
    )
    return add_noise(image, stage.noise.strength, gray=stage.noise.gray, generator=generator)


def _draw_stage(rng: np.random.Generator, config: StageConfig) -> Stage:
    low, high = config.jpeg_quality
    return Stage(
        blur=_draw_kernel(rng, config.blur) if _happens(rng, config.blur.probability) else None,
        resize=_draw_resize(rng, config.resize),
        noise=_draw_noise(rng, config.noise),
        jpeg_quality=int(rng.integers(low, high, endpoint=True)),
    )


def _draw_kernel(rng: np.random.Generator, config: BlurConfig) -> Kernel:
    if _happens(rng, config.sinc_probability):
        return _draw_sinc(rng, math.pi / 5)
    family, isotropic = _pick(rng, _KERNEL_KINDS, astuple(config.kernels))
    size = _pick(rng, KERNEL_SIZES)
    sigma_x = _uniform(rng, config.sigma)
    match family:
        case "gaussian":
            beta = 1.0
        case "generalized":
            beta = _draw_beta(rng, config.generalized_beta)
        case "plateau":
            beta = _draw_beta(rng, config.plateau_beta)
    return EllipticalKernel(
        family=family,
        size=size,
        sigma_x=sigma_x,
        sigma_y=sigma_x if isotropic else _uniform(rng, config.sigma),
        rotation=0.0 if isotropic else _uniform(rng, (-math.pi, math.pi)),
        beta=beta,
    )


def _draw_beta(rng: np.random.Generator, limits: Range) -> float:
    """Below or above 1 half and half, so that a wide upper side does not crowd out the lower."""
    return _uniform(rng, (limits[0], 1.0) if _happens(rng, 0.5) else (1.0, limits[1]))


def _draw_sinc(rng: np.random.Generator, lowest_of_large: float) -> SincKernel:
    """A low cut-off has wide lobes, which kernels below 13 pixels cannot hold: theirs is pi/3."""
    size = _pick(rng, KERNEL_SIZES)
    lowest = math.pi / 3 if size < 13 else lowest_of_large
    return SincKernel(size=size, cutoff=_uniform(rng, (lowest, math.pi)))


def _draw_resize(rng: np.random.Generator, config: ResizeConfig) -> Resize:
    low, high = config.factor
    limits = _pick(
        rng, ((1.0, high), (low, 1.0), (1.0, 1.0)), (config.up, config.down, config.keep)
    )
    return Resize(factor=_uniform(rng, limits), mode=_pick(rng, _RESIZE_MODES))


def _draw_noise(rng: np.random.Generator, config: NoiseConfig) -> Noise:
    gray = _happens(rng, config.gray_probability)
    if _happens(rng, config.gaussian_probability):
        return Noise(kind="gaussian", strength=_uniform(rng, config.gaussian_sigma), gray=gray)
    return Noise(kind="poisson", strength=_uniform(rng, config.poisson_scale), gray=gray)


def _happens(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _uniform(rng: np.random.Generator, limits: Range) -> float:
    return float(rng.uniform(*limits))


def _pick(
    rng: np.random.Generator,
    options: Sequence[_Option],
    probabilities: Sequence[float] | None = None,
) -> _Option:
    return options[int(rng.choice(len(options), p=probabilities))]
