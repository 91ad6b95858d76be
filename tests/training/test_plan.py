"""Plans, against counts by hand, published sizes, and what real steps on a CPU hold and compute."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from allosr2.backbones.base import codec_of, family_of, load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.known import outline, usual_text_tokens
from allosr2.backbones.lora import add_adapter
from allosr2.data.pairs import Batch
from allosr2.errors import AlloSR2Error, ModelError
from allosr2.losses.perceptual import LPIPS
from allosr2.meter import CudaRules, Meter
from allosr2.model import AlloSR2, ModelConfig
from allosr2.training import rehearsal
from allosr2.training.adapters import use_gradient_checkpointing
from allosr2.training.config import (
    AdapterConfig,
    AlloSR2Training,
    ImagesConfig,
    LossConfig,
    OptimizationConfig,
    PerceptualConfig,
    RunConfig,
)
from allosr2.training.noise import sample_generators
from allosr2.training.optimizer import build_optimizer, optimizer_tensors
from allosr2.training.plan import Plan, plan, remedies, savings
from allosr2.training.recipes import (
    flux2_klein_x4,
    flux_dev_24gb,
    flux_dev_lean,
    flux_dev_x4,
    mini,
    mini_codec,
    z_image_x4,
)
from allosr2.training.step import algorithm_1

CROP = 128
RANK = 4
LPIPS_ON = PerceptualConfig(perceptual=Path("lpips.safetensors"), perceptual_weight=1.0)


@pytest.fixture(scope="module")
def paper_s() -> Plan:
    return plan(replace(flux_dev_x4(), perceptual=LPIPS_ON))


@pytest.fixture(scope="module")
def lean() -> Plan:
    return plan(replace(flux_dev_lean(), perceptual=LPIPS_ON))


@pytest.fixture(scope="module")
def in_4_bits() -> Plan:
    return plan(replace(flux_dev_24gb(), perceptual=LPIPS_ON))


@pytest.fixture
def tiny(tiny_base: Path) -> AlloSR2Training:
    """Two images a step on `tiny_base`, in float32."""
    return AlloSR2Training(
        run=RunConfig(output=Path("run"), batch_size=2, precision="float32"),
        images=ImagesConfig(crop=CROP),
        optimization=OptimizationConfig(),
        perceptual=LPIPS_ON,
        base=str(tiny_base),
        guidance=1.0,
        adapter=AdapterConfig(rank=RANK, alpha=RANK),
    )


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def test_flux_dev_has_as_many_parameters_as_its_layers_by_hand(paper_s: Plan) -> None:
    d, head, pooled = 3072, 128, 768
    # a stream of a double block: modulation, q k v and out, their two norms, feed-forward
    stream = linear(d, 6 * d) + 4 * linear(d, d) + 2 * head + linear(d, 4 * d) + linear(4 * d, d)
    # a single block: modulation, q k v, their norms, feed-forward's first half, its second with attention's out
    single = linear(d, 3 * d) + 3 * linear(d, d) + 2 * head + linear(d, 4 * d) + linear(5 * d, d)
    embedders = linear(64, d) + linear(4096, d)  # latents' patches, T5
    times = 2 * (linear(256, d) + linear(d, d)) + linear(pooled, d) + linear(d, d)
    head_ = linear(d, 2 * d) + linear(d, 64)
    total = 19 * 2 * stream + 38 * single + embedders + times + head_
    assert total == 11_901_408_320
    assert paper_s.parameters["transformer"] == total


def test_adapters_of_rank_64_have_as_many_parameters_as_by_hand(paper_s: Plan) -> None:
    r, d = 64, 3072
    assert {k: v for k, v in paper_s.adapters.items() if k != "VAE encoder"} == {
        "x_embedder": r * (64 + d),
        "transformer_blocks.attn": 19 * 8 * r * (d + d),
        "transformer_blocks.ff": 19 * 2 * r * (d + 4 * d),
        "transformer_blocks.ff_context": 19 * 2 * r * (d + 4 * d),
        "single_transformer_blocks.attn": 38 * 3 * r * (d + d),
        "single_transformer_blocks.proj_mlp": 38 * r * (d + 4 * d),
        "single_transformer_blocks.proj_out": 38 * r * (5 * d + d),
    }

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return r * inputs * kernel**2 + r * outputs

    blocks = [
        [(128, 128), (128, 128)],
        [(128, 256), (256, 256)],
        [(256, 512), (512, 512)],
        [(512, 512), (512, 512)],
        [(512, 512), (512, 512)],  # the middle
    ]
    encoder = conv(3, 128) + conv(512, 2 * 16)
    for inputs, outputs in (pair for block in blocks for pair in block):
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        encoder += conv(inputs, outputs) + conv(outputs, outputs) + shortcut
    encoder += conv(128, 128) + conv(256, 256) + conv(512, 512)  # each shrinks by two
    encoder += 4 * r * (512 + 512)  # the middle's attention
    assert paper_s.adapters["VAE encoder"] == encoder
    assert paper_s.trainable == sum(paper_s.adapters.values())


@pytest.mark.parametrize(
    ("base", "gigabytes"),
    [
        ("black-forest-labs/FLUX.1-schnell", 23.8),
        ("black-forest-labs/FLUX.2-klein-4B", 7.75),
        ("stabilityai/stable-diffusion-3.5-medium", 5.11 - 0.17),  # the file holds a VAE too
        ("Tongyi-MAI/Z-Image", 12.3),
    ],
)
def test_known_bases_are_as_large_as_their_published_bfloat16_files(
    base: str, gigabytes: float
) -> None:
    transformer, vae = outline(base)
    tensors = [*transformer.parameters(), *transformer.buffers()]
    assert 2 * sum(t.numel() for t in tensors) / 1e9 == pytest.approx(gigabytes, rel=0.003)
    # FLUX.1's autoencoder, which others took over, and FLUX.2's
    assert sum(p.numel() for p in vae.parameters()) == (
        84_046_115 if "FLUX.2" in base else 83_819_683
    )
    codec = codec_of(vae)
    field = family_of(transformer)
    conditioning = field.without_text(transformer)
    guidance = 1.0 if field.distilled(transformer) else None
    field(transformer, conditioning, guidance).check_channels(codec.channels)


def test_text_is_as_long_as_pipelines_make_it() -> None:
    import inspect

    from diffusers import Flux2KleinPipeline, FluxPipeline, StableDiffusion3Pipeline

    def default(kind: type) -> int:
        return inspect.signature(kind.encode_prompt).parameters["max_sequence_length"].default

    lengths = {
        base: usual_text_tokens(outline(base)[0])
        for base in (
            "black-forest-labs/FLUX.1-dev",
            "black-forest-labs/FLUX.2-klein-4B",
            "stabilityai/stable-diffusion-3.5-medium",
        )
    }
    assert list(lengths.values()) == [
        default(FluxPipeline),
        default(Flux2KleinPipeline),
        77 + default(StableDiffusion3Pipeline),
    ]


def test_memory_is_the_sum_of_its_parts(paper_s: Plan) -> None:
    assert paper_s.total == sum(paper_s.memory.values())
    adapters = 4 * paper_s.trainable
    assert paper_s.memory["adapters (float32)"] == adapters
    assert paper_s.memory["gradients"] == adapters
    assert paper_s.memory["AdamW"] == 2 * adapters
    assert paper_s.memory["moving average"] == 0  # the recipe keeps none
    prompt = 4 * (512 * 4096 + 768)
    assert paper_s.memory["transformer, frozen (bfloat16)"] == 2 * 11_901_408_320 + prompt
    assert paper_s.memory["VAE and its frozen copy (float32)"] == 2 * 4 * 83_819_683
    assert paper_s.memory["activations"] == max(phase.peak for phase in paper_s.phases)


def test_a_moving_average_is_one_more_copy_of_the_adapters(tiny: AlloSR2Training) -> None:
    without = plan(replace(tiny, optimization=OptimizationConfig(ema_decay=0.0)))
    assert plan(tiny).total - without.total == 4 * without.trainable


def test_the_paper_s_recipe_fits_an_a100_and_the_one_in_4_bits_a_gpu_of_24_gigabytes(
    paper_s: Plan, in_4_bits: Plan
) -> None:
    assert paper_s.total < 80e9
    assert in_4_bits.total < 24e9 < paper_s.total


def test_tokens_are_image_and_text_of_three_sequences_an_image(paper_s: Plan, lean: Plan) -> None:
    assert paper_s.image_tokens == (512 // 16) ** 2
    assert paper_s.text_tokens - lean.text_tokens == 512
    assert paper_s.sequences == lean.sequences == 16 * 3  # z_lr, z_t_sr, z_t_gen
    assert (paper_s.tokens, lean.tokens) == (48 * 1536, 48 * 1024)
    assert lean.flops < 0.7 * paper_s.flops
    assert lean.total < paper_s.total


def test_flops_of_flux_dev_are_about_two_a_weight_and_token(paper_s: Plan) -> None:
    d, sequences, image, text = 3072, 2 * 16, 1024, 512
    # weights that see every token of a stream; modulation sees a sequence once
    stream = 4 * d * d + 8 * d * d
    single = 3 * d * d + 4 * d * d + 5 * d * d
    weights = (19 * stream + 38 * single) * (image + text)
    attention = (19 + 38) * 2 * (image + text) ** 2 * d
    (forward,) = (p.flops for p in paper_s.phases if p.name == "transformer")
    assert forward == pytest.approx(
        2 * sequences * (weights + attention), rel=0.04
    )  # adapters: 3 %
    # computed again, then back: once for activations, and for adapters' weights
    (backward,) = (p.flops for p in paper_s.phases if p.name == "backward: transformer")
    assert 2.0 < backward / forward < 2.2


def real(config: AlloSR2Training) -> tuple[AlloSR2, nn.Module]:
    """The same model on the CPU, gradients in place, and the frozen codec."""
    vae, transformer = load_vae(config.base), load_transformer(config.base)
    frozen, family = codec_of(copy.deepcopy(vae)), family_of(transformer)
    velocity = family(transformer, family.without_text(transformer), config.guidance)
    for part, targets in ((vae, frozen.lora_targets), (transformer, velocity.lora_targets)):
        add_adapter(part, targets, rank=RANK, alpha=RANK)
    use_gradient_checkpointing(config, vae=vae, transformer=transformer)
    settings = ModelConfig(
        base="base", t_star=0.4, scale=4, preset="mild", prompt_length=0, guidance=1.0
    )
    model = AlloSR2(codec_of(vae), velocity, settings)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    return model, frozen


class Distance(nn.Module):
    """In the place of LPIPS, as nothing beside it."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        return (image - reference).square().mean((1, 2, 3))


