"""What a degradation is drawn from: ranges and probabilities, the sets in common use, and mixes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher

from allosr2.errors import ConfigError

Range = tuple[float, float]


def _check_probabilities(config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(
                f"{type(config).__name__}.{name} is {value}, not a probability: "
                "choose a number from 0 to 1"
            )


def _check_sum(config: object, *names: str) -> None:
    _check_probabilities(config, *names)
    total = sum(getattr(config, name) for name in names)
    if not abs(total - 1) < 1e-8:
        raise ConfigError(
            f"{type(config).__name__}: {', '.join(names)} sum to {total:.6g}: "
            "choose probabilities that sum to 1"
        )


def _check_range(config: object, name: str, low: float, high: float) -> None:
    first, last = getattr(config, name)
    if not low <= first <= last <= high:
        raise ConfigError(
            f"{type(config).__name__}.{name} is ({first}, {last}): "
            f"choose a rising range within {low:g} to {high:g}"
        )


def _check_range_holds_one(config: object, name: str) -> None:
    first, last = getattr(config, name)
    if not 0 < first <= 1 <= last:
        raise ConfigError(
            f"{type(config).__name__}.{name} is ({first}, {last}): choose a positive range "
            "that holds 1, because half of the draws lie on either side of 1"
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelProbabilities:
    """How often each elliptical kernel is drawn, once it is settled that the kernel is no sinc."""

    isotropic: float = 0.45
    """Gaussian, one width."""
    anisotropic: float = 0.25
    """Gaussian, two widths and a rotation."""
    generalized_isotropic: float = 0.12
    """Generalized Gaussian, one width."""
    generalized_anisotropic: float = 0.03
    """Generalized Gaussian, two widths and a rotation."""
    plateau_isotropic: float = 0.12
    """Plateau, one width."""
    plateau_anisotropic: float = 0.03
    """Plateau, two widths and a rotation."""

    def __post_init__(self) -> None:
        _check_sum(self, *self.__slots__)


@dataclass(frozen=True, kw_only=True, slots=True)
class BlurConfig:
    """The blur of one stage."""

    sigma: Range
    """Widths of the elliptical kernels, in pixels."""
    probability: float = 1.0
    """How often the stage blurs at all."""
    sinc_probability: float = 0.1
    """How often the kernel is a circular low-pass, which rings, instead of an elliptical one."""
    generalized_beta: Range = (0.5, 4.0)
    """Exponents of the generalized Gaussian; half of the draws lie below 1, half above."""
    plateau_beta: Range = (1.0, 2.0)
    """Exponents of the plateau kernel; half of the draws lie below 1 (or at 1), half above."""
    kernels: KernelProbabilities = field(default_factory=KernelProbabilities)
    """How often each elliptical kernel is drawn."""

    def __post_init__(self) -> None:
        _check_range(self, "sigma", 1e-3, 100.0)
        _check_probabilities(self, "probability", "sinc_probability")
        _check_range_holds_one(self, "generalized_beta")
        _check_range_holds_one(self, "plateau_beta")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResizeConfig:
    """The resize of one stage; an upward factor lies in [1, high], a downward one in [low, 1]."""

    up: float
    """Probability of enlarging."""
    down: float
    """Probability of reducing."""
    keep: float
    """Probability of a factor of 1."""
    factor: Range
    """Lowest and highest factor."""

    def __post_init__(self) -> None:
        _check_sum(self, "up", "down", "keep")
        first, last = self.factor
        if not 0 < first <= 1 <= last:
            raise ConfigError(
                f"ResizeConfig.factor is ({first}, {last}): choose a positive range that holds 1"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseConfig:
    """The noise of one stage."""

    gaussian_sigma: Range
    """Standard deviations of the Gaussian noise, in 1/255."""
    poisson_scale: Range
    """Factors on the Poisson noise."""
    gaussian_probability: float = 0.5
    """How often the noise is Gaussian; it is Poisson otherwise."""
    gray_probability: float = 0.4
    """How often the three channels share one noise field."""

    def __post_init__(self) -> None:
        _check_range(self, "gaussian_sigma", 0.0, 255.0)
        _check_range(self, "poisson_scale", 0.0, 100.0)
        _check_probabilities(self, "gaussian_probability", "gray_probability")


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """One of the two rounds of blur, resize, noise and JPEG."""

    blur: BlurConfig
    """Blur, the first step."""
    resize: ResizeConfig
    """Resize: relative to the HR size in the first stage, to the LR size in the second."""
    noise: NoiseConfig
    """Noise."""
    jpeg_quality: tuple[int, int]
    """Lowest and highest JPEG quality, both included."""

    def __post_init__(self) -> None:
        _check_range(self, "jpeg_quality", 1, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class DegradationConfig:
    """Everything that a degradation is drawn from."""

    first: StageConfig
    """First stage, from the HR image."""
    second: StageConfig
    """Second stage; its JPEG comes before or after the resize to the final size, half and half."""
    final_sinc_probability: float = 0.8
    """How often the final size is followed by a circular low-pass."""
    undegraded_probability: float = 0.0
    """How often a sample is only reduced, by an antialiased bicubic."""

    def __post_init__(self) -> None:
        _check_probabilities(self, "final_sinc_probability", "undegraded_probability")


@dataclass(frozen=True, kw_only=True, slots=True)
class DegradationMix:
    """Several degradations; each sample is of one of them."""

    parts: tuple[DegradationConfig, ...]
    """Equally often; one that is there twice is drawn twice as often."""


def _real_esrgan() -> DegradationConfig:
    return DegradationConfig(
        first=StageConfig(
            blur=BlurConfig(sigma=(0.2, 3.0)),
            resize=ResizeConfig(up=0.2, down=0.7, keep=0.1, factor=(0.15, 1.5)),
            noise=NoiseConfig(gaussian_sigma=(1.0, 30.0), poisson_scale=(0.05, 3.0)),
            jpeg_quality=(30, 95),
        ),
        second=StageConfig(
            blur=BlurConfig(sigma=(0.2, 1.5), probability=0.8),
            resize=ResizeConfig(up=0.3, down=0.4, keep=0.3, factor=(0.3, 1.2)),
            noise=NoiseConfig(gaussian_sigma=(1.0, 25.0), poisson_scale=(0.05, 2.5)),
            jpeg_quality=(30, 95),
        ),
    )


def _mild() -> DegradationConfig:
    return DegradationConfig(
        first=StageConfig(
            blur=BlurConfig(sigma=(0.2, 3.0)),
            resize=ResizeConfig(up=0.2, down=0.7, keep=0.1, factor=(0.3, 1.5)),
            noise=NoiseConfig(gaussian_sigma=(1.0, 15.0), poisson_scale=(0.05, 2.0)),
            jpeg_quality=(60, 95),
        ),
        second=StageConfig(
            blur=BlurConfig(sigma=(0.2, 1.5), probability=0.5),
            resize=ResizeConfig(up=0.3, down=0.4, keep=0.3, factor=(0.6, 1.2)),
            noise=NoiseConfig(gaussian_sigma=(1.0, 12.0), poisson_scale=(0.05, 1.0)),
            jpeg_quality=(60, 100),
        ),
    )


def _stablesr() -> DegradationConfig:
    mild = _mild()
    first = BlurConfig(sigma=(0.2, 1.5), generalized_beta=(0.5, 2.0), plateau_beta=(1.0, 1.5))
    second = replace(first, sigma=(0.2, 1.0), probability=0.5)
    return replace(
        mild,
        first=replace(mild.first, blur=first),
        second=replace(mild.second, blur=second),
        undegraded_probability=0.01,
    )


def _camera() -> DegradationConfig:
    """`stablesr`'s blurs and sizes with next to no noise and JPEG."""

    def calm(stage: StageConfig) -> StageConfig:
        noise = replace(stage.noise, gaussian_sigma=(0.0, 1.5), poisson_scale=(0.0, 0.1))
        return replace(stage, noise=noise, jpeg_quality=(95, 100))

    stablesr = _stablesr()
    return replace(stablesr, first=calm(stablesr.first), second=calm(stablesr.second))


