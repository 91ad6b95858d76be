"""The velocity field against diffusers' own helpers, transformer and scheduler, driven by hand."""

from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

from allosr2.backbones.base import load_transformer
from allosr2.backbones.flux import FluxVelocity, pack, position_ids, unpack
from allosr2.backbones.velocity import Conditioning, representable_time
from allosr2.errors import ModelError
from allosr2.flow import clean_prediction

SIZES = [(8, 8), (4, 8), (12, 6), (6, 14)]
"""Latent heights and widths: square, 1:2, 2:1 and an odd ratio of odd counts of tokens."""


def transformer(guidance: bool, layers: int = 1) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=layers,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    ).requires_grad_(False)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Checkpoints as diffusers saves them, by whether they take a guidance."""
    folders = {guidance: tmp_path_factory.mktemp("flux") for guidance in (False, True)}
    for guidance, folder in folders.items():
        transformer(guidance).save_pretrained(folder / "transformer")
    return folders


def latents(height: int, width: int, size: int = 2) -> torch.Tensor:
    return torch.randn(size, 4, height, width, generator=torch.Generator().manual_seed(1))


def conditioning(tokens: int) -> Conditioning:
    generator = torch.Generator().manual_seed(2)
    return Conditioning(
        prompt=torch.randn(tokens, 12, generator=generator),
        pooled=torch.randn(10, generator=generator),
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_tokens_and_positions_are_the_pipeline_s(height, width):
    z = latents(height, width)
    expected = FluxPipeline._pack_latents(z, 2, 4, height, width)
    assert torch.equal(pack(z), expected)
    assert torch.equal(unpack(expected, height, width), z)
    pipeline_s = FluxPipeline._unpack_latents(expected, height * 8, width * 8, 8)
    assert torch.equal(unpack(expected, height, width), pipeline_s)
    ids = FluxPipeline._prepare_latent_image_ids(
        2, height // 2, width // 2, torch.device("cpu"), torch.float32
    )
    assert torch.equal(position_ids(height // 2, width // 2, torch.device("cpu")), ids)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("guidance", [None, 1.0, 3.5])
@pytest.mark.parametrize("tokens", [0, 5, 512])
def test_the_velocity_is_the_pipeline_s(saved, height, width, guidance, tokens):
    """Ours from a checkpoint that diffusers saved, and diffusers' own from the same."""
    checkpoint = saved[guidance is not None]
    network = FluxTransformer2DModel.from_pretrained(checkpoint, subfolder="transformer")
    prompt = conditioning(tokens)
    z, t = latents(height, width), torch.tensor([0.3, 0.75])
    with torch.no_grad():
        found = FluxVelocity(load_transformer(str(checkpoint)), prompt, guidance)(z, t)
        # FluxPipeline hands over timestep / 1000 and a guidance for each sample
        noise_prediction = network(
            hidden_states=FluxPipeline._pack_latents(z, 2, 4, height, width),
            timestep=torch.tensor([300.0, 750.0]) / 1000,
            guidance=None if guidance is None else torch.tensor([guidance, guidance]),
            pooled_projections=torch.stack([prompt.pooled, prompt.pooled]),
            encoder_hidden_states=torch.stack([prompt.prompt, prompt.prompt]),
            txt_ids=torch.zeros(tokens, 3),
            img_ids=FluxPipeline._prepare_latent_image_ids(
                2, height // 2, width // 2, torch.device("cpu"), torch.float32
            ),
        ).sample
    expected = FluxPipeline._unpack_latents(noise_prediction, height * 8, width * 8, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert found.shape == z.shape


@pytest.mark.parametrize("t_star", [0.2, 0.4, 0.9])
def test_one_step_is_the_scheduler_s(t_star):
    field = FluxVelocity(transformer(False), conditioning(0))
    z = latents(6, 8)
    t = torch.full((2,), t_star)
    with torch.no_grad():
        v = field(z, t)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    scheduler.set_timesteps(sigmas=[t_star])
    assert scheduler.sigmas.tolist() == pytest.approx([t_star, 0])
    expected = scheduler.step(v, scheduler.timesteps[0], z).prev_sample
    torch.testing.assert_close(clean_prediction(z, v, t), expected, rtol=0, atol=1e-6)


def test_samples_of_a_batch_do_not_meet():
    field = FluxVelocity(transformer(False), conditioning(5))
    z, t = latents(6, 8, size=3), torch.tensor([0.1, 0.5, 0.9])
    with torch.no_grad():
        single = torch.cat([field(z[i : i + 1], t[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(field(z, t), single, rtol=0, atol=1e-6)


def test_single_blocks_alone_are_enough():
    field = FluxVelocity(
        network := transformer(False, layers=0), FluxVelocity.without_text(network)
    )
    assert field.prompt.shape == (0, 12)
    assert torch.equal(field.pooled, torch.zeros(10))
    with torch.no_grad():
        assert bool(field(latents(4, 4), torch.full((2,), 0.5)).isfinite().all())


def test_low_precision_weights_take_and_give_float32():
    field = FluxVelocity(transformer(True), conditioning(5), guidance=1.0)
    z, t = latents(6, 8), torch.tensor([0.25, 0.5])  # times that bfloat16 holds
    with torch.no_grad():
        expected = field(z, t)
        found = field.to(torch.bfloat16)(z, t)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)
    assert not torch.equal(found, expected)


def test_representable_times_are_the_same_in_bfloat16():
    for step in range(20, 1000):
        t = representable_time(step / 1000)
        assert abs(t - step / 1000) < 0.005
        low = torch.tensor(t).to(torch.bfloat16) * 1000
        assert low.item() == pytest.approx(t * 1000, abs=1e-3), t


@pytest.mark.parametrize(("distilled", "guidance"), [(True, None), (False, 1.0)])
def test_a_guidance_that_does_not_suit_the_base_is_refused(distilled, guidance):
    with pytest.raises(ModelError, match=r"needs a guidance|takes no guidance"):
        FluxVelocity(transformer(distilled), conditioning(0), guidance)


def test_a_vae_of_other_channels_is_refused():
    velocity = FluxVelocity(transformer(False), conditioning(0))
    velocity.check_channels(4)
    with pytest.raises(
        ModelError, match="latents have 16 channels, the transformer's 4; take both"
    ):
        velocity.check_channels(16)


def test_a_base_that_images_control_is_refused():
    fill = FluxTransformer2DModel(
        in_channels=24,
        out_channels=16,
        num_layers=0,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        axes_dims_rope=(4, 6, 6),
    )
    with pytest.raises(ModelError, match="takes 24 channels and gives 16"):
        FluxVelocity(fill, conditioning(0))


def test_a_prompt_of_another_base_is_refused():
    other = Conditioning(prompt=torch.zeros(3, 13), pooled=torch.zeros(10))
    with pytest.raises(ModelError, match=r"widths \(13, 10\), this base needs \(12, 10\)"):
        FluxVelocity(transformer(False), other)
