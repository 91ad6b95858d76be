"""What every family of bases promises, against diffusers' pipelines, schedulers and loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import Tensor, nn

from allosr2.backbones.base import codec_of, load_transformer, load_vae, save_base, velocity_of
from allosr2.backbones.codec import Codec
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.flux2 import Flux2Codec, Flux2Velocity
from allosr2.backbones.lora import (
    FILE_NAME,
    add_adapter,
    load_adapters,
    merge_adapters,
    save_adapters,
)
from allosr2.backbones.sd3 import SD3Velocity
from allosr2.backbones.velocity import Conditioning, VelocityField
from allosr2.backbones.z_image import ZImageVelocity
from allosr2.errors import ModelError
from allosr2.flow import clean_prediction
from allosr2.model import AlloSR2, ModelConfig

TIMES = torch.tensor([0.3, 0.75])
TIMESTEPS = torch.tensor([300.0, 750.0])
"""The same times as a scheduler of 1000 training steps counts them."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A tiny base and what is known of it from diffusers' sources."""

    transformer: type
    settings: dict[str, Any]
    vae: type = AutoencoderKL
    vae_settings: dict[str, Any]
    pipeline: type
    call: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]
    """The pipeline's way from network, latents, prompt and pooled embedding to the scheduler's input."""
    arguments: Callable[[Tensor, Tensor, Tensor], dict[str, Any]]
    """What the pipeline is called with for latents, prompt and pooled embedding."""
    finished: Callable[[Tensor, Tensor, nn.Module], Tensor] = lambda out, *_: out
    """The pipeline's `latent` output as latents again, of the shape that it was called with; knows the VAE."""
    velocity: type[VelocityField]
    codec: type[Codec] = Codec
    channels: int = 4
    guidance: float | None = None
    pooled: int = 0
    """Width of the pooled embedding."""
    adapters: set[str]
    silent: frozenset[str] = frozenset()
    """Adapters on what diffusers computes and throws away."""


FLUX_GUIDANCE, FLUX2_GUIDANCE = 4.0, 2.0
"""Both exact in bfloat16 after the transformer has multiplied them by 1000."""


def flux_call(network, z, prompt, pooled):
    _, channels, height, width = z.shape
    tokens = network(
        hidden_states=FluxPipeline._pack_latents(z, 2, channels, height, width),
        timestep=TIMESTEPS / 1000,
        guidance=torch.full((1,), FLUX_GUIDANCE).expand(2),
        pooled_projections=pooled,
        encoder_hidden_states=prompt,
        txt_ids=torch.zeros(prompt.shape[1], 3),
        img_ids=FluxPipeline._prepare_latent_image_ids(
            2, height // 2, width // 2, torch.device("cpu"), torch.float32
        ),
        return_dict=False,
    )[0]
    return FluxPipeline._unpack_latents(tokens, height * 8, width * 8, 8)


def flux_arguments(z, prompt, pooled):
    return {
        "latents": FluxPipeline._pack_latents(z, *z.shape),
        "prompt_embeds": prompt,
        "pooled_prompt_embeds": pooled,
        "guidance_scale": FLUX_GUIDANCE,
    }


def flux_finished(out, z, vae):
    return FluxPipeline._unpack_latents(out, z.shape[2] * 8, z.shape[3] * 8, 8)


def flux2_call(guidance):
    def call(network, z, prompt, pooled):
        ids = Flux2KleinPipeline._prepare_latent_ids(z)
        tokens = network(
            hidden_states=Flux2KleinPipeline._pack_latents(z),
            timestep=TIMESTEPS / 1000,
            guidance=guidance and torch.full((1,), guidance).expand(2),
            encoder_hidden_states=prompt,
            txt_ids=Flux2KleinPipeline._prepare_text_ids(prompt),
            img_ids=ids,
            return_dict=False,
        )[0]
        return Flux2KleinPipeline._unpack_latents_with_ids(tokens, ids)

    return call


def sd3_call(network, z, prompt, pooled):
    return network(
        hidden_states=z,
        timestep=TIMESTEPS,
        encoder_hidden_states=prompt,
        pooled_projections=pooled,
        return_dict=False,
    )[0]