def _bicubic() -> DegradationConfig:
    """Every sample undegraded: the rest is drawn and not applied."""
    return replace(_camera(), undegraded_probability=1.0)


_PRESETS: dict[str, Callable[[], DegradationConfig]] = {
    "real-esrgan": _real_esrgan,
    "mild": _mild,
    "stablesr": _stablesr,
    "camera": _camera,
    "bicubic": _bicubic,
}
PRESET_NAMES = tuple(_PRESETS)


def preset(name: str) -> DegradationConfig:
    """The degradation known under a name.

    - `real-esrgan`: the strongest; Real-ESRGAN x4plus (arXiv:2107.10833), also OSEDiff's training.
    - `mild`: higher JPEG qualities, weaker noise and resizing; PiSA-SR's and OMGSR's training.
    - `stablesr`: `mild` with narrower blur and 1% of the samples undegraded; StableSR's
      (arXiv:2305.07015), from which the field's synthetic test sets come.
    - `camera`: `stablesr` with next to no noise and JPEG, as LR images of a good camera are; of no paper.
    - `bicubic`: shrunk by antialiased bicubic resizing and nothing else, as classical super-resolution's pairs.

    Raises:
        ConfigError: the name is none of `PRESET_NAMES`.
    """
    if name in _PRESETS:
        return _PRESETS[name]()
    nearest = sorted(
        PRESET_NAMES, key=lambda known: -SequenceMatcher(None, name.lower(), known).ratio()
    )
    raise ConfigError(
        f"degradation preset {name!r} is unknown: choose {', '.join(nearest[:-1])} or {nearest[-1]}, "
        "or several joined by +"
    )


def mixture(names: str) -> DegradationConfig | DegradationMix:
    """The preset of a name, or of several joined by +: with `mild+camera` a sample is of one or the other.

    One that is named twice weighs twice as much. Raises ConfigError as `preset`.
    """
    parts = tuple(preset(name) for name in names.split("+"))
    return parts[0] if len(parts) == 1 else DegradationMix(parts=parts)
