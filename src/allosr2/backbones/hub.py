"""Models that lie on the Hugging Face Hub: reaching them, sending them, and what stands in the way."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from huggingface_hub import (
    HfApi,
    hf_hub_download,
    is_offline_mode,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from allosr2.errors import ModelError, one_line
from allosr2.licenses import ANY_USE, describe_license, license_of

logger = logging.getLogger(__name__)


WEIGHTS = "diffusion_pytorch_model"
"""How diffusers names the weights of a base's part."""


@cache  # once a base, not once a part
def _announce(base: str) -> None:
    known = license_of(base)
    level = logging.INFO if known is not None and known.terms == ANY_USE else logging.WARNING
    logger.log(level, "%s is downloaded; its license: %s", base, describe_license(base))


def reach(repository: str, name: str, revision: str | None = None) -> Path:
    """A file of a hub repository, downloaded if it is not in the cache.

    Raises ModelError that says what stands in the way: a license to accept, a repository or file that
    is not there, or no network (`HF_HUB_OFFLINE` is obeyed).
    """
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except Exception as error:
        raise _explained(repository, name, error) from error


def fetch(repository: str, patterns: list[str], revision: str | None = None) -> Path:
    """The files of a hub repository that match `patterns`, as a folder. Raises ModelError as `reach`."""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _explained(repository, "it", error) from error


def fetch_part(base: str, part: str) -> Path:
    """A base as a folder in which a part lies, with nothing that is not read.

    The log names the license before weights are downloaded. Raises ModelError as `reach`.
    """
    weights = [f"{part}/{WEIGHTS}.safetensors", f"{part}/{WEIGHTS}.safetensors.index.json"]
    reach(base, f"{part}/config.json")  # is there anything to download, and may it be?
    announce(base, weights)
    shards = f"{part}/{WEIGHTS}-*-of-*.safetensors"
    folder = fetch(base, [f"{part}/config.json", *weights, shards])
    if not any((folder / part).glob("*.safetensors")):
        raise ModelError(
            f"{base}: no weights of its {part} came; name a base with safetensors files, or unset "
            "HF_HUB_OFFLINE if they are not in the cache"
        )
    return folder


def announce(base: str, weights: Iterable[str]) -> None:
    """Say in the log what license a base has, unless any of its files is here already or none can come."""
    if is_offline_mode():
        return
    if not any(isinstance(try_to_load_from_cache(base, name), str) for name in weights):
        _announce(base)


def upload(folder: Path, repository: str, *, private: bool) -> str:
    """Send a folder to a hub repository, made if need be; returns its address. Raises ModelError."""
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload by allosr2"
        )
    except Exception as error:
        raise ModelError(
            f"{repository}: it cannot be sent to the hub ({one_line(error)}); log in with `hf auth login` "
            "as somebody who may write there"
        ) from error
    return f"https://huggingface.co/{repository}"


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
            cause = f" ({one_line(error.__cause__)})" if error.__cause__ else ""
            problem = (
                f"no folder here, and {name} is not in the hub's cache while the hub is out of reach{cause}; "
                "name a folder, or unset HF_HUB_OFFLINE and connect to the network once"
            )
        case EntryNotFoundError():
            problem = f"{name} is not in the repository; name another"
        case RevisionNotFoundError():
            problem = f"it has no such revision; see {page}/commits/main"
        case RepositoryNotFoundError():
            problem = (
                f"neither a folder here nor a repository at {page} that can be seen; "
                "check the name, or log in with `hf auth login` if it is private"
            )
        case _:
            problem = f"it cannot be downloaded ({one_line(error)}); try again, or name a folder"
    return ModelError(f"{repository}: {problem}")
