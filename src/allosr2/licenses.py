"""What the licenses of known bases say: they hold for whatever is trained on them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

OWN = "allosr2/mini"
"""What the base that the package carries is called."""
ANY_USE = "any use"
"""Terms of a license that restricts nobody."""


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The license of a base, which holds for whatever is trained on it."""

    name: str
    """As its owner calls it."""
    identifier: str
    """As the hub's model cards call it; licenses of an owner's own are `other` there, with this name."""
    link: str
    """Where its text lies."""
    terms: str
    """Who may use the base for what, in a few words."""


_APACHE = License(
    name="Apache 2.0",
    identifier="apache-2.0",
    link="https://www.apache.org/licenses/LICENSE-2.0",
    terms=ANY_USE,
)
_FLUX_1_DEV = License(
    name="FLUX.1 [dev] Non-Commercial License",
    identifier="flux-1-dev-non-commercial-license",
    link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
    terms="NON-COMMERCIAL use only",
)
_FLUX_2 = License(
    name="FLUX Non-Commercial License",
    identifier="flux-non-commercial-license",
    link="https://huggingface.co/black-forest-labs/FLUX.2-dev/blob/main/LICENSE.txt",
    terms="NON-COMMERCIAL use only",
)
_STABILITY = License(
    name="Stability AI Community License",
    identifier="stabilityai-ai-community",
    link="https://stability.ai/community-license-agreement",
    terms="commercial use below a yearly revenue of one million dollars only",
)
STANDARD = frozenset({_APACHE.identifier})
"""Licenses that the hub knows by their identifiers."""


def license_of(base: str) -> License | None:
    """The license of a base that is known by its hub id or by its folder's path; None for others.

    A folder is known by any part of its path that is called as the base is, the hub's cache among them.
    """
    for part in reversed(PurePath(base).parts):
        name = part.rpartition("--")[2].lower()  # models--OWNER--NAME in the hub's cache
        if name.startswith(("flux.1-schnell", "z-image")):
            return _APACHE
        if name.startswith("flux.2-klein") and "4b" in name:
            return _APACHE
        if name.startswith("flux.1-"):
            return _FLUX_1_DEV
        if name.startswith("flux.2-"):
            return _FLUX_2
        if name.startswith("stable-diffusion-3"):
            return _STABILITY
    return _APACHE if base == OWN else None


def describe_license(base: str) -> str:
    """The license of a base in a few words, for tables and cards."""
    known = license_of(base)
    if known is None:
        return "not known here; see where the base came from"
    return f"{known.name}: {known.terms} ({known.link})"
