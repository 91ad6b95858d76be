"""Models that lie on the Hugging Face Hub: reaching them, and what their licenses say."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from allosr2.errors import ModelError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class License:
    """The license of a base, which holds for whatever is trained on it."""

    name: str
    """As its owner calls it."""
    identifier: str
    """As the hub's model cards call it; `other` for a license of the owner's own."""
    link: str
    """Where its text lies."""
    commercial: bool
    """Whether its text lets everyone use the base commercially without asking."""


def license_of(base: str) -> License | None:
    """The license of a base that is known by its hub id, or by the name of its folder; None for others."""
    name = base.rstrip("/").rpartition("/")[2].lower()
    if name == "flux.1-schnell":
        return _apache("black-forest-labs/FLUX.1-schnell")
    if name.startswith("flux.1-"):
        return License(
            name="FLUX.1 [dev] Non-Commercial License",
            identifier="other",
            link="https://huggingface.co/black-forest-labs/FLUX.1-dev/blob/main/LICENSE.md",
            commercial=False,
        )
    if name.startswith("flux.2-klein") and "4b" in name:
        return _apache("black-forest-labs/FLUX.2-klein-4B")
    if name.startswith("flux.2-"):
        return License(
            name="FLUX Non-Commercial License",
            identifier="other",
            link=f"https://huggingface.co/{base}",
            commercial=False,
        )
    if name.startswith(("stable-diffusion-3", "stable-diffusion-3.5")):
        return License(
            name="Stability AI Community License (free below a yearly revenue of one million dollars)",
            identifier="other",
            link="https://stability.ai/community-license-agreement",
            commercial=False,
        )
    if name.startswith("z-image"):
        return _apache("Tongyi-MAI/Z-Image")
    return None


def _apache(repository: str) -> License:
    return License(
        name="Apache 2.0",
        identifier="apache-2.0",
        link=f"https://huggingface.co/{repository}",
        commercial=True,
    )


def describe_license(base: str) -> str:
    """The license of a base in a few words, for tables and cards."""
    known = license_of(base)
    if known is None:
        return f"the base's own; see {base}"
    use = "" if known.commercial else "; NOT for commercial use without its owner's consent"
    return f"{known.name} ({known.link}){use}"


@cache  # once a base, not once a part
def _announce(base: str) -> None:
    logger.info("%s is downloaded if it is not here yet; license: %s", base, describe_license(base))


def reach(repository: str, name: str) -> Path:
    """A file of a hub repository, downloaded if it is not in the cache; the log names the license first.

    Raises ModelError that says what stands in the way: a license to accept, a repository or file that
    is not there, or no network (`HF_HUB_OFFLINE` is obeyed).
    """
    try:
        if not isinstance(try_to_load_from_cache(repository, name), str):
            _announce(repository)
        return Path(hf_hub_download(repository, name))
    except Exception as error:
        raise _explained(repository, name, error) from error


def fetch(repository: str, patterns: list[str]) -> Path:
    """The files of a hub repository that match `patterns`, as a folder. Raises ModelError as `reach`."""
    try:
        return Path(snapshot_download(repository, allow_patterns=patterns))
    except Exception as error:
        raise _explained(repository, "its files", error) from error


def _explained(repository: str, name: str, error: Exception) -> ModelError:
    page = f"https://huggingface.co/{repository}"
    match error:
        case HFValidationError():
            problem = "neither a folder here nor a hub id; name one of them"
        case GatedRepoError():
            problem = (
                f"its owner asks to accept a license ({describe_license(repository)}); accept it at {page}, "
                "then log in with `hf auth login` or set HF_TOKEN"
            )
        case OfflineModeIsEnabled() | LocalEntryNotFoundError():
            problem = (
                f"no folder here, and {name} is not in the hub's cache while the hub is out of reach; "
                "name a folder, or unset HF_HUB_OFFLINE and connect to the network once"
            )
        case EntryNotFoundError():
            problem = f"{name} is not in the repository; name a base in diffusers layout"
        case RepositoryNotFoundError():
            problem = (
                f"neither a folder here nor a repository at {page} that can be seen; "
                "check the name, or log in with `hf auth login` if it is private"
            )
        case HfHubHTTPError():
            problem = f"the hub answers with an error ({_one_line(error)}); try again later"
        case _:
            problem = f"it cannot be downloaded ({_one_line(error)}); try again, or name a folder"
    return ModelError(f"{repository}: {problem}")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
