"""Export of the page as a folder of static files, for any web server and without sessions."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from iformer.deploy.artifact import record_path, take_place
from iformer.errors import UserError, listed
from iformer.files import copy_file
from iformer.web.assets import PACKAGES
from iformer.web.demo import prepare_page
from iformer.web.manifest import PAGE_FORMAT, network_licence, own_files, page_files

_MANIFEST, _LICENCES = "networks.json", "licences.txt"
_TOP_LEVEL = ("index.html", _MANIFEST, _LICENCES, "networks", "pictures", "runtimes")
"""Files and folders that belong to a page besides `own_files`, if an older page's manifest lists no files."""


def write_page(
    name: str,
    out: Path,
    *,
    assets: str | None = None,
    images: Sequence[str] | None = None,
    licence: str | None = None,
    entry: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a folder with the page, a network, the network's record, the browser runtime and all licences.

    An older page in the folder is replaced atomically. A folder that also holds other files is refused.

    Args:
        name: an artifact for ONNX Runtime or LiteRT, or any name of a network, which is exported to ONNX.
        out: the folder to write.
        assets: source of the runtimes' files; see `iformer.web.assets.load_assets`.
        images: files, folders and globs of photographs for the comparison; None means generated patterns.
        licence: licence of the network; None derives it from the network's provenance.
        entry: which weights to take if a training script's checkpoint holds several.
        report: called with lines of text before steps that take long.

    Returns:
        `out`.

    Raises:
        UserError: the network cannot be used, or `out` holds files that do not belong to a page.
    """
    _check_replaceable(out)
    place = Path(os.path.realpath(out))  # keep a link; replace its target
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".iformer-page-", dir=place.parent) as temporary:
        artifacts, pictures = prepare_page(
            name, ["onnx"], Path(temporary), assets=assets, images=images, entry=entry, report=report
        )
        terms = network_licence(artifacts[0].info, licence)
        files = page_files(artifacts, pictures, title=Path(name).stem, licence=terms, assets=assets)
        new = Path(temporary) / "new"
        for path, resource in files.items():
            target = new / (path or "index.html")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(resource.content, Path):
                copy_file(resource.content, target)
                copy_file(record_path(resource.content), record_path(target))
            else:
                target.write_bytes(resource.content)
        runtimes = sorted({artifact.info.runtime for artifact in artifacts})
        (new / _LICENCES).write_text(licence_text(runtimes, terms), encoding="utf-8")
        written = [path.relative_to(new).as_posix() for path in new.rglob("*") if path.is_file()]
        manifest = json.loads((new / _MANIFEST).read_bytes()) | {"files": sorted(written)}
        (new / _MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        _check_replaceable(out)  # check again, because the export took minutes
        take_place(new, place, displaced=Path(temporary) / "old")
    return out


def licence_text(runtimes: Sequence[str], network: str) -> str:
    """Return the components of a page with the names and texts of their licences."""
    packages = [package for runtime in runtimes for package in PACKAGES[runtime]]
    lines = ["The page: Apache-2.0", f"The network: {network}"]
    lines += [f"{package.name} {package.version}: {package.licence}" for package in packages]
    folder = Path(str(resources.files("iformer.web"))) / "licences"
    names = sorted({"Apache-2.0", *(package.licence for package in packages)})
    texts = [f"{name}\n\n{(folder / f'{name}.txt').read_text(encoding='utf-8')}" for name in names]
    return "\n".join([*lines, "", *texts])


def _check_replaceable(folder: Path) -> None:
    """Raise `UserError` unless the folder is missing, is empty, or holds only a page."""
    if not os.path.exists(folder):
        return
    not_a_page = UserError(f"--out is '{folder}', which is not a page of iformer; give a new folder")
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
    except FileNotFoundError:
        if any(folder.iterdir()):
            raise not_a_page from None
        return  # an empty folder
    except (OSError, ValueError, RecursionError):
        raise not_a_page from None
    if not isinstance(manifest, dict) or manifest.get("format") != PAGE_FORMAT:
        raise not_a_page
    listed_files = manifest.get("files")
    known = {*_TOP_LEVEL, *own_files()} if listed_files is None else set(map(str, listed_files))
    found = [file.relative_to(folder) for file in folder.rglob("*") if not file.is_dir()]
    others = [file.as_posix() for file in found if not known & {file.as_posix(), file.parts[0]}]
    if others:
        raise UserError(
            f"--out is '{folder}', which holds files beside a page: {listed(sorted(others), limit=5)}; they "
            "would be removed with the older page, so move them away, or give a new folder"
        )
