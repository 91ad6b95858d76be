"""One training step against a plain transcription of Algorithm 1: losses and every gradient."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from training.algorithm_1_plain import algorithm_1_plain

from allosr2.backbones.base import load_transformer, load_vae
from allosr2.backbones.codec import Codec
from allosr2.backbones.flux import FluxVelocity
from allosr2.backbones.lora import add_adapter
from allosr2.backbones.recompute import recompute_transformer, recompute_vae
from allosr2.data.pairs import Batch
from allosr2.losses.grid import grid, hatch
from allosr2.losses.perceptual import LPIPS
from allosr2.model import AlloSR2
from allosr2.training.config import LossConfig
from allosr2.training.noise import windows
from allosr2.training.step import algorithm_1, draw, weighted_terms

SIZE, SIDE, SCALE, WEIGHT = 3, 64, 4, 2.0
SEEDS = (7, 8, 9)
GUIDANCE = 3.5


def drawn(t_star: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The t and eps that each sample's generator gives, in this order."""
    t, eps = [], []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        t.append(t_star * torch.rand((), generator=generator))
        eps.append(torch.randn(4, SIDE // 8, SIDE // 8, generator=generator))
    return torch.stack(t).double(), torch.stack(eps).double()


class Stub(nn.Module):
    """Stands for LPIPS: the squared distance of a fixed random convolution's features."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        self.weight = torch.randn(4, 3, 3, 3, generator=generator, dtype=torch.float64) / 5

    def forward(self, image, reference):
        weight = self.weight.to(image.dtype)
        features = [nn.functional.conv2d(x, weight).tanh() for x in (image, reference)]
        return (features[0] - features[1]).square().mean((1, 2, 3))


STUB = cast(LPIPS, Stub())


class World:
    """A model with trainable adapters, its frozen base and one batch."""

    def __init__(self, model: Path, base: Path, dtype: torch.dtype, side: int = SIDE) -> None:
        self.model = AlloSR2.from_pretrained(model).to(dtype)
        self.parameters = {n: p for n, p in self.model.named_parameters() if ".lora_" in n}
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        self.frozen = Codec(load_vae(str(base)).to(dtype))
        velocity = self.model.velocity
        self.base_velocity = FluxVelocity(
            load_transformer(str(base)).to(dtype), velocity.conditioning, velocity.guidance
        )
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(SIZE, 3, 6, 6, generator=generator)
        hr = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
        hr = (hr + 0.1 * torch.randn(hr.shape, generator=generator)).clamp(0, 1)
        lr = nn.functional.avg_pool2d(hr, SCALE)
        self.batch = Batch(hr=hr.to(dtype), lr=lr.to(dtype))

    def with_field(self, velocity: nn.Module) -> AlloSR2:
        """The same codec and adapters around another velocity field."""
        return AlloSR2(self.model.codec, cast(FluxVelocity, velocity), self.model.config)

    def step(
        self, loss: LossConfig, lpips: LPIPS | None = STUB, model: AlloSR2 | None = None
    ) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
        """The terms, and the gradient of each adapter parameter; none counts as zero."""
        self.model.zero_grad(set_to_none=True)
        terms = algorithm_1(
            model or self.model,
            self.frozen,
            self.batch,
            [torch.Generator().manual_seed(seed) for seed in SEEDS],
            loss=loss,
            lpips=lpips,
            perceptual_weight=WEIGHT,
        )
        terms["total"].backward()
        return (
            {name: float(term.detach()) for name, term in terms.items()},
            {
                name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
                for name, p in self.parameters.items()
            },
        )

    def plain(
        self,
        lpips: LPIPS | None = STUB,
        windows: list[tuple[int, int, int]] | None = None,
        **options: Any,
    ):
        t_star = self.model.config.t_star
        t, eps = (x.to(self.batch.hr.dtype) for x in drawn(t_star))
        assert self.batch.lr is not None
        return algorithm_1_plain(
            encode=self.model.codec.encode,
            encode_frozen=self.frozen.encode,
            v=self.model.velocity,
            v_frozen=self.base_velocity,
            v_guided=FluxVelocity(
                self.model.velocity.transformer, self.model.velocity.conditioning, GUIDANCE
            ),
            decode=self.frozen.decode,
            lpips=lpips,
            parameters=self.parameters,
            x_l=self.batch.lr,
            x_h=self.batch.hr,
            t_star=t_star,
            t=t,
            eps=eps,
            windows=windows,
            perceptual_weight=WEIGHT,
            **options,
        )


@pytest.fixture(scope="module")
def world(tiny_model, tiny_base) -> World:
    return World(tiny_model, tiny_base, torch.float64)


def assert_equal_gradients(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]):
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        scale = float(expected[name].abs().max())
        error = float((gradient - expected[name]).abs().max())
        assert error <= 1e-6 * scale + 1e-14, name


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"perceptual_target": "decoded"},
        {"fatc_weight": 0.0},
        {"fatc_weight": 0.3},
        {"fatc_detach": True},
        {"atm_guidance": GUIDANCE},
        {"atm_weight": 0.0},
        {"atm_weight": 0.7},
        {"atm_reference": "frozen"},
        {"atm_state": "renoised"},
        {"atm_state": "renoised", "atm_reference": "frozen", "fatc_weight": 0.0},
        {"generative_weight": 0.5},
        {"atm_weight": 0.0, "fatc_weight": 0.0},
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()) or "paper",
)
def test_equals_the_plain_transcription(world, options):
    terms, gradients = world.step(LossConfig(**options))
    expected, expected_gradients = world.plain(**options)
    assert {k: terms[k] for k in expected} == pytest.approx(expected, rel=1e-6)
    assert set(terms) - set(expected) <= {"atm_cosine", "sr_clean_error", "gen_clean_error"}
    assert_equal_gradients(gradients, expected_gradients)
    assert all(float(g.abs().max()) > 0 for g in gradients.values())


@pytest.mark.parametrize("target", ["image", "decoded"])
def test_a_part_of_each_latent_is_decoded(world, target):
    """32 of 64 px, 4 of 8 elements, at a place that each sample's generator gives after t and eps."""
    places = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        (
            torch.rand((), generator=generator),
            torch.randn(4, SIDE // 8, SIDE // 8, generator=generator),
        )
        top, left = (int(torch.randint(5, (), generator=generator)) for _ in range(2))
        places.append((top, left, 4))
    assert len(set(places)) == SIZE
    options = {"perceptual_target": target}
    terms, gradients = world.step(LossConfig(perceptual_crop=32, **options))
    expected, expected_gradients = world.plain(windows=places, **options)
    assert {k: terms[k] for k in expected} == pytest.approx(expected, rel=1e-6)
    assert_equal_gradients(gradients, expected_gradients)
    whole, _ = world.step(LossConfig(**options))
    same = set(expected) - {"perceptual", "total"}
    assert {k: terms[k] for k in same} == {k: whole[k] for k in same}
    assert terms["perceptual"] != whole["perceptual"]


def test_a_part_as_large_as_the_image_is_all_of_it(world):
    part, gradients = world.step(LossConfig(perceptual_crop=SIDE))
    whole, expected = world.step(LossConfig())
    assert part == pytest.approx(whole, rel=1e-12)
    assert_equal_gradients(gradients, expected)


def test_parts_lie_everywhere_alike():
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    places = [(w.top, w.left) for w in windows(generators, 8, 10, 6) if w.side == 6]
    counts = torch.zeros(3, 5)
    for top, left in places:
        counts[top, left] += 1
    expected = len(generators) / 15
    chi_squared = float(((counts - expected) ** 2 / expected).sum())
    assert chi_squared < 36.1  # 14 degrees of freedom, p = 0.001


def test_without_parts_nothing_more_is_drawn(world):
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    found = draw(generators, world.batch, world.frozen, t_star=0.4, crop=None)
    t, eps = drawn(0.4)
    assert found.windows is None
    assert torch.equal(found.t.double(), t)
    assert torch.equal(found.eps.double(), eps)
    for generator, seed in zip(generators, SEEDS, strict=True):
        other = torch.Generator().manual_seed(seed)
        torch.rand((), generator=other), torch.randn(4, SIDE // 8, SIDE // 8, generator=other)
        assert torch.equal(generator.get_state(), other.get_state())


def test_in_float32_gradients_are_the_plain_transcription_s(world, tiny_model, tiny_base):
    """To 1e-5 of the norm of each parameter's gradient; and so from the transcription in float64."""
    single = World(tiny_model, tiny_base, torch.float32)
    terms, gradients = single.step(LossConfig())
    expected, expected_gradients = single.plain()
    _, exact = world.plain()
    assert {k: terms[k] for k in expected} == pytest.approx(expected, rel=1e-5)
    for name, gradient in gradients.items():
        norm = exact[name].norm()
        assert (gradient - expected_gradients[name]).norm() <= 1e-5 * norm, name
        assert (gradient.double() - exact[name]).norm() <= 1e-5 * norm, name


def test_the_weighted_terms_add_up_to_what_is_trained_on(world):
    loss = LossConfig(fatc_weight=0.3, atm_weight=0.7, generative_weight=0.5)
    terms = weighted_terms(
        world.model,
        world.frozen,
        world.batch,
        draw(
            [torch.Generator().manual_seed(seed) for seed in SEEDS],
            world.batch,
            world.frozen,
            t_star=world.model.config.t_star,
            crop=None,
        ),
        loss=loss,
        lpips=STUB,
        perceptual_weight=WEIGHT,
    )
    assert set(terms.weighted) == {"reconstruction", "perceptual", "fatc", "atm", "generative"}
    weights = {"reconstruction": 1, "perceptual": WEIGHT, "fatc": 0.3, "generative": 0.5}
    for name, weight in weights.items():
        expected = weight * float(terms.values[name].detach())
        assert float(terms.weighted[name].detach()) == pytest.approx(expected)
    logged, gradients = world.step(loss)
    assert logged["total"] == pytest.approx(sum(float(t.detach()) for t in terms.weighted.values()))
    assert {k: float(v.detach()) for k, v in terms.values.items()} == pytest.approx(
        {k: v for k, v in logged.items() if k != "total"}
    )
    each = [
        torch.autograd.grad(
            term,
            list(world.parameters.values()),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
        for term in terms.weighted.values()
    ]
    together = [torch.stack(of_one).sum(0) for of_one in zip(*each, strict=True)]
    assert_equal_gradients(dict(zip(gradients, together, strict=True)), gradients)


@pytest.mark.parametrize(
    ("base", "interval", "compiled"),
    [
        ("tiny_base", 1, False),
        ("tiny_base", 2, False),
        ("small_base", 1, False),
        ("small_base", 1, True),
    ],
)
def test_checkpointing_changes_no_bit(request, base, interval, compiled):
    """Of a KL VAE, which diffusers can checkpoint, and of AutoencoderDC, which it cannot; with adapters."""
    folder = str(request.getfixturevalue(base))

    def gradients(checkpointing: bool) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        vae, transformer = load_vae(folder), load_transformer(folder)
        codec = Codec(vae)
        conditioning = FluxVelocity.without_text(transformer)
        guidance = 1.0 if FluxVelocity.distilled(transformer) else None
        velocity = FluxVelocity(transformer, conditioning, guidance)
        for part, targets in ((vae, Codec.lora_targets), (transformer, velocity.lora_targets)):
            add_adapter(part, targets, rank=2, alpha=2)
        network = nn.ModuleList([codec, velocity])
        for name, parameter in network.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.05)
        if checkpointing:
            recompute_vae(vae)
            recompute_transformer(transformer, interval)
        if compiled:
            vae.encoder.compile(backend="aot_eager")
            vae.decoder.compile(backend="aot_eager")
            transformer.compile_repeated_blocks(backend="aot_eager")
        z = codec.encode(torch.rand(1, 3, 32, 32))
        z = z - velocity(z, torch.tensor([0.4]))
        codec.decode(z).square().mean().backward()
        return {n: p.grad for n, p in network.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys()
    assert sum(bool(gradient.any()) for gradient in plain.values()) > len(plain) / 2
    for name, gradient in plain.items():
        assert torch.equal(again[name], gradient), name


def test_without_lpips(world):
    terms, gradients = world.step(LossConfig(), lpips=None)
    expected, expected_gradients = world.plain(lpips=None)
    assert "perceptual" not in terms
    assert terms["total"] == pytest.approx(expected["total"], rel=1e-6)
    assert_equal_gradients(gradients, expected_gradients)


@pytest.mark.parametrize("term", ["fatc", "atm", "generative"])
def test_the_gradient_is_linear_in_a_term_s_weight(world, term):
    """So that weight 0 removes the term and its gradient, and nothing else."""
    base = LossConfig(fatc_weight=1, atm_weight=1, generative_weight=1)
    fields = {name: getattr(base, name) for name in LossConfig.__slots__}
    steps = [
        world.step(LossConfig(**(fields | {f"{term}_weight": weight})))
        for weight in (0.0, 1.0, 2.0)
    ]
    assert term not in steps[0][0]
    assert steps[1][0][term] == pytest.approx(steps[2][0][term])
    for name, gradient in steps[0][1].items():
        extrapolated = 2 * steps[1][1][name] - steps[2][1][name]
        torch.testing.assert_close(gradient, extrapolated, rtol=1e-5, atol=1e-10)


class Reversed(nn.Module):
    """A velocity field that sees its batch in the other order."""

    def __init__(self, velocity: nn.Module) -> None:
        super().__init__()
        self.velocity = velocity

    def forward(self, z_t, t):
        return self.velocity(z_t.flip(0), t.flip(0)).flip(0)


def test_the_order_of_the_doubled_batch_does_not_matter(world):
    terms, gradients = world.step(LossConfig())
    reversed_model = world.with_field(Reversed(world.model.velocity))
    other, other_gradients = world.step(LossConfig(), model=reversed_model)
    assert other == pytest.approx(terms, rel=1e-9)
    assert_equal_gradients(other_gradients, gradients)


def test_the_field_runs_once_with_gradient_and_once_without(world):
    runs = []

    class Counted(Reversed):
        def forward(self, z_t, t):
            runs.append((z_t.shape[0], torch.is_grad_enabled()))
            return self.velocity(z_t, t)

    world.step(LossConfig(), model=world.with_field(Counted(world.model.velocity)))
    assert runs == [(2 * SIZE, True), (SIZE, False)]


def test_training_and_inference_take_the_same_step(world):
    terms, _ = world.step(LossConfig())
    lr = nn.functional.interpolate(
        world.batch.lr, scale_factor=SCALE, mode="bicubic", antialias=True
    )
    with torch.no_grad():
        z_sr = world.model.one_step(world.model.codec.encode(lr.clamp(0, 1)))
        error = (z_sr - world.frozen.encode(world.batch.hr)).square().mean()
    assert terms["reconstruction"] == pytest.approx(float(error), rel=1e-6)


@pytest.mark.parametrize("lpips", [STUB, None])
def test_the_grid_losses_see_the_decoded_result(tiny_model, tiny_base, lpips):
    """It adds its value and its gradient, whether LPIPS has the result decoded or not."""
    world = World(tiny_model, tiny_base, torch.float64, side=128)
    without, gradients = world.step(LossConfig(atm_weight=0), lpips)
    terms, found = world.step(LossConfig(atm_weight=0, grid_weight=0.5), lpips)
    lr = nn.functional.interpolate(
        world.batch.lr, scale_factor=SCALE, mode="bicubic", antialias=True
    )
    image = world.model.codec.decode(world.model.one_step(world.model.codec.encode(lr.clamp(0, 1))))
    expected = 0.5 * (grid(image, world.batch.hr) + hatch(image, world.batch.hr))
    assert terms["total"] - without["total"] == pytest.approx(expected.item(), rel=1e-6)
    added = torch.autograd.grad(
        expected, list(world.parameters.values()), allow_unused=True, materialize_grads=True
    )
    added = dict(zip(world.parameters, added, strict=True))
    assert_equal_gradients(found, {name: gradients[name] + added[name] for name in gradients})


def test_what_is_logged_of_atm(world):
    """The cosine and the clean errors, from their definitions, where the reference is frozen."""
    terms, _ = world.step(LossConfig(atm_reference="frozen"))
    t_star = world.model.config.t_star
    t, eps = drawn(t_star)
    lr = nn.functional.interpolate(
        world.batch.lr, scale_factor=SCALE, mode="bicubic", antialias=True
    )
    s = t.view(-1, 1, 1, 1)
    with torch.no_grad():
        z_lr = world.model.codec.encode(lr.clamp(0, 1))
        z_hr = world.frozen.encode(world.batch.hr)
        z_sr = world.model.one_step(z_lr)
        z_t_sr = z_hr + s / t_star * (z_lr - z_hr)
        z_t_gen = (1 - s) * z_hr + s * eps
        sr_clean = z_t_sr - s * world.model.velocity(z_t_sr, t)
        gen_clean = z_t_gen - s * world.base_velocity(z_t_gen, t)
    delta, error = (sr_clean - gen_clean).flatten(1), (z_sr - z_hr).flatten(1)
    cosine = (delta * error).sum(1) / (delta.norm(dim=1) * error.norm(dim=1))
    expected = {
        "atm_cosine": float(cosine.mean()),
        "sr_clean_error": float((sr_clean - z_hr).abs().mean()),
        "gen_clean_error": float((gen_clean - z_hr).abs().mean()),
    }
    assert {name: terms[name] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_a_draw_depends_on_the_generators_alone(world):
    torch.manual_seed(0)
    first, _ = world.step(LossConfig())
    torch.manual_seed(1)
    second, _ = world.step(LossConfig())
    assert first == second


@pytest.mark.parametrize("reference", ["shared", "frozen"])
def test_autocast_keeps_every_gradient(tiny_model, tiny_base, reference):
    """Under autocast, weights that are cast first without gradient would be reused without one."""
    world = World(tiny_model, tiny_base, torch.float32)
    loss = LossConfig(atm_reference=reference, generative_weight=0.5)
    terms, gradients = world.step(loss)
    with torch.autocast("cpu", torch.bfloat16):
        low_terms, low_gradients = world.step(loss)
    for name in ("reconstruction", "perceptual", "fatc", "generative"):
        assert low_terms[name] == pytest.approx(terms[name], rel=0.03)
    flat, low = (torch.cat([g.flatten() for g in x.values()]) for x in (gradients, low_gradients))
    assert float(torch.cosine_similarity(flat, low, dim=0)) > 0.98
    assert all(float(gradient.abs().max()) > 0 for gradient in low_gradients.values())
