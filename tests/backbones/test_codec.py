"""The codec against diffusers' VAEs, called by hand."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderDC, AutoencoderKL

from allosr2.backbones.codec import Codec
from allosr2.backbones.presets import mini_vae


@pytest.fixture(scope="module")
def kl(tiny_base: Path) -> AutoencoderKL:
    return AutoencoderKL.from_pretrained(tiny_base, subfolder="vae").requires_grad_(False)


@pytest.fixture(scope="module")
def dc() -> AutoencoderDC:
    torch.manual_seed(0)
    return mini_vae().requires_grad_(False).eval()


def images() -> torch.Tensor:
    return torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(3))


def test_kl_latents_are_the_shifted_and_scaled_posterior_mode(kl):
    posterior = kl.encode(images() * 2 - 1).latent_dist
    expected = (posterior.mean - 0.1159) * 0.3611
    codec = Codec(kl)
    torch.testing.assert_close(codec.encode(images()), expected, rtol=0, atol=1e-6)
    assert (codec.factor, codec.channels) == (8, 4)
    assert expected.shape == (2, 4, 4, 6)


def test_kl_images_are_the_decoded_latents(kl):
    z = torch.randn(2, 4, 4, 6, generator=torch.Generator().manual_seed(4))
    expected = kl.decode(z / 0.3611 + 0.1159).sample / 2 + 0.5
    torch.testing.assert_close(Codec(kl).decode(z), expected, rtol=0, atol=1e-6)


def test_dc_has_no_posterior_and_no_shift(dc):
    codec = Codec(dc)
    z = dc.encode(images() * 2 - 1).latent * dc.config["scaling_factor"]
    torch.testing.assert_close(codec.encode(images()), z, rtol=0, atol=1e-6)
    assert (codec.factor, codec.channels) == (8, 16)
    assert z.shape == (2, 16, 4, 6)
    expected = dc.decode(z / dc.config["scaling_factor"]).sample / 2 + 0.5
    torch.testing.assert_close(codec.decode(z), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64,) * 2],
)
def test_latents_and_images_have_at_least_float32(tiny_base, dtype, expected):
    codec = Codec(AutoencoderKL.from_pretrained(tiny_base, subfolder="vae", torch_dtype=dtype))
    low = dtype == torch.bfloat16  # autocast, as where such weights are used, takes float32 images
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=low):
        z = codec.encode(images() if low else images().to(dtype))
        image = codec.decode(z)
    assert (z.dtype, image.dtype) == (expected, expected)


def test_double_precision_is_kept(tiny_base):
    double = Codec(
        AutoencoderKL.from_pretrained(tiny_base, subfolder="vae", torch_dtype=torch.float64)
    )
    x = images().double()
    with torch.no_grad():
        z = double.encode(x)
        assert not torch.equal(z, z.float().double())
        moved = double.encode(x + 1e-12)
    # A shift far below float32's resolution is seen.
    assert 0 < float((moved - z).abs().max()) < 1e-9


def test_gradients_pass_everywhere(kl):
    codec = Codec(kl)
    z = (5 * torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(5))).requires_grad_()
    image = codec.decode(z)
    image.sum().backward()
    assert bool((z.grad.abs() > 0).all())
