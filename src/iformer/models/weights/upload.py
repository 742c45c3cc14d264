"""Upload of files to the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from iformer._version import __version__
from iformer.errors import WeightsError
from iformer.models.weights.hub import MAX_SILENCE_SECONDS, HubFile, endpoint, reason_of
from iformer.time_limit import call_within

_LEAST_BYTES_PER_SECOND = 10_000
"""Slowest upload that is not given up; the client reports no progress of uploads."""


@dataclass(frozen=True, kw_only=True)
class Uploaded:
    """A commit on the hub."""

    url: str
    """Address of the repository."""
    commit: str
    files: tuple[str, ...]
    """Paths of the written files."""


def upload(
    repo: str,
    contents: Mapping[str, bytes | Path],
    *,
    private: bool,
    message: str,
    keep: Mapping[str, Callable[[bytes], bool]] | None = None,
) -> Uploaded:
    """Write files to a model repository in one commit; a repository that does not exist is created.

    Args:
        repo: `USER/NAME`.
        contents: bytes or local files, by their path in the repository.
        private: whether a new repository is private. An existing one must be private then.
        message: the commit message.
        keep: functions by path. A file that the repository has already is kept if the function of its path
            returns True for the contents of that file.

    Raises:
        WeightsError: `repo` or `message` is invalid, the repository exists and is public although `private` is
            set, or the hub refuses or cannot be reached; one line gives the reason.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        raise WeightsError(f"'{repo}' is not a name on the hub; expected USER/NAME")
    if not message.strip():
        raise WeightsError("the message of the commit is empty; give a few words")
    address = endpoint()
    api = huggingface_hub.HfApi(endpoint=address, library_name="iformer", library_version=__version__)
    sizes = (c.stat().st_size if isinstance(c, Path) else len(c) for c in contents.values())
    seconds = MAX_SILENCE_SECONDS + sum(sizes) / _LEAST_BYTES_PER_SECOND
    try:
        if private and _is_public(api, repo):
            raise WeightsError(
                f"cannot push to {repo}: --private is set, but the repository exists and is public; make it "
                "private on its page (Settings), or leave out --private. Nothing was uploaded"
            )
        url = api.create_repo(repo, private=private, exist_ok=True)
        kept = {path for path, keeps in (keep or {}).items() if _has(api, repo, path, keeps)}
        files = [
            huggingface_hub.CommitOperationAdd(path_in_repo=path, path_or_fileobj=content)
            for path, content in contents.items()
            if path not in kept
        ]
        commit = call_within(seconds, lambda: api.create_commit(repo, files, commit_message=message))
    except WeightsError:
        raise
    except Exception as error:  # the transport's own errors differ between the client's versions
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = (
            "the token is missing or may not write there; log in with: hf auth login"
            if status in (401, 403) or type(error).__name__ == "LocalTokenNotFoundError"
            else reason_of(error, HubFile(repo=repo))
        )
        raise WeightsError(f"cannot push to {repo} at {address}: {reason}") from error
    return Uploaded(url=str(url), commit=commit.oid, files=tuple(path for path in contents if path not in kept))


def _is_public(api: huggingface_hub.HfApi, repo: str) -> bool:
    """Return whether a repository exists and is not known to be private."""
    try:
        return not api.model_info(repo).private
    except RepositoryNotFoundError:
        return False


def _has(api: huggingface_hub.HfApi, repo: str, path: str, matches: Callable[[bytes], bool]) -> bool:
    """Return whether a repository has a file for whose contents `matches` returns True."""
    with tempfile.TemporaryDirectory(prefix="iformer-") as folder:
        try:
            return matches(Path(api.hf_hub_download(repo, path, local_dir=folder)).read_bytes())
        except LocalEntryNotFoundError:  # no connection
            raise
        except EntryNotFoundError:
            return False
