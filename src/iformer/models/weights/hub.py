"""Weights on the Hugging Face hub, through huggingface_hub's cache."""

from __future__ import annotations

import errno
import hashlib
import inspect
import json
import os
import re
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub

from iformer.errors import ConfigError, UserError, WeightsError, one_line, printable

try:
    from huggingface_hub import constants  # reads environment variables
except ValueError as wrong:
    raise UserError(
        f"an environment variable of the Hugging Face hub is wrong ({one_line(wrong)}); see HF_ENDPOINT, "
        "HF_HUB_ETAG_TIMEOUT and HF_HUB_DOWNLOAD_TIMEOUT"
    ) from None
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import tqdm

from iformer._version import __version__
from iformer.config.metadata import Metadata
from iformer.config.preprocessing import Preprocessing
from iformer.config.variants import Release, list_models, release
from iformer.models.weights.checkpoint import Weights
from iformer.models.weights.imagenet import imagenet_class_names
from iformer.models.weights.read import read_weights
from iformer.time_limit import call_within, note_after

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_REVISION = re.compile(r"\w[\w.+=@#,-]*(?:/\w[\w.+=@#,-]*)*")
_ETAG = re.compile(r"[\w-][\w.+=-]{0,199}", re.ASCII)
_HUB_NAME = re.compile(r"hf[-_]hub:(?P<repo>[\w.-]+/[\w.-]+)(?:/(?P<file>[^@]+))?(?:@(?P<revision>\S{1,250}))?")
_NOT_A_HUB = "the answer is not that of a hub; a proxy or a login page may have sent it"
_MAX_CONFIG_BYTES = 10_000_000
_MAX_FILE_BYTES = 16 * 2**30
"""Size of the largest file that is downloaded, in bytes: enough for a training checkpoint with its optimizer."""
MAX_SILENCE_SECONDS = 900
"""Longest time without progress of a download or upload. The client itself waits as long as a server that answers
429 tells it to, and reports progress for every 10 MB."""
_NOTE_SECONDS = 15
"""Time without any progress of a download after which a note is printed."""


@dataclass(frozen=True, kw_only=True)
class HubFile:
    """A file of a hub repository."""

    repo: str
    file: str = WEIGHTS_FILE
    revision: str | None = None
    """A commit, tag or branch; None takes the newest commit."""

    def __post_init__(self) -> None:
        """Check the revision: the client makes a path of its cache from it, and writes the commit there.

        Raises:
            WeightsError: it is no name of a commit, tag or branch.
        """
        if self.revision is not None and (not _REVISION.fullmatch(self.revision) or ".." in self.revision):
            raise WeightsError(
                f"{printable(self.repo, limit=200)}: the revision is '{printable(self.revision, limit=80)}'; "
                "expected the name of a commit, tag or branch"
            )


def parse_hub_name(name: str) -> HubFile | None:
    """Parse a name on the hub: `hf-hub:USER/NAME`, with optional `/FILE` and `@REVISION`.

    Returns:
        The named file. None if the name does not begin with `hf-hub:`.

    Raises:
        WeightsError: the name begins with `hf-hub:`, but does not have this form.
    """
    if not name.startswith(("hf-hub:", "hf_hub:")):
        return None
    match = _HUB_NAME.fullmatch(name)
    file = WEIGHTS_FILE if match is None else match["file"] or WEIGHTS_FILE
    if match is None or any(part in ("", ".", "..") for part in file.split("/")):
        raise _invalid(name)
    return HubFile(repo=match["repo"], file=file, revision=match["revision"])


def _invalid(name: str) -> WeightsError:
    return WeightsError(
        f"'{printable(name, limit=200)}' is not a name on the hub; expected hf-hub:USER/NAME, with /FILE or "
        "@REVISION if needed"
    )


def endpoint() -> str:
    """Return the address of the hub."""
    # read at each call: the client reads the variable when it is imported
    return os.environ.get("HF_ENDPOINT") or constants.ENDPOINT


def fetch(wanted: HubFile) -> Path:
    """Return the local path of a file on the hub. The file is downloaded unless the cache holds it.

    The hub names large files by their SHA-256. A file in the cache that does not have it is downloaded again.

    Raises:
        WeightsError: the file cannot be fetched; one line names the repository, the reason and what to do.
    """
    address = endpoint()
    try:
        path = _download(wanted, address)
        if not _is_intact(path):
            path = _download(wanted, address, again=True)
            if not _is_intact(path):
                raise OSError("the file that the server sends does not have the SHA-256 that it states")
        return path
    except HFValidationError as error:
        raise _invalid(f"hf-hub:{wanted.repo}") from error
    except Exception as error:  # the transport's own errors differ between the client's versions
        raise WeightsError(
            f"cannot fetch {wanted.repo} from {printable(address, limit=200)}: {reason_of(error, wanted)}; "
            f"{_remedy(error, wanted)}"
        ) from error


