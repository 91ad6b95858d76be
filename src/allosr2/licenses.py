"""What the licenses of known bases say: they hold for whatever is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The license of a base, which holds for whatever is trained on it."""

    name: str
    """As its owner calls it."""
    identifier: str
    """As the hub's model cards call it; `other` for a license of the owner's own."""
    link: str
    """Where its text lies."""
    terms: str
    """Who may use the base for what, in a few words."""


_APACHE = License(
    name="Apache 2.0",
    identifier="apache-2.0",
    link="https://www.apache.org/licenses/LICENSE-2.0",
    terms="any use",
)
_FLUX_1_DEV = License(
    name="FLUX.1 [dev] Non-Commercial License",
    identifier="other",
    link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    terms="NON-COMMERCIAL use only",
)
_FLUX_2 = License(
    name="FLUX Non-Commercial License",
    identifier="other",
    link="https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
    terms="NON-COMMERCIAL use only",
)
_STABILITY = License(
    name="Stability AI Community License",
    identifier="other",
    link="https://stability.ai/community-license-agreement",
    terms="commercial use below a yearly revenue of one million dollars only",
)


def license_of(base: str) -> License | None:
    """The license of a base that is known by its hub id, or by the name of its folder; None for others."""
    name = base.rstrip("/").rpartition("/")[2].lower()
    if name == "flux.1-schnell" or name.startswith("z-image"):
        return _APACHE
    if name.startswith("flux.2-klein") and name.endswith("4b"):
        return _APACHE
    if name.startswith("flux.1-"):
        return _FLUX_1_DEV
    if name.startswith("flux.2-"):
        return _FLUX_2
    if name.startswith("stable-diffusion-3"):
        return _STABILITY
    return None


def describe_license(base: str) -> str:
    """The license of a base in a few words, for tables and cards."""
    known = license_of(base)
    if known is None and Path(base).is_absolute():
        return "not known; see where the base came from"
    if known is None:
        return f"its own; see {base}" if "/" in base else "this model's own"
    return f"{known.name}: {known.terms} ({known.link})"
