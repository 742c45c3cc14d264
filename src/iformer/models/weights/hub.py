"""The released ImageNet-1k weights, through huggingface_hub's cache."""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from iformer._version import __version__
from iformer.config.metadata import Metadata
from iformer.config.variants import Release, list_models, release
from iformer.errors import WeightsError
from iformer.models.weights.checkpoint import one_line

WEIGHTS_FILE = "model.safetensors"
_COMMIT = re.compile("[0-9a-f]{40}")


def fetch_released(name: str, revision: str | None = None) -> Path:
    """The local path of a network's released weights, in timm's key names; downloaded if not cached.

    Args:
        name: a name of `list_models`.
        revision: a commit, tag or branch of the hub repository to pin; None takes its newest.

    Raises:
        UnknownNameError: no such network.
        WeightsError: there are no released weights of it, or they cannot be fetched; one line that names
            the repository, why, and what to do.
    """
    repo = released(name).hub_repo
    # read now and not, as the client does, when it was imported
    endpoint = os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    try:
        return _download(repo, revision, endpoint)
    except Exception as error:  # the transport's own errors differ between the client's versions
        raise WeightsError(
            f"cannot fetch {repo} from {endpoint}: {_reason(error, revision)}; "
            f"pass weights=PATH with a local copy of its {WEIGHTS_FILE}, or try again with a connection"
        ) from error


def _download(repo: str, revision: str | None, endpoint: str) -> Path:
    if revision is not None and _COMMIT.fullmatch(revision):  # a commit never changes: no need to ask the hub
        cached = huggingface_hub.try_to_load_from_cache(repo, WEIGHTS_FILE, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    download = partial(huggingface_hub.hf_hub_download, repo, WEIGHTS_FILE, revision=revision)
    try:
        # one question first: without a network the download itself would try for half a minute
        url = huggingface_hub.hf_hub_url(repo, WEIGHTS_FILE, revision=revision, endpoint=endpoint)
        huggingface_hub.get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        try:
            return Path(download(local_files_only=True))
        except LocalEntryNotFoundError:
            raise error from None
    return Path(download(endpoint=endpoint, library_name="iformer", library_version=__version__))


def released(name: str) -> Release:
    """Where the released weights of a network are.

    Raises:
        UnknownNameError: no such network.
        WeightsError: it was never released; the message names those that were.
    """
    found = release(name)
    if found is None:
        names = ", ".join(other for other in list_models() if release(other) is not None)
        raise WeightsError(f"there are no released weights of {name}; there are of {names}")
    return found


def released_metadata(name: str, path: Path) -> Metadata:
    """What is known of released weights at `path`: ImageNet's class names, published accuracy, origin."""
    found = released(name)
    return Metadata(
        class_names=imagenet_class_names(),
        metrics={"top1": found.top1, "top5": found.top5},
        # in the hub's cache the file lies in a folder named after its commit
        provenance={"hub_repo": found.hub_repo, "hub_revision": path.parent.name, "data": "ImageNet-1k"},
    )


def imagenet_class_names() -> tuple[str, ...]:
    """ImageNet-1k's 1000 class names in the order of the networks' outputs, no two the same.

    The first of each class's synonyms; where two classes share it, all synonyms; where they share those
    too (the two cranes), the WordNet id follows.
    """
    from timm.data.imagenet_info import ImageNetInfo  # deferred: importing timm takes a second

    info: Any = ImageNetInfo()  # timm has no types
    indices = range(len(info.label_names()))
    synonyms = [info.index_to_description(index) for index in indices]
    short = [text.partition(",")[0] for text in synonyms]
    short_count, full_count = Counter(short), Counter(synonyms)
    names = []
    for index in indices:
        if short_count[short[index]] == 1:
            names.append(short[index])
        elif full_count[synonyms[index]] == 1:
            names.append(synonyms[index])
        else:
            names.append(f"{synonyms[index]} ({info.index_to_label_name(index)})")
    return tuple(names)


def _reason(error: Exception, revision: str | None) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set and the file is not in the cache"
    if isinstance(error, GatedRepoError):
        return "access to it has to be asked for"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository"
    if isinstance(error, EntryNotFoundError):
        return f"it has no file {WEIGHTS_FILE}" + (f" at revision {revision}" if revision else "")
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return f"the server answered {error.response.status_code}"
    return one_line(error)