def z_image_call(network, z, prompt, pooled):
    frames = list(z.unsqueeze(2).unbind(0))
    out = network(frames, (1000 - TIMESTEPS) / 1000, list(prompt), return_dict=False)[0]
    return -torch.stack(out).squeeze(2)


def of(block: str, *names: str) -> set[str]:
    return {f"{block}.{name}" for name in names}


JOINT_ATTENTION = (
    *("attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
)
FEED_FORWARD = ("ff.net.0.proj", "ff.net.2")
CONTEXT = ("attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2")
FLUX_SINGLE_BLOCK = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out")
Z_IMAGE_BLOCK = (
    *(f"attention.to_{name}" for name in ("q", "k", "v", "out.0")),
    *(f"feed_forward.w{number}" for number in (1, 2, 3)),
)

FLUX2 = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 12,
    "timestep_guidance_channels": 32,
    "axes_dims_rope": (4, 4, 4, 4),
}
FLUX2_ADAPTERS = {
    "x_embedder",
    *of("transformer_blocks.0", *JOINT_ATTENTION, "attn.to_add_out"),
    *of("transformer_blocks.0.ff", "linear_in", "linear_out"),
    *of("transformer_blocks.0.ff_context", "linear_in", "linear_out"),
    *of("single_transformer_blocks.0.attn", "to_qkv_mlp_proj", "to_out"),
    *of("single_transformer_blocks.1.attn", "to_qkv_mlp_proj", "to_out"),
}


def flux2_klein_finished(out, z, vae):
    # handed out as the VAE takes them: at its scale and without patches
    return vae.bn(Flux2KleinPipeline._patchify_latents(out))


def flux2_finished(out, z, vae):
    return Flux2Pipeline._unpack_latents_with_ids(out, Flux2Pipeline._prepare_latent_ids(z))


def flux2(pipeline, finished, guidance) -> Family:
    return Family(
        transformer=Flux2Transformer2DModel,
        settings=FLUX2 | {"guidance_embeds": guidance is not None},
        vae=AutoencoderKLFlux2,
        vae_settings={"batch_norm_eps": 0.01},
        pipeline=pipeline,
        call=flux2_call(guidance),
        arguments=lambda z, prompt, _: {
            "latents": z,
            "prompt_embeds": prompt,
            "guidance_scale": guidance or 1.0,
        },
        finished=finished,
        velocity=Flux2Velocity,
        codec=Flux2Codec,
        channels=16,
        guidance=guidance,
        adapters=FLUX2_ADAPTERS,
    )


