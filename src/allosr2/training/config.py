"""What a training run is made of: all that there is to set, in one place, however long: it is looked up here.

Recipes return whole configs; an ablation is `dataclasses.replace`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import Literal

from allosr2.errors import ConfigError


def _check(condition: bool, name: str, value: object, remedy: str) -> None:
    if not condition:
        raise ConfigError(f"{name} is {value}: {remedy}")


GRID_CROP = 128
"""Smallest crop in which the grid loss can tell 16 px from its neighbors (not computed: no torch here)."""


def _check_fractions(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(0 <= value <= 1, name, value, "use a fraction in [0, 1]")


def _check_at_least(least: int, config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _check(value >= least and isfinite(value), name, value, f"use {least} or more")


def _check_grid(weight: float, crop: int) -> None:
    remedy = f"the grid loss needs {GRID_CROP} px or more; without it use --grid-weight 0"
    _check(not weight or crop >= GRID_CROP, "crop", crop, remedy)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImagesConfig:
    """Where HR training images come from."""

    photos: tuple[str, ...] = ()
    """Folders of photographs, searched recursively, or of tar shards (`allosr2 data shard`). `ffhq:10000` takes
    the first 10,000 by name. With none every image is drawn."""
    procedural: float = 0.2
    """Fraction of images that are drawn instead of cropped, in [0, 1]."""
    bad_fraction: float = 0.2
    """Fraction of the photographs that may be damaged before the run stops, in [0, 1]; until then others take
    their places."""
    crop: int = 256
    """Side of an HR crop in pixels; a multiple of 16."""
    minimum_scale: float = 0.5
    """Every other crop is resized by a factor drawn from [minimum_scale, maximum_scale]."""
    maximum_scale: float = 1.0
    """Above 1 some crops are enlarged: cameras' own pixels are softer than published photographs'."""
    cache_gigabytes: float = 4.0
    """Decoded photographs kept in memory, in 2^30 bytes, by a training process's loading processes together."""
    workers: int = 1
    """Loading processes."""

    def __post_init__(self) -> None:
        _check_fractions(self, "procedural", "bad_fraction")
        _check(
            self.crop >= 32 and self.crop % 16 == 0,
            "crop",
            self.crop,
            "use a multiple of 16, at least 32",
        )
        _check(0 < self.minimum_scale <= 1, "minimum_scale", self.minimum_scale, "use (0, 1]")
        _check(1 <= self.maximum_scale < inf, "maximum_scale", self.maximum_scale, "use 1 or more")
        _check_at_least(0, self, "cache_gigabytes", "workers")


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizationConfig:
    """AdamW and its schedule: linear warm-up, constant, linear decay toward zero at the end."""

    optimizer: Literal["adamw", "adamw-8bit"] = "adamw"
    """AdamW, fused, or with moments of 8 bits through bitsandbytes: a quarter of their memory."""
    learning_rate: float = 5e-5
    """Peak learning rate."""
    weight_decay: float = 0.01
    """Decoupled weight decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's moment decay rates."""
    warmup_steps: int = 0
    """Optimizer steps of linear warm-up."""
    decay_fraction: float = 0.0
    """Last fraction of the run over which the learning rate falls to zero; 0 keeps it constant."""
    gradient_clip: float = 1.0
    """Largest global gradient norm."""
    ema_decay: float = 0.999
    """Decay of the weights' exponential moving average, which is what is exported; 0 exports the weights.

    Early steps use (1 + step) / (10 + step) where that is less: the first weights are the worst.
    """

    def __post_init__(self) -> None:
        _check(
            self.optimizer in ("adamw", "adamw-8bit"),
            "optimizer",
            self.optimizer,
            "use adamw or adamw-8bit",
        )
        _check(
            0 < self.learning_rate < inf,
            "learning_rate",
            self.learning_rate,
            "use a positive value",
        )
        _check_at_least(0, self, "weight_decay", "warmup_steps")
        _check(all(0 <= beta < 1 for beta in self.betas), "betas", self.betas, "use [0, 1)")
        _check(0 <= self.decay_fraction <= 1, "decay_fraction", self.decay_fraction, "use [0, 1]")
        _check(self.gradient_clip > 0, "gradient_clip", self.gradient_clip, "use a positive value")
        _check(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "use [0, 1)")

    def learning_rate_at(self, step: int, steps: int) -> float:
        """Learning rate of optimizer step `step` (from 0) of `steps`."""
        warmup = min(1.0, (step + 1) / (self.warmup_steps + 1))
        decay_steps = self.decay_fraction * steps
        decay = min(1.0, (steps - step) / decay_steps) if decay_steps > 0 else 1.0
        return self.learning_rate * warmup * decay


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How long, how many at a time, where, and how often it is written down."""

    output: Path
    """Folder of the run: checkpoints, log and exported model. Run the same command again to resume."""
    recipe: str = "custom"
    """Name of the recipe that this config started from; it travels with what is trained."""
    steps: int = 10_000
    """Optimizer steps."""
    batch_size: int = 16
    """Images of one optimizer step."""
    accumulation: int = 1
    """Parts that a batch is cut into at least, one forward and backward each; divides `batch_size`.

    Several processes (torchrun) share the parts out, and there are more parts where there are more processes:
    the batch is the same however many there are."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Autocast precision of the networks; weights and losses stay float32."""
    compile: bool = False
    """Compile the networks with torch.compile: a minute once, then up to twice as fast."""
    device: str = "auto"
    """"cpu", "cuda", "cuda:1", or "auto": CUDA if there is a GPU."""
    seed: int = 0
    """Seed of everything drawn, 0 or more; sample i depends on (seed, i) alone."""
    log_every: int = 20
    """Steps between two lines of the log."""
    checkpoint_every: int = 500
    """Steps between two checkpoints."""
    keep_checkpoints: int = 2
    """Checkpoints kept; older ones are removed."""
    allow_changes: bool = False
    """Go on from checkpoints of another config too; what differs is logged."""
    minutes: float | None = None
    """Minutes after the start of the command in which to stop, after the step that it is in, with a checkpoint;
    the same command goes on. None trains to the last step."""
    patience: int = 20
    """Non-finite steps in a row after which the run stops; each is left out and its samples written down."""
    profile: bool = False
    """Write a trace of a few early steps, for chrome://tracing and ui.perfetto.dev."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "steps", "batch_size", "accumulation", "patience")
        _check_at_least(1, self, "log_every", "checkpoint_every", "keep_checkpoints")
        _check_at_least(0, self, "seed")
        _check(
            self.minutes is None or 0 < self.minutes < inf,
            "minutes",
            self.minutes,
            "use a number above 0",
        )
        _check(
            self.precision in ("float32", "bfloat16"),
            "precision",
            self.precision,
            "use float32 or bfloat16",
        )
        _check(
            self.batch_size % self.accumulation == 0,
            "accumulation",
            self.accumulation,
            f"use a divisor of batch_size {self.batch_size}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class WatchConfig:
    """How a run is watched while it trains; what it trains does not depend on any of this."""

    tracker: Literal["tensorboard", "wandb", "trackio", "none"] = "tensorboard"
    """Where curves and pictures go beside the run's own log: TensorBoard's files, Weights & Biases, trackio."""
    validate_every: int = 500
    """Steps between looks at the validation images: metrics, diagnostics, a before/after sheet; 0 is never."""
    validation_images: int = 8
    """Images that are looked at."""
    validation_photos: tuple[str, ...] = ()
    """Photographs to take them from, as for `photos`; with none fresh crops of the training photographs."""

    def __post_init__(self) -> None:
        _check_at_least(0, self, "validate_every")
        _check_at_least(1, self, "validation_images")
        _check(
            self.tracker in ("tensorboard", "wandb", "trackio", "none"),
            "tracker",
            self.tracker,
            "use tensorboard, wandb, trackio or none",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PerceptualConfig:
    """LPIPS, the perceptual distance of Eq. 8."""

    perceptual: Path | None = None
    """Safetensors file of LPIPS weights on SqueezeNet 1.1; None leaves LPIPS out, which is warned of."""
    perceptual_weight: float = 2.0
    """Weight of LPIPS; the lambda of Eq. 8, which the paper does not give. 0 leaves LPIPS out."""

    def __post_init__(self) -> None:
        _check_at_least(0, self, "perceptual_weight")

    @property
    def used(self) -> bool:
        """Whether LPIPS is part of the loss."""
        return self.perceptual is not None and self.perceptual_weight > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecTraining:
    """Stage 1 of `mini`: a small VAE, trained to reconstruct HR images."""

    run: RunConfig
    images: ImagesConfig
    optimization: OptimizationConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    perceptual: PerceptualConfig
    initial: Path | None = None
    """Base folder whose VAE is trained on; without it training starts from random weights."""
    latent_noise: float = 0.2
    """Largest level of the noise on the (unit-scale) latents, drawn per image: the decoder forgives errors."""
    soft_fraction: float = 0.25
    """Fraction of images that are blurred, as an enlarged LR image is, in [0, 1]."""

    def __post_init__(self) -> None:
        _check_at_least(0, self, "latent_noise")
        _check_fractions(self, "soft_fraction")


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowTraining:
    """Stage 2 of `mini`: flow matching (arXiv:2604.19238, Eq. 3) on a frozen codec's latents."""

    run: RunConfig
    images: ImagesConfig
    optimization: OptimizationConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    codec: Path
    """Base folder whose VAE is used."""
    initial: Path | None = None
    """Base folder whose transformer is trained on; without it training starts from random weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterConfig:
    """LoRA on the VAE's encoder and the transformer."""

    rank: int = 64
    """Rank of every adapter."""
    alpha: int = 64
    """LoRA alpha; an adapter is scaled by alpha / rank."""
    init: Literal["gaussian", "kaiming"] = "gaussian"
    """How A is drawn; B starts at zero."""
    transformer_targets: str | None = None
    """Regular expression of the names of the layers adapted; None is the family's own: attention and
    feed-forward projections."""
    vae_targets: str | None = None
    """The same for the VAE; None is every layer of its encoder."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "rank", "alpha")
        _check(self.init in ("gaussian", "kaiming"), "init", self.init, "use gaussian or kaiming")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossConfig:
    """The terms of Algorithm 1 and the choices that the paper's text leaves open."""

    perceptual_target: Literal["image", "decoded"] = "image"
    """LPIPS against the HR image (Algorithm 1, line 12) or against its decoded latent (Eq. 8)."""
    perceptual_crop: int | None = None
    """Side in pixels of a random part of each latent that is decoded for the losses on images, a multiple of 16
    and at least 32. None, or no less than the crop, decodes all of it."""
    fatc_weight: float = 1.0
    """Weight of FATC; 0 is the ablation without it."""
    fatc_detach: bool = False
    """Stop FATC's gradient at z_lr, so that it trains the transformer alone."""
    atm_weight: float = 1.0
    """Weight of ATM; 0 is the ablation without it."""
    atm_reference: Literal["shared", "frozen"] = "shared"
    """Weights of the generative path: the adapted ones (the paper's), or the base's."""
    atm_state: Literal["anchored", "renoised"] = "anchored"
    """ATM's SR state: between z_hr and z_lr (the paper's Eq. 9), or z_sr diffused to time t (as DMD does)."""
    atm_guidance: float | None = None
    """Guidance of the generative path; None is the model's own. Above it the anchor predicts sharper."""
    grid_weight: float = 0.0
    """Weight of the losses in `allosr2.losses.grid`, which the paper does not have; 0 leaves them out."""
    generative_weight: float = 0.0
    """Weight of flow matching (Eq. 3) on the generative path, which keeps a shared reference generative."""

    def __post_init__(self) -> None:
        _check_at_least(0, self, "fatc_weight", "atm_weight", "grid_weight", "generative_weight")
        guidance = self.atm_guidance
        _check(guidance is None or isfinite(guidance), "atm_guidance", guidance, "use a number")
        for name, choices in (
            ("perceptual_target", ("image", "decoded")),
            ("atm_reference", ("shared", "frozen")),
            ("atm_state", ("anchored", "renoised")),
        ):
            value = getattr(self, name)
            _check(value in choices, name, value, f"use {' or '.join(choices)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AlloSR2Training:
    """Algorithm 1: LoRA on a pre-trained flow, trained on degraded pairs."""

    run: RunConfig
    images: ImagesConfig
    optimization: OptimizationConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    perceptual: PerceptualConfig
    base: str
    """Base in diffusers layout: a local folder, a hub id, or `mini`, the embedded model's."""
    base_precision: Literal["float32", "bfloat16", "nf4"] = "float32"
    """How the frozen transformer is held; nf4 is 4 bits a weight, through bitsandbytes."""
    conditioning: Path | None = None
    """The encoded prompt that `allosr2 prepare` writes; None is no text and a zero pooled embedding, or the
    prompt of `initial`."""
    text_tokens: int | None = None
    """Text tokens kept of the prompt; None keeps all, 0 trains a model that never computes any."""
    guidance: float | None = None
    """Guidance of guidance-distilled bases (FLUX.1-dev: 1.0); None for all others."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: a third more time, a fraction of the memory."""
    checkpointing_interval: int = 1
    """Of the transformer's blocks every n-th is computed again: less time and more memory than with 1."""
    shard_base: bool = False
    """Share the frozen transformer's weights out among the processes (FSDP), which gather each block to compute
    it: for bases that do not fit one GPU."""
    embed_base: bool = False
    """Copy the base into the exported model folder; for bases as small as `mini`'s."""
    loss: LossConfig = field(default_factory=LossConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    initial: str | None = None
    """Model folder, or `mini`, whose adapters are trained on; without it adapters start at zero effect."""
    preset: str = "real-esrgan"
    """Degradation preset: real-esrgan, mild, stablesr, camera, bicubic, or several joined by +."""
    scale: int = 4
    """Upscaling factor."""
    t_star: float | None = None
    """Time at which LR latents are placed; None measures it (Eq. 6) before the first step."""
    t_star_pairs: int = 256
    """Pairs that t* is measured on."""

    def __post_init__(self) -> None:
        _check_at_least(1, self, "scale", "t_star_pairs", "checkpointing_interval")
        _check(
            self.images.crop % self.scale == 0,
            "scale",
            self.scale,
            f"use a divisor of crop {self.images.crop}",
        )
        _check(
            self.t_star is None or 0.001 <= self.t_star <= 0.995,
            "t_star",
            self.t_star,
            "use a value from 0.001 to 0.995",
        )
        _check(
            self.base_precision in ("float32", "bfloat16", "nf4"),
            "base_precision",
            self.base_precision,
            "use float32, bfloat16 or nf4",
        )
        _check(
            self.base_precision == "float32" or self.run.precision == "bfloat16",
            "base_precision",
            self.base_precision,
            "needs --precision bfloat16",
        )
        _check(
            not (self.shard_base and self.base_precision == "nf4"),
            "shard_base",
            self.shard_base,
            "weights of 4 bits cannot be shared out; use --base-precision bfloat16",
        )
        adapter = self.adapter
        _check(
            not (self.initial and (adapter.transformer_targets or adapter.vae_targets)),
            "targets",
            adapter.transformer_targets or adapter.vae_targets,
            f"the adapters of {self.initial} have their own; leave them out",
        )
        _check(
            self.guidance is None or isfinite(self.guidance),
            "guidance",
            self.guidance,
            "use a finite number or None",
        )
        _check(
            self.text_tokens is None or self.text_tokens >= 0,
            "text_tokens",
            self.text_tokens,
            "use 0 or more",
        )
        _check_grid(self.loss.grid_weight, self.images.crop)
        part, least = self.loss.perceptual_crop, GRID_CROP if self.loss.grid_weight else 32
        _check(
            part is None or (part >= least and part % 16 == 0),
            "perceptual_crop",
            part,
            f"use --perceptual-crop None, or a multiple of 16 from {least} on",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderTraining:
    """Stage 4 of `mini`: its VAE's decoder, trained on what the model restores; nothing else is trained."""

    run: RunConfig
    images: ImagesConfig
    optimization: OptimizationConfig
    watch: WatchConfig = field(default_factory=WatchConfig)
    perceptual: PerceptualConfig
    model: str
    """Model folder that its base lies in, or `mini`."""
    result_fraction: float = 0.75
    """Fraction of images that are degraded and restored before they are decoded, in [0, 1]; the others'
    own latents are decoded, so that the VAE remains one."""
    grid_weight: float = 0.0
    """Weight of the losses against grids and hatches (`allosr2.losses.grid`); 0 leaves them out."""
    texture_weight: float = 0.0
    """Weight of the loss on the amount of detail (`allosr2.losses.texture`); 0 leaves it out."""

    def __post_init__(self) -> None:
        _check_fractions(self, "result_fraction")
        _check_at_least(0, self, "grid_weight", "texture_weight")
        _check_grid(self.grid_weight, self.images.crop)


TrainingConfig = CodecTraining | FlowTraining | AlloSR2Training | DecoderTraining