def _is_intact(path: Path) -> bool:
    """Return whether a cached file has the SHA-256 that it is named by; True if its name is no SHA-256."""
    stated = path.resolve().name
    if not _SHA256.fullmatch(stated):
        return True
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == stated


def _download(wanted: HubFile, endpoint: str, *, again: bool = False) -> Path:
    """Return the local path of a file; `again` downloads a file whose cached copy is damaged."""
    repo, file, revision = wanted.repo, wanted.file, wanted.revision
    if revision is not None and _COMMIT.fullmatch(revision) and not again:  # a commit never changes: do not ask
        cached = huggingface_hub.try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    download = partial(huggingface_hub.hf_hub_download, repo, file, revision=revision)
    try:
        # one request first: without a network the download itself would try for half a minute
        url = huggingface_hub.hf_hub_url(repo, file, revision=revision, endpoint=endpoint)
        found = huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if found.commit_hash is None or found.etag is None:
            raise OSError(_NOT_A_HUB)
        # the client makes paths of its cache from both
        if not _COMMIT.fullmatch(found.commit_hash) or not _ETAG.fullmatch(found.etag):
            raise OSError("the answer is not that of a hub: its commit or ETag is malformed")
    except Exception as error:
        if again:
            raise OSError(f"its copy in the cache is damaged: {reason_of(error, wanted)}") from error
        try:
            return Path(download(local_files_only=True))
        except LocalEntryNotFoundError:
            raise error from None
    size = _MAX_FILE_BYTES if found.size is None else found.size
    if size > _MAX_FILE_BYTES:
        raise OSError(f"it has {size:,} bytes; expected at most {_MAX_FILE_BYTES:,}")
    download = partial(
        download, endpoint=endpoint, library_name="iformer", library_version=__version__, force_download=again
    )
    if not _TAKES_PROGRESS:
        return Path(download())
    progress = _bounded(size)
    call = partial(download, tqdm_class=progress)
    start = progress.latest
    note = f"note: waiting for {repo}; another process may be downloading it into the same cache"
    with note_after(_NOTE_SECONDS, note, unless=lambda: progress.latest > start):
        return Path(call_within(MAX_SILENCE_SECONDS, call, latest_progress=lambda: progress.latest))


_TAKES_PROGRESS = "tqdm_class" in inspect.signature(huggingface_hub.hf_hub_download).parameters
"""Whether this version of the client reports received bytes; downloads of earlier versions cannot be bounded."""


def _bounded(size: int) -> Any:
    """Return a class of progress bars that abort a download of more than twice `size` bytes plus 1 MiB.

    Its attribute `latest` is the time of the latest progress.
    """
    most = 2 * size + 2**20  # the hub's block storage may transfer more than the file has

    class Bounded(tqdm):
        latest = time.monotonic()

        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)  # type: ignore[no-untyped-call]
            self.received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += int(n or 0)
            Bounded.latest = time.monotonic()
            if self.received > most:
                raise OSError(f"the server sends more than the {size:,} bytes that it announced")
            shown: bool | None = super().update(n)
            return shown

    return Bounded


# --------------------------------------------------------------------------------------- released weights


def released(name: str) -> Release:
    """Return the repository and the accuracy of a network's released weights.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the network was never released; the message names the released networks.
    """
    found = release(name)
    if found is None:
        names = ", ".join(other for other in list_models() if release(other) is not None)
        raise WeightsError(f"there are no released weights of {name}; there are of {names}")
    return found


def release_names() -> dict[str, str]:
    """Return a map from timm's names of released weights, `timm/iformer_m.in1k` and `iformer_m.in1k`, to ours."""
    repos = {found.hub_repo: name for name in list_models() if (found := release(name)) is not None}
    return repos | {repo.partition("/")[2]: name for repo, name in repos.items()}


def fetch_released(name: str, revision: str | None = None) -> Path:
    """Return the local path of a network's released weights, in timm's key names; see `fetch`.

    Args:
        name: a name of `list_models`.
        revision: a commit, tag or branch of the hub repository; None takes the newest commit.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the network has no released weights, or they cannot be fetched.
    """
    return fetch(HubFile(repo=released(name).hub_repo, revision=revision))


