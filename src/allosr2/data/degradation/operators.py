"""The single steps of a degradation, on batches of images in [0, 1], on any device."""

from __future__ import annotations

import io
import math
from typing import Literal

import numpy as np
import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, fft
from torch.nn import functional as F

ResizeMode = Literal["area", "bilinear", "bicubic"]

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R BT.601, in the precision that Real-ESRGAN uses


def blur(
    images: Float[Tensor, "b 3 h w"], kernels: Float[Tensor, "b k k"]
) -> Float[Tensor, "b 3 h w"]:
    """Convolve each image with its own kernel, of odd side; the border is mirrored.

    A negative lobe (sinc) can leave [0, 1]; nothing is clamped here. Works through the Fourier
    transform, which at 21x21 taps is two to ten times as fast on a CPU as a depthwise convolution.
    """
    height, width = images.shape[-2:]
    radius = kernels.shape[-1] // 2
    padded = _mirror_pad(images, radius)
    # The transform need not be longer than the padded image: what wraps falls on the padding.
    size = (_fast_length(height + 2 * radius), _fast_length(width + 2 * radius))
    spectrum: Tensor = fft.rfft2(padded, s=size)
    response: Tensor = fft.rfft2(kernels.to(images), s=size)
    filtered: Tensor = fft.irfft2(spectrum * response[:, None], s=size)
    return filtered[..., 2 * radius :, 2 * radius :][..., :height, :width]


def resize(
    images: Float[Tensor, "b 3 h w"], size: tuple[int, int], mode: ResizeMode
) -> Float[Tensor, "b 3 height width"]:
    """Resize to `(height, width)` without antialiasing, as Real-ESRGAN does; bicubic may overshoot.

    Deviation: Real-ESRGAN steps by the drawn factor even where the size is rounded down, which
    shifts the far edge by up to one pixel. Here the corners of both images stay aligned.
    """
    return F.interpolate(images, size=size, mode=mode)


def add_gaussian_noise(
    images: Float[Tensor, "b 3 h w"], sigma: float, *, gray: bool, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Add white noise of standard deviation `sigma / 255` and clamp to [0, 1].

    The three channels share one field where `gray`. The generator lives on the images' device.
    """
    batch, channels, height, width = images.shape
    noise = torch.randn(
        (batch, 1 if gray else channels, height, width),
        generator=generator,
        device=images.device,
        dtype=images.dtype,
    )
    return torch.add(images, noise, alpha=sigma / 255).clamp_(0, 1)


def add_poisson_noise(
    images: Float[Tensor, "b 3 h w"], scale: float, *, gray: bool, generator: torch.Generator
) -> Float[Tensor, "b 3 h w"]:
    """Add `scale` times shot noise and clamp to [0, 1]; its variance is `image * scale^2 / peak`.

    The photon count at white, `peak`, is the number of distinct 8-bit levels of the image, rounded
    up to a power of two, so dark or flat images are noisier. Where `gray`, the noise is that of the
    luma and the three channels share it. The generator lives on the images' device.
    """
    source = _luma(images) if gray else images
    levels = _to_bytes(source)
    peak = torch.tensor(
        [2.0 ** math.ceil(math.log2(_count_distinct(sample))) for sample in levels],
        device=images.device,
        dtype=images.dtype,
    )
    peak = rearrange(peak, "b -> b 1 1 1")
    clean = levels.to(images.dtype) / 255
    noise = torch.poisson(clean * peak, generator=generator).div_(peak).sub_(clean)
    return torch.add(images, noise, alpha=scale).clamp_(0, 1)


def jpeg(images: Float[Tensor, "b 3 h w"], quality: int) -> Float[Tensor, "b 3 h w"]:
    """Encode and decode as JPEG with 4:2:0 chroma; the result lies on the 8-bit grid.

    Images are clamped to [0, 1] and rounded to 8 bits first. Runs on the CPU, whatever the device.
    """
    pixels = rearrange(_to_bytes(images), "b c h w -> b h w c").contiguous().cpu().numpy()
    decoded: list[np.ndarray] = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image).save(stream, "JPEG", quality=quality, subsampling="4:2:0")
        decoded.append(np.asarray(Image.open(stream)))
    restored = torch.from_numpy(np.stack(decoded)).to(images.device)
    return rearrange(restored, "b h w c -> b c h w").to(images.dtype).contiguous() / 255


def round_to_8_bits(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Clamp to [0, 1] and round to multiples of 1/255."""
    return _to_bytes(images).to(images.dtype) / 255


def _to_bytes(images: Float[Tensor, "b c h w"]) -> UInt8[Tensor, "b c h w"]:
    return (images * 255).round_().clamp_(0, 255).to(torch.uint8)


def _luma(images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 1 h w"]:
    weights = rearrange(images.new_tensor(_LUMA), "c -> c 1 1")
    return (images * weights).sum(dim=1, keepdim=True)


def _count_distinct(levels: UInt8[Tensor, "c h w"]) -> int:
    return int(torch.bincount(levels.flatten(), minlength=256).count_nonzero())


def _mirror_pad(
    images: Float[Tensor, "b 3 h w"], radius: int
) -> Float[Tensor, "b 3 h+2*radius w+2*radius"]:
    height, width = images.shape[-2:]
    if radius < min(height, width):
        return F.pad(images, (radius,) * 4, mode="reflect")
    # An image smaller than the kernel is mirrored more than once, which F.pad cannot do.
    rows = _mirrored_indices(height, radius, images.device)
    columns = _mirrored_indices(width, radius, images.device)
    return images[..., rows[:, None], columns]


def _mirrored_indices(length: int, radius: int, device: torch.device) -> Tensor:
    period = max(2 * (length - 1), 1)
    position = torch.arange(-radius, length + radius, device=device) % period
    return torch.minimum(position, period - position)


def _fast_length(minimum: int) -> int:
    """The next multiple of 8 without a prime factor above 5: the lengths that transform fastest."""
    length = -(-minimum // 8) * 8
    while 60 ** length.bit_length() % length:
        length += 8
    return length