FAMILIES = {
    "FLUX.1": Family(
        transformer=FluxTransformer2DModel,
        settings={
            "in_channels": 16,
            "num_layers": 1,
            "num_single_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "guidance_embeds": True,
            "axes_dims_rope": (4, 6, 6),
        },
        vae_settings={"shift_factor": 0.1159, "scaling_factor": 0.3611},
        pipeline=FluxPipeline,
        call=flux_call,
        arguments=flux_arguments,
        finished=flux_finished,
        velocity=FluxVelocity,
        guidance=FLUX_GUIDANCE,
        pooled=10,
        adapters={
            "x_embedder",
            *of("transformer_blocks.0", *JOINT_ATTENTION, *FEED_FORWARD, *CONTEXT),
            *of("single_transformer_blocks.0", *FLUX_SINGLE_BLOCK),
            *of("single_transformer_blocks.1", *FLUX_SINGLE_BLOCK),
        },
    ),
    "FLUX.2 [klein]": flux2(Flux2KleinPipeline, flux2_klein_finished, None),
    "FLUX.2 with guidance": flux2(Flux2Pipeline, flux2_finished, FLUX2_GUIDANCE),
    "Stable Diffusion 3.5": Family(
        transformer=SD3Transformer2DModel,
        settings={
            "sample_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 12,
            "caption_projection_dim": 32,
            "pooled_projection_dim": 10,
            "pos_embed_max_size": 9,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        vae_settings={"shift_factor": 0.0609, "scaling_factor": 1.5305},
        pipeline=StableDiffusion3Pipeline,
        call=sd3_call,
        arguments=lambda z, prompt, pooled: {
            "latents": z,
            "prompt_embeds": prompt,
            "pooled_prompt_embeds": pooled,
            "guidance_scale": 1.0,
        },
        velocity=SD3Velocity,
        pooled=10,
        adapters={
            "pos_embed.proj",
            *of("transformer_blocks.0", *JOINT_ATTENTION, *FEED_FORWARD, *CONTEXT),
            *of("transformer_blocks.0.attn2", "to_q", "to_k", "to_v", "to_out.0"),
            *of("transformer_blocks.1", *JOINT_ATTENTION, *FEED_FORWARD),
        },
        # the last block asks with the text and drops the answer
        silent=frozenset({"transformer_blocks.1.attn.add_q_proj"}),
    ),
    "Z-Image": Family(
        transformer=ZImageTransformer2DModel,
        settings={
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 12,
            "axes_dims": [4, 6, 6],
            "axes_lens": [128, 16, 16],
        },
        vae_settings={"shift_factor": 0.1159, "scaling_factor": 0.3611},
        pipeline=ZImagePipeline,
        call=z_image_call,
        arguments=lambda z, prompt, _: {
            "latents": z,
            "prompt_embeds": list(prompt),
            "guidance_scale": 0.0,
        },
        velocity=ZImageVelocity,
        adapters={
            "all_x_embedder.2-1",
            *of("noise_refiner.0", *Z_IMAGE_BLOCK),
            *of("context_refiner.0", *Z_IMAGE_BLOCK),
            *of("layers.0", *Z_IMAGE_BLOCK),
            *of("layers.1", *Z_IMAGE_BLOCK),
        },
    ),
}
SIZES = [(4, 4), (4, 2), (3, 5)]
"""Rows and columns of patches: square, 2:1 and an odd ratio."""


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    return FAMILIES[request.param]


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def disturbed(module: nn.Module) -> nn.Module:
    """With noise on all parameters, those that start at zero (tokens, biases) among them."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.requires_grad_(False).eval()


def transformer_of(family: Family) -> nn.Module:
    torch.manual_seed(0)
    return disturbed(family.transformer(**family.settings))


def vae_of(family: Family) -> nn.Module:
    torch.manual_seed(0)
    vae = family.vae(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        **family.vae_settings,
    )
    if family.vae is AutoencoderKLFlux2:
        vae.bn.running_mean = normal(16, seed=1)
        vae.bn.running_var = normal(16, seed=2).square() + 0.01
    return disturbed(vae)


def latents(family: Family, rows: int = 3, columns: int = 5) -> Tensor:
    side = family.velocity.patch
    return normal(2, family.channels, rows * side, columns * side, seed=3)


def conditioning(family: Family, tokens: int = 5) -> Conditioning:
    return Conditioning(prompt=normal(tokens, 12, seed=4), pooled=normal(family.pooled, seed=5))


def field_of(family: Family, transformer: nn.Module, tokens: int = 5) -> VelocityField:
    return velocity_of(transformer, conditioning(family, tokens), family.guidance)


def velocity(family: Family, transformer: nn.Module) -> Tensor:
    """The field's answer to one fixed question."""
    with torch.no_grad():
        return field_of(family, transformer)(latents(family), TIMES)


def adapt(module: nn.Module, targets: str) -> nn.Module:
    """With adapters that have an effect, of values that a file in bfloat16 holds."""
    add_adapter(module, targets, rank=2, alpha=4)
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_" in name:
                values = 0.2 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(values.to(torch.bfloat16))
    return module


def adapted(family: Family) -> nn.Module:
    return adapt(transformer_of(family), family.velocity.lora_targets)


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        *((name, size, 5) for name in FAMILIES for size in SIZES),
        *((name, size, 0) for name in FAMILIES for size in SIZES if name != "Z-Image"),
        ("Z-Image", (3, 5), 1),
        ("Z-Image", (3, 5), 40),
        ("FLUX.1", (3, 5), 512),
    ],
)
def test_the_velocity_is_the_pipeline_s(name, size, tokens):
    family = FAMILIES[name]
    network, prompt = transformer_of(family), conditioning(family, tokens)
    z = latents(family, *size)
    with torch.no_grad():
        found = field_of(family, network, tokens)(z, TIMES)
        expected = family.call(
            network, z, prompt.prompt.expand(2, -1, -1), prompt.pooled.expand(2, -1)
        )
    assert found.shape == z.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_all_that_a_field_is_given_matters(family):
    network, held, z = transformer_of(family), conditioning(family), latents(family)

    def ask(z=z, t=TIMES, prompt=held.prompt, pooled=held.pooled, guidance=family.guidance):
        field = family.velocity(network, Conditioning(prompt=prompt, pooled=pooled), guidance)
        with torch.no_grad():
            return field(z, t)

    others = [ask(z=z + 1), ask(t=TIMES + 0.1), ask(prompt=held.prompt + 1)]
    others.append(ask(z=z.flip(3)).flip(3))  # where a token lies, too
    others.append(ask(z=z.flip(2)).flip(2))
    if family.pooled:
        others.append(ask(pooled=held.pooled + 1))
    if family.guidance:
        others.append(ask(guidance=1.0))
    for other in others:
        assert bool(((other - ask()).abs().amax(dim=(1, 2, 3)) > 0.01).all())