def read_released(name: str, revision: str | None = None) -> Weights:
    """Read a network's released weights, with ImageNet's class names and the published accuracy.

    Raises:
        UnknownNameError: no such network.
        WeightsError: the network has no released weights, or they cannot be fetched or read.
    """
    path = fetch_released(name, revision)
    found = released(name)
    metadata = Metadata(
        class_names=imagenet_class_names(),
        metrics={"top1": found.top1, "top5": found.top5},
        provenance=_provenance(found.hub_repo, path) | {"data": "ImageNet-1k"},
    )
    return replace(read_weights(path), source=found.hub_repo, metadata=metadata, described=True)


def read_hub_file(wanted: HubFile, *, entry: str | None = None) -> Weights:
    """Read weights on the hub: our checkpoint, or timm's or the authors' file.

    For timm's files, preprocessing and class names come from the `config.json` in the same repository.

    Raises:
        WeightsError: the file cannot be fetched or read, or `config.json` is invalid.
    """
    name = release_names().get(wanted.repo)
    if name is not None and wanted.file == WEIGHTS_FILE:
        return read_released(name, wanted.revision)
    path = fetch(wanted)
    weights = replace(read_weights(path, entry=entry), source=wanted.repo)
    metadata = weights.metadata
    if weights.format == "timm" and not weights.described:
        metadata = _described_by_timm(metadata, wanted, weights.config.num_classes)
    described = weights.described or metadata is not weights.metadata
    provenance = metadata.provenance | _provenance(wanted.repo, path)
    return replace(weights, metadata=replace(metadata, provenance=provenance), described=described)


def _provenance(repo: str, path: Path) -> dict[str, str]:
    # in the hub's cache a file lies in a folder named after its commit
    return {"hub_repo": repo, "hub_revision": path.parent.name}


def _described_by_timm(metadata: Metadata, wanted: HubFile, num_classes: int) -> Metadata:
    """Add preprocessing and class names of timm's `config.json`, if the repository has one."""
    try:
        path = fetch(replace(wanted, file=CONFIG_FILE))
    except WeightsError as error:
        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return metadata
        raise
    return describe_by_timm(metadata, path, num_classes, source=f"{wanted.repo}: its {CONFIG_FILE}")


def describe_by_timm(metadata: Metadata, path: Path, num_classes: int, *, source: str) -> Metadata:
    """Return `metadata` with the preprocessing and class names of timm's `config.json` at `path`.

    Raises:
        WeightsError: the file is invalid; `source` names it in the message.
    """
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ValueError(f"it has more than {_MAX_CONFIG_BYTES} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
        pretrained = {**config, **config.get("pretrained_cfg", {})}
        names = pretrained.get("label_names") or ()
        fields: dict[str, Any] = {
            name: tuple(pretrained[name]) if isinstance(pretrained[name], list) else pretrained[name]
            for name in ("mean", "std", "crop_pct", "interpolation")
            if name in pretrained
        }
        if "input_size" in pretrained:
            fields["size"] = tuple(pretrained["input_size"])[1:]
        preprocessing = Preprocessing(**fields)
        return replace(metadata, preprocessing=preprocessing, class_names=tuple(names)[:num_classes])
    except (ConfigError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{source} is invalid: {one_line(error)}") from error


def reason_of(error: Exception, wanted: HubFile) -> str:
    """Return why a request to the hub failed, as part of a line."""
    revision = wanted.revision
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the cache has no sound copy of the file"
    if isinstance(error, GatedRepoError):
        return "its owner grants access on request only; ask on its page and log in with: hf auth login"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision or 'main'}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or it is private; private ones need: hf auth login"
    if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
        return f"it has no file {wanted.file}" + (f" at revision {revision}" if revision else "")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    if isinstance(error, TypeError | AttributeError | LookupError | NameError | json.JSONDecodeError):
        return _NOT_A_HUB
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return "its name is too long for the cache"
    if _is_of_cache(error):
        return f"its cache cannot be used ({one_line(error)})"
    if isinstance(error, UnicodeEncodeError):
        return "the token or the address has characters outside ASCII; see HF_TOKEN and HF_ENDPOINT"
    return one_line(error)


def _remedy(error: Exception, wanted: HubFile) -> str:
    local = f"a local copy of its {printable(wanted.file, limit=200)} in place of the name"
    if isinstance(error, GatedRepoError):
        return f"or give {local}"
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return f"name a commit, or give {local}"
    if isinstance(error, RevisionNotFoundError | RepositoryNotFoundError | EntryNotFoundError) and not isinstance(
        error, LocalEntryNotFoundError
    ):
        return f"check the name, or give {local}"
    if _is_of_cache(error):
        return f"set HF_HOME to a folder with room that can be written, or give {local}"
    return f"give {local}, or try again with a connection"


def _is_of_cache(error: Exception) -> bool:
    return isinstance(error, OSError) and (error.filename is not None or error.errno == errno.ENOSPC)
