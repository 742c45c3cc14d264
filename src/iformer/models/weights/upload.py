"""Upload of files to the Hugging Face hub."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from iformer._version import __version__
from iformer.errors import WeightsError, listed
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
            set, the repository's `.gitignore` matches a file, or the hub refuses or cannot be reached; one line
            gives the reason.
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
        commit = call_within(seconds, lambda: _commit(api, repo, files, message))
    except WeightsError:
        raise
    except Exception as error:  # the transport's own errors differ between the client's versions
        reason = (
            "the token is missing or may not write there; log in with: hf auth login"
            if _is_refused(error) or type(error).__name__ == "LocalTokenNotFoundError"
            else reason_of(error, HubFile(repo=repo))
        )
        raise WeightsError(f"cannot push to {repo} at {address}: {reason}") from error
    return Uploaded(url=str(url), commit=commit.oid, files=tuple(path for path in contents if path not in kept))


def _commit(
    api: huggingface_hub.HfApi, repo: str, files: Sequence[huggingface_hub.CommitOperationAdd], message: str
) -> huggingface_hub.CommitInfo:
    """Write the files in one commit, or none of them if the hub would leave one out."""
    api.preupload_lfs_files(repo, files, free_memory=False)  # asks the hub how to upload each file
    ignored = [file.path_in_repo for file in files if getattr(file, "_should_ignore", False)]
    if ignored:
        raise WeightsError(
            f"cannot push to {repo}: the hub ignores {listed(ignored)}: the repository's .gitignore names such "
            "files; change .gitignore on the hub, or push to another repository. Nothing was pushed"
        )
    return api.create_commit(repo, files, commit_message=message)


def _is_refused(error: BaseException) -> bool:
    """Return whether the hub refused the token; the client may fail itself while it handles that answer."""
    if getattr(getattr(error, "response", None), "status_code", None) in (401, 403):
        return True
    return error.__context__ is not None and _is_refused(error.__context__)


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
