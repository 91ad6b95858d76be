"""The second-order degradation of Real-ESRGAN (arXiv:2107.10833): drawn first, then applied."""

from allosr2.data.degradation.pipeline import Degradation, degrade, sample_degradation
from allosr2.data.degradation.presets import (
    PRESET_NAMES,
    DegradationConfig,
    DegradationMix,
    mixture,
    preset,
)

__all__ = [
    "PRESET_NAMES",
    "Degradation",
    "DegradationConfig",
    "DegradationMix",
    "degrade",
    "mixture",
    "preset",
    "sample_degradation",
]
