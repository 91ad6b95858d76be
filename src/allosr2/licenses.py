"""What the licenses of known bases say: they hold for whatever is trained on them."""

from __future__ import annotations

import re
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
_OPEN = re.compile(r"flux\.1-schnell|flux\.2-klein-(base-)?4b|z-image(-turbo|-base)?")
_RESTRICTED = {"flux.1-": _FLUX_1_DEV, "flux.2-": _FLUX_2, "stable-diffusion-3": _STABILITY}
_UNCLEAR = ("flux.1-schnell", "flux.2-klein-4b", "flux.2-klein-base-4b")
"""Beginnings of names of what others made of open bases: mixed with a restricted one, perhaps."""
STANDARD = frozenset({_APACHE.identifier})
"""Licenses that the hub knows by their identifiers."""


def license_of(base: str) -> License | None:
    """The license of a base that is known by its hub id or by its folder's path; None for others.

    A license that restricts nobody takes the whole name; one that does is taken from any part of the path,
    and from longer names too: most of what is made of a base is called after it.
    """
    if base == OWN:
        return _APACHE
    parts = PurePath(base).parts
    # models--OWNER--NAME in the hub's cache, above a snapshot's folder
    cached = [part.rpartition("--")[2] for part in parts if part.startswith("models--")]
    if any(_OPEN.fullmatch(name.lower()) for name in (*parts[-1:], *cached)):
        return _APACHE
    for name in (*cached, *reversed(parts)):
        for beginning, known in _RESTRICTED.items():
            if name.lower().startswith(beginning):
                return None if name.lower().startswith(_UNCLEAR) else known
    return None


def describe_license(base: str) -> str:
    """The license of a base in a few words, for tables and cards."""
    known = license_of(base)
    if known is None:
        return "not known here; see where the base came from"
    return f"{known.name}: {known.terms} ({known.link})"
