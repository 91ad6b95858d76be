"""Models that lie on the Hugging Face Hub: reaching them, sending them, and what stands in the way."""

from __future__ import annotations

import logging
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

from allosr2.errors import ModelError
from allosr2.licenses import describe_license

logger = logging.getLogger(__name__)


@cache  # once a base, not once a part
def _announce(base: str) -> None:
    logger.info("%s: what is not here yet is downloaded; license: %s", base, describe_license(base))


def reach(repository: str, name: str) -> Path:
    """A file of a hub repository, downloaded if it is not in the cache; the log names the license first.

    Raises ModelError that says what stands in the way: a license to accept, a repository or file that
    is not there, or no network (`HF_HUB_OFFLINE` is obeyed).
    """
    try:
        if not (is_offline_mode() or isinstance(try_to_load_from_cache(repository, name), str)):
            _announce(repository)
        return Path(hf_hub_download(repository, name))
    except Exception as error:
        raise _explained(repository, name, error) from error


def fetch(repository: str, patterns: list[str], revision: str | None = None) -> Path:
    """The files of a hub repository that match `patterns`, as a folder. Raises ModelError as `reach`."""
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except Exception as error:
        raise _explained(repository, "its files", error) from error


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
            f"{repository}: it cannot be sent to the hub ({_one_line(error)}); log in with `hf auth login` "
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
            cause = f" ({_one_line(error.__cause__)})" if error.__cause__ else ""
            problem = (
                f"no folder here, and {name} is not in the hub's cache while the hub is out of reach{cause}; "
                "name a folder, or unset HF_HUB_OFFLINE and connect to the network once"
            )
        case EntryNotFoundError():
            problem = f"{name} is not in the repository; name a base in diffusers layout"
        case RevisionNotFoundError():
            problem = f"it has no such revision; see {page}/commits/main"
        case RepositoryNotFoundError():
            problem = (
                f"neither a folder here nor a repository at {page} that can be seen; "
                "check the name, or log in with `hf auth login` if it is private"
            )
        case _:
            problem = f"it cannot be downloaded ({_one_line(error)}); try again, or name a folder"
    return ModelError(f"{repository}: {problem}")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