class Step:
    """One real pass of a config, forward and back."""

    def __init__(self, config: AlloSR2Training) -> None:
        self.config = config
        self.model, self.frozen = real(config)
        self.batch = Batch(
            hr=torch.rand(2, 3, CROP, CROP), lr=torch.rand(2, 3, CROP // 4, CROP // 4)
        )

    def __call__(self) -> None:
        generators = sample_generators(0, range(2), torch.device("cpu"))
        terms = algorithm_1(
            self.model,
            self.frozen,
            self.batch,
            generators,
            loss=self.config.loss,
            lpips=Distance(),
            perceptual_weight=1.0,
        )
        terms["total"].backward()


@pytest.fixture
def without_lpips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "LPIPS_BYTES", 0)
    monkeypatch.setattr(rehearsal, "LPIPS_FLOPS", 0)


@pytest.mark.usefixtures("without_lpips")
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_checkpointing": True},
        {"gradient_checkpointing": True, "checkpointing_interval": 2},
        {"loss": LossConfig(perceptual_crop=64)},
    ],
    ids=["plain", "checkpointing", "every-second-block", "crop"],
)
@pytest.mark.parametrize("base", ["tiny_base", "small_base"])
def test_activations_are_what_a_real_step_holds_at_its_fullest(
    changes: dict[str, object], base: str, tiny: AlloSR2Training, request: pytest.FixtureRequest
) -> None:
    config = replace(tiny, **changes)
    if base == "small_base":
        config = replace(config, base=str(request.getfixturevalue(base)), guidance=None)
    step = Step(config)
    step()  # what is made once stays out of it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = torch.tensor([size for _, size in changes]).cumsum(0)
    images = step.batch.hr.nbytes + step.batch.lr.nbytes  # there before the profiler was
    assert plan(config).memory["activations"] - images == pytest.approx(held.max().item(), rel=0.03)