def test_low_precision_weights_take_and_give_float32(family):
    field = field_of(family, transformer_of(family))
    z, t = latents(family), torch.tensor([0.25, 0.5])  # times that bfloat16 holds
    with torch.no_grad():
        expected = field(z, t)
        found = field.to(torch.bfloat16)(z, t)
    assert found.dtype == torch.float32
    error = (found - expected).square().mean() / expected.square().mean()
    assert 0 < float(error) < 0.03**2


def one_step_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Without the shift that would put a step at another time than the one asked for."""
    return FlowMatchEulerDiscreteScheduler(shift=1.0, use_dynamic_shifting=False)


def test_one_step_is_the_scheduler_s(family):
    z, t = latents(family), torch.full((2,), 0.4)
    with torch.no_grad():
        v = field_of(family, transformer_of(family))(z, t)
    scheduler = one_step_scheduler()
    scheduler.set_timesteps(sigmas=[0.4])
    expected = scheduler.step(v, scheduler.timesteps[0], z).prev_sample
    torch.testing.assert_close(clean_prediction(z, v, t), expected, rtol=0, atol=1e-6)


def pipeline_of(family: Family, transformer: nn.Module, vae: nn.Module) -> DiffusionPipeline:
    """The family's own, without text encoders."""
    absent = ["text_encoder", "tokenizer"]
    if family.pooled:
        absent += ["text_encoder_2", "tokenizer_2"]
    if family.pipeline is StableDiffusion3Pipeline:
        absent += ["text_encoder_3", "tokenizer_3"]
    pipeline = family.pipeline(
        scheduler=one_step_scheduler(),
        transformer=transformer,
        vae=vae,
        **dict.fromkeys(absent),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_the_pipeline_takes_the_same_step_to_the_same_image(family):
    network, vae, z = transformer_of(family), vae_of(family), latents(family)
    held, codec = conditioning(family), codec_of(vae)
    height, width = (side * codec.factor for side in z.shape[2:])

    def run(output_type: str) -> Tensor:
        arguments = family.arguments(z, held.prompt.expand(2, -1, -1), held.pooled.expand(2, -1))
        return pipeline_of(family, network, vae)(
            height=height,
            width=width,
            sigmas=[0.4],
            num_inference_steps=1,
            output_type=output_type,
            **arguments,
        ).images

    t = torch.full((2,), 0.4)
    with torch.no_grad():
        found = clean_prediction(z, field_of(family, network)(z, t), t)
        image = codec.decode(found)
    expected = family.finished(run("latent"), z, vae)
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(image.clamp(0, 1), run("pt"), rtol=0, atol=1e-5)
    assert image.shape == (2, 3, height, width)


def posterior_mode_for_the_flow(family: Family, vae: nn.Module, image: Tensor) -> Tensor:
    """As the family's pipelines with an image input have it."""
    if family.codec is Flux2Codec:
        pipeline = pipeline_of(family, transformer_of(family), vae)
        return pipeline._encode_vae_image(image * 2 - 1, generator=None)
    mode = vae.encode(image * 2 - 1).latent_dist.mode()
    return (mode - family.vae_settings["shift_factor"]) * family.vae_settings["scaling_factor"]


def test_encoded_latents_are_the_pipeline_s(family):
    vae = vae_of(family)
    codec = codec_of(vae)
    image = normal(2, 3, 32, 48, seed=7).sigmoid()
    with torch.no_grad():
        z = codec.encode(image)
        expected = posterior_mode_for_the_flow(family, vae, image)
    assert type(codec) is family.codec
    torch.testing.assert_close(z, expected, rtol=0, atol=1e-5)
    assert z.shape == (2, codec.channels, 32 // codec.factor, 48 // codec.factor)
    assert codec.channels == family.channels
    assert codec.factor * family.velocity.patch == 16
    field_of(family, transformer_of(family)).check_channels(codec.channels)


def test_latents_go_to_the_vae_and_back(family):
    codec, z = codec_of(vae_of(family)), latents(family, 4, 2)
    posterior = codec._to_vae(z)
    pixels = codec.factor // 8
    assert posterior.shape == (2, 4, z.shape[2] * pixels, z.shape[3] * pixels)
    torch.testing.assert_close(codec._to_model(posterior), z, rtol=0, atol=1e-5)


def test_adapters_sit_on_every_projection_and_nowhere_else(family):
    network = transformer_of(family)
    before = velocity(family, network)
    add_adapter(network, family.velocity.lora_targets, rank=2, alpha=4)
    trainable = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trainable == {
        f"{name}.lora_{side}.default.weight" for name in family.adapters for side in "AB"
    }
    assert torch.equal(velocity(family, network), before)


def test_no_projection_of_a_block_is_forgotten(family):
    """Beside the names above: all that is linear in a list of blocks and does not modulate by time."""
    network = transformer_of(family)
    blocks = [name for name, part in network.named_children() if isinstance(part, nn.ModuleList)]
    projections = {
        name
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
        and name.partition(".")[0] in blocks
        and not any(word in name for word in ("norm", "adaLN"))
    }
    (embedder,) = family.adapters - projections
    assert projections == family.adapters - {embedder}


def test_merging_changes_no_output(family):
    network = adapted(family)
    before = velocity(family, network)
    assert float((before - velocity(family, transformer_of(family))).abs().max()) > 0.1
    merge_adapters(network)
    torch.testing.assert_close(velocity(family, network), before, rtol=0, atol=1e-5)


def test_adapters_go_through_a_file_that_diffusers_reads(family, tmp_path):
    network = adapted(family)
    save_adapters(tmp_path, transformer=network)
    expected = velocity(family, network)
    ours, theirs, the_pipeline_s = (transformer_of(family) for _ in range(3))
    load_adapters(tmp_path, transformer=ours)
    torch.testing.assert_close(velocity(family, ours), expected, rtol=0, atol=1e-5)
    theirs.load_lora_adapter(tmp_path, weight_name=FILE_NAME, prefix="transformer")
    torch.testing.assert_close(velocity(family, theirs), expected, rtol=0, atol=1e-5)
    pipeline_of(family, the_pipeline_s, vae_of(family)).load_lora_weights(tmp_path)
    torch.testing.assert_close(velocity(family, the_pipeline_s), expected, rtol=0, atol=1e-5)


def gradients(family: Family, network: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    network.zero_grad()
    z = latents(family)
    v = field_of(family, network)(z, TIMES)
    (v * normal(*z.shape, seed=8)).sum().backward()
    return v.detach(), {n: p.grad for n, p in network.named_parameters() if p.requires_grad}


def test_gradients_reach_every_adapter(family):
    network = adapted(family)
    v, plain = gradients(family, network)
    silent = {n.partition(".lora_")[0] for n, g in plain.items() if not bool((g != 0).any())}
    assert silent == family.silent
    network.enable_gradient_checkpointing()
    v_again, again = gradients(family, network)
    torch.testing.assert_close(v_again, v, rtol=0, atol=1e-6)
    assert again.keys() == plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def settings_of(module: nn.Module) -> dict[str, Any]:
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in module.config.items()}
    return {k: v for k, v in listed.items() if not k.startswith("_")}


@pytest.fixture
def saved(family: Family, tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    save_base(folder, transformer=transformer_of(family), vae=vae_of(family))
    return folder


def test_a_base_goes_through_a_folder(family, saved):
    parts = {
        "transformer": (transformer_of(family), load_transformer(str(saved))),
        "vae": (vae_of(family), load_vae(str(saved))),
    }
    for original, loaded in parts.values():
        assert type(loaded) is type(original)
        assert settings_of(loaded) == settings_of(original)
        assert not any(p.requires_grad for p in loaded.parameters())
        rounded = original.to(torch.bfloat16).to(torch.float32).state_dict()
        assert loaded.state_dict().keys() == rounded.keys()
        assert all(torch.equal(loaded.state_dict()[k], v) for k, v in rounded.items())
    field = field_of(family, parts["transformer"][1])
    codec = codec_of(parts["vae"][1])
    assert (type(field), type(codec)) == (family.velocity, family.codec)


def test_a_whole_model_is_saved_loaded_and_restores(family, saved, tmp_path):
    config = ModelConfig(
        base=str(saved),
        t_star=0.4,
        scale=4,
        preset="mild",
        prompt_length=3,
        guidance=family.guidance,
    )
    model = AlloSR2(
        codec_of(adapt(load_vae(str(saved)), family.codec.lora_targets)),
        field_of(
            family, adapt(load_transformer(str(saved)), family.velocity.lora_targets), tokens=3
        ),
        config,
    )
    model.save_pretrained(tmp_path)
    again = AlloSR2.from_pretrained(tmp_path)
    assert (type(again.codec), type(again.velocity)) == (family.codec, family.velocity)
    assert again.config == config
    image = normal(1, 3, model.multiple, model.multiple, seed=9).sigmoid()
    with torch.no_grad():
        restored, expected = again(image), model(image)
    assert restored.shape == image.shape == (1, 3, 16, 16)
    assert bool(restored.isfinite().all())
    torch.testing.assert_close(restored, expected, rtol=0, atol=1e-5)


def test_a_guidance_that_does_not_suit_the_base_is_refused(family):
    network, prompt = transformer_of(family), conditioning(family)
    unsuitable, message = (
        (1.0, "takes no guidance") if family.guidance is None else (None, "needs a guidance")
    )
    with pytest.raises(ModelError, match=message):
        velocity_of(network, prompt, unsuitable)
    field = field_of(family, network)
    if family.guidance is None:
        with pytest.raises(ModelError, match=message):
            field.with_guidance(1.0)
    else:
        assert field.with_guidance(1.0).guidance == 1.0


def test_a_field_without_text_runs(family):
    network = transformer_of(family)
    field = velocity_of(network, family.velocity.without_text(network), family.guidance)
    assert not bool(field.prompt.any())
    assert torch.equal(field.pooled, torch.zeros(family.pooled))
    assert field.prompt.shape == (1 if family.velocity is ZImageVelocity else 0, 12)
    with torch.no_grad():
        assert bool(field(latents(family), TIMES).isfinite().all())


def test_z_image_needs_a_token_of_text():
    family = FAMILIES["Z-Image"]
    network, nothing = transformer_of(family), conditioning(family, tokens=0)
    prompt = nothing.prompt.expand(2, -1, -1)
    with pytest.raises(RuntimeError):  # once diffusers runs it, there is nothing to refuse
        family.call(network, latents(family), prompt, nothing.pooled)
    with pytest.raises(ModelError, match="no text tokens: this base needs at least one"):
        velocity_of(network, nothing)
