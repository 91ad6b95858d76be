"""What every flow transformer is here: a velocity field of latents, its prompt and guidance held constant."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from allosr2.errors import ModelError

JOINT_ATTENTION = r"(to_q|to_k|to_v|to_out\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out)"
"""Names of the projections of attention over image and text together, as diffusers calls them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Conditioning:
    """The constant prompt, encoded once."""

    prompt: Float[Tensor, "l d"]
    """Text tokens; l may be 0."""
    pooled: Float[Tensor, " p"]
    """Pooled text embedding; p is 0 for bases that take none."""

    def tensors(self) -> dict[str, Tensor]:
        """What `conditioning.safetensors` holds."""
        return {"prompt": self.prompt, "pooled": self.pooled}

    def first(self, tokens: int) -> Conditioning:
        """The same with no more than the first `tokens` text tokens; 0 leaves the pooled embedding alone."""
        return Conditioning(prompt=self.prompt[:tokens], pooled=self.pooled)


class VelocityField(nn.Module, ABC):
    """`v(z_t, t) = dz_t/dt` of latents `b c h w` at times t in [0, 1], where t = 1 is noise.

    One subclass a family of bases. What sets families apart (tokens, position ids, time, sign, guidance)
    stays inside it.
    """

    patch: ClassVar[int] = 2
    """Sides of latents must be multiples of this."""
    lora_targets: ClassVar[str]
    """Regular expression of the full names of the layers that get adapters: attention and feed-forward."""

    def __init__(
        self, transformer: nn.Module, conditioning: Conditioning, guidance: float | None = None
    ) -> None:
        """Hold a transformer's prompt and guidance constant.

        Raises ModelError if the prompt is another base's, for a guidance that a base does not take, and for
        none where it must have one (guidance-distilled bases, such as FLUX.1-dev).
        """
        super().__init__()
        distilled = self.distilled(transformer)
        if distilled != (guidance is not None):
            need = "needs a guidance (1.0)" if distilled else "takes no guidance; leave it out"
            raise ModelError(f"guidance is {guidance}: this base {need}")
        expected = self.widths(transformer)
        found = (conditioning.prompt.shape[1], conditioning.pooled.shape[0])
        if expected != found:
            raise ModelError(
                f"conditioning has widths {found}, this base needs {expected}; "
                "make its own with `allosr2 prepare`"
            )
        self.transformer = transformer
        self.guidance = guidance
        self.register_buffer("prompt", conditioning.prompt, persistent=False)
        self.register_buffer("pooled", conditioning.pooled, persistent=False)
        self.prompt: Tensor
        self.pooled: Tensor

    @staticmethod
    def distilled(transformer: nn.Module) -> bool:
        """Whether a transformer takes its guidance as an input."""
        return bool(config_of(transformer).get("guidance_embeds", False))

    @staticmethod
    @abstractmethod
    def widths(transformer: nn.Module) -> tuple[int, int]:
        """Widths of the text tokens and of the pooled embedding that a transformer takes."""

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the latents."""

    @abstractmethod
    def forward(
        self, z_t: Float[Tensor, "b c h w"], t: Float[Tensor, " b"]
    ) -> Float[Tensor, "b c h w"]:
        """Velocity at time t in [0, 1], in z_t's own dtype."""

    @classmethod
    def without_text(cls, transformer: nn.Module) -> Conditioning:
        """No text tokens and a zero pooled embedding."""
        tokens, pooled = cls.widths(transformer)
        return Conditioning(prompt=torch.zeros(0, tokens), pooled=torch.zeros(pooled))

    @property
    def conditioning(self) -> Conditioning:
        """The prompt that the field was built with."""
        return Conditioning(prompt=self.prompt, pooled=self.pooled)

    def check_channels(self, channels: int) -> None:
        """Raise ModelError unless the field is one of latents with so many channels."""
        if channels != self.channels:
            raise ModelError(
                f"the VAE's latents have {channels} channels, the transformer's {self.channels}; "
                "take both from one base"
            )

    def with_guidance(self, guidance: float) -> Self:
        """The same field at another guidance. Raises ModelError if the base takes none."""
        return type(self)(self.transformer, self.conditioning, guidance)

    def compile_blocks(self) -> None:
        """Compile the transformer, block by block where it is made of equal ones."""
        transformer = cast(Any, self.transformer)
        if getattr(transformer, "_repeated_blocks", None):
            transformer.compile_repeated_blocks()
        else:
            transformer.compile()


def config_of(module: nn.Module) -> dict[str, Any]:
    """What a diffusers module was built from."""
    return cast(Any, module).config


def representable_time(t: float) -> float:
    """The nearest time that FLUX embeds alike in float32 and in bfloat16.

    The transformer computes 1000 t in its own precision; bfloat16 has 8 bits, and the embedding's highest
    frequency tells 437 from 438. At such a time a model trained in one precision runs in the other.
    """
    rounded = torch.tensor(t, dtype=torch.bfloat16) * 1000
    return rounded.item() / 1000