@pytest.mark.usefixtures("without_lpips")
@pytest.mark.parametrize(
    "loss",
    [
        {},
        {"fatc_weight": 0.0},
        {"atm_weight": 0.0},
        {"atm_state": "renoised"},
        {"perceptual_target": "decoded"},
        {"generative_weight": 1.0},
        {"perceptual_crop": 64},
    ],
)
def test_flops_are_what_a_real_step_computes(
    loss: dict[str, object], tiny: AlloSR2Training
) -> None:
    config = replace(tiny, loss=LossConfig(**loss))
    step = Step(config)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        step()
    # fused attention computes its scores again in the backward pass: one product more a layer
    with_gradient = 2 * (1 + bool(config.loss.fatc_weight) + bool(config.loss.generative_weight))
    transformer = 3 * with_gradient * 2 * (CROP // 16) ** 4 * 32
    part = config.loss.perceptual_crop or CROP
    vae = 2 * 2 * 16 * ((CROP // 8) ** 4 + (part // 8) ** 4)  # encoder and decoder, two images
    assert plan(config).flops == counter.get_total_flops() + transformer + vae


def test_flops_are_the_batch_s_and_peaks_one_pass_s(tiny: AlloSR2Training) -> None:
    whole = plan(tiny)
    parts = plan(replace(tiny, run=replace(tiny.run, accumulation=2)))
    model, _ = real(tiny)
    # once a pass, however many images: the product of A and B, and its two gradients
    composed = sum(
        3 * 2 * RANK * layer.weight.numel()
        for name, layer in model.codec.vae.encoder.named_modules()
        if isinstance(layer, nn.Conv2d) and name.endswith("base_layer")
    )
    assert parts.flops == whole.flops + composed
    assert (parts.images, whole.images) == (1, 2)
    assert parts.memory["activations"] < 0.6 * whole.memory["activations"]


def test_checkpointing_takes_time_for_memory(tiny: AlloSR2Training) -> None:
    plain, again = plan(tiny), plan(replace(tiny, gradient_checkpointing=True))
    assert again.total < plain.total
    assert 1.1 < again.flops / plain.flops < 1.4


def test_more_of_a_transformer_computed_again_takes_less_memory(tiny: AlloSR2Training) -> None:
    kept = [
        plan(replace(tiny, gradient_checkpointing=True, checkpointing_interval=interval))
        for interval in (1, 2, 3)  # of three blocks: all, two, one
    ]
    assert [p.flops for p in kept] == sorted({p.flops for p in kept}, reverse=True)
    blocks = [kept[0].flops - kept[1].flops, kept[1].flops - kept[2].flops]
    forward = next(p.flops for p in kept[0].phases if p.name == "transformer")
    assert sum(blocks) < forward  # what two of three blocks compute once


def test_8_bits_are_those_that_bitsandbytes_holds(tiny: AlloSR2Training) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra `quantize` is not installed")
    config = replace(
        tiny,
        adapter=AdapterConfig(rank=64, alpha=64),
        optimization=OptimizationConfig(optimizer="adamw-8bit"),
    )
    vae, transformer = load_vae(config.base), load_transformer(config.base)
    family = family_of(transformer)
    for part, targets in ((vae, Codec.lora_targets), (transformer, family.lora_targets)):
        add_adapter(part, targets, rank=64, alpha=64)
    named = [*vae.named_parameters(prefix="vae"), *transformer.named_parameters()]
    parameters = {name: p for name, p in named if p.requires_grad}
    optimizer = build_optimizer(parameters.values(), config.optimization)
    for parameter in parameters.values():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    held = optimizer_tensors(optimizer, parameters)
    moments = [t.nbytes for key, t in held.items() if not key.endswith(("step", "qmap1", "qmap2"))]
    found = plan(config).memory
    assert found["AdamW (8 bits)"] == sum(moments)
    assert found["AdamW (8 bits)"] < 2 * found["adapters (float32)"]


def test_a_sharded_transformer_is_shared_out(
    tiny: AlloSR2Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = plan(tiny).memory["transformer, frozen (float32)"]
    # in and out, two norms of heads, feed-forward and modulation: a double block of width 32
    double = 2 * (
        linear(32, 6 * 32) + 4 * linear(32, 32) + 2 * 16 + linear(32, 128) + linear(128, 32)
    )
    sharded = replace(tiny, shard_base=True)
    shown = plan(sharded).memory
    assert shown["transformer, frozen (float32), 1/8"] == whole // 8
    assert shown["a block of it, gathered"] == 4 * double
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert plan(sharded).memory["transformer, frozen (float32), 1/2"] == whole // 2
    assert (plan(tiny).images, plan(sharded).images) == (1, 1)  # of two, one a process


def test_what_fields_save_when_memory_ran_out(
    tiny: AlloSR2Training, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with torch.no_grad():
        found = dict(savings(tiny))
    checkpointed = plan(replace(tiny, gradient_checkpointing=True))
    assert found["--gradient-checkpointing"] == plan(tiny).total - checkpointed.total
    assert min(found.values()) > 0
    assert savings(mini_codec()) == []  # which is not planned
    assert savings(replace(tiny, base=str(tmp_path))) == []  # no base lies there

    def exhausted(config: AlloSR2Training) -> None:
        raise MemoryError

    monkeypatch.setattr("allosr2.training.plan.build", exhausted)
    assert savings(tiny) == []


@pytest.mark.parametrize("crop", [256, 512])
def test_lpips_takes_what_its_constants_say(crop: int) -> None:
    with torch.device("meta"):
        lpips = LPIPS().requires_grad_(False)
    with Meter([*lpips.parameters(), *lpips.buffers()]) as meter:
        image = torch.empty(1, 3, crop, crop, device="meta", requires_grad=True)
        reference = torch.empty(1, 3, crop, crop, device="meta")
        with torch.autocast("cpu", torch.bfloat16), CudaRules():
            distance = lpips(image, reference)
        torch.autograd.backward(distance)
        meter.mark("all")
    (phase,) = meter.phases
    taken = phase.peak - image.nbytes - reference.nbytes
    assert taken == pytest.approx(rehearsal.LPIPS_BYTES * crop**2, rel=0.01)
    assert phase.flops == pytest.approx(rehearsal.LPIPS_FLOPS * crop**2, rel=0.05)


def test_four_bit_weights_are_those_that_are_quantized(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit
    from diffusers import AutoencoderKL, FluxTransformer2DModel

    from allosr2.backbones.quantize import quantize_blocks

    sizes = {"num_layers": 1, "num_single_layers": 1, "attention_head_dim": 32}
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        axes_dims_rope=(8, 12, 12),
        **sizes,
    )
    transformer.save_pretrained(tmp_path / "transformer")
    AutoencoderKL(latent_channels=4).save_pretrained(tmp_path / "vae")
    config = replace(
        flux_dev_24gb(),
        base=str(tmp_path),
        guidance=None,
        conditioning=None,
        images=ImagesConfig(crop=64),
    )
    predicted = plan(config).memory["transformer, frozen (nf4)"]
    quantize_blocks(transformer)
    quantized = {
        id(m.weight): m.weight.numel() for m in transformer.modules() if isinstance(m, Linear4bit)
    }
    others = sum(p.numel() for p in transformer.parameters() if id(p) not in quantized)
    assert quantized
    assert predicted == 2 * others + 4 * 16 + sum(quantized.values()) * (1 / 2 + 4 / 64)


def test_remedies_are_fields_that_make_a_run_smaller(tiny: AlloSR2Training) -> None:
    config = replace(tiny, run=replace(tiny.run, precision="bfloat16"))
    planned = plan(config)
    found = {remedy.change: remedy.total for remedy in remedies(config, planned)}
    *single, every = found
    assert single == [
        "--gradient-checkpointing",
        "--perceptual-crop 64",
        "--accumulation 2",
    ]  # nothing of text, as there is none, nor of 4 and 8 bits, as all weights are small
    assert every == " ".join(single)
    checkpointed = replace(config, gradient_checkpointing=True)
    assert found[single[0]] == plan(checkpointed).total
    assert found[every] < min(found[change] for change in single) < planned.total


def test_mini_is_known_before_it_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    planned = plan(mini())
    assert planned.text_tokens == 0
    assert 4.15e6 < planned.parameters["transformer"] < 4.25e6  # 4.2 M in `mini_velocity`'s
    changes = [remedy.change for remedy in remedies(mini(), planned)]
    assert "--accumulation 4" in changes
    assert "--gradient-checkpointing" in changes
    assert "--optimizer adamw-8bit" in changes
    # half of that would be less than the losses against grids need
    smallest = replace(mini(), loss=replace(mini().loss, perceptual_crop=128, grid_weight=0.1))
    assert not any("crop" in remedy.change for remedy in remedies(smallest, plan(smallest)))


def test_a_prompt_that_is_there_gives_the_number_of_text_tokens(
    tmp_path: Path, tiny: AlloSR2Training
) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "conditioning.safetensors"
    config = replace(tiny, conditioning=path)
    assumed = plan(config)
    assert (assumed.text_tokens, assumed.text_source.split(",")[0]) == (512, "assumed")
    save_file({"prompt": torch.zeros(7, 12), "pooled": torch.zeros(10)}, path)
    read = plan(config)
    assert (read.text_tokens, read.text_source) == (7, str(path))
    assert plan(replace(config, text_tokens=5)).text_tokens == 5


def test_what_cannot_be_trained_cannot_be_planned(
    tmp_path: Path, tiny: AlloSR2Training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken" / "transformer").mkdir(parents=True)
    (tmp_path / "broken" / "transformer" / "config.json").write_text('{"_class_name": "Nothing"}')
    (tmp_path / "empty").mkdir()
    for config, error, words in (
        (replace(tiny, base="empty"), ModelError, "no transformer/config.json in it"),
        (replace(tiny, base="broken"), ModelError, "no transformer can be made of it"),
        (replace(tiny, guidance=None), ModelError, "needs a guidance"),
        (replace(flux2_klein_x4(), guidance=1.0), ModelError, "takes no guidance"),
        (replace(z_image_x4(), text_tokens=0), AlloSR2Error, "needs at least one"),
    ):
        with pytest.raises(error, match=words) as raised:
            plan(config)
        assert "\n" not in str(raised.value)
