"""The page as a folder for any web server: no session, nothing but files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from iformer.deploy.artifact import record_path
from iformer.errors import UserError
from iformer.web.assets import PACKAGES
from iformer.web.demo import prepare_page
from iformer.web.manifest import PAGE_FORMAT, network_licence, page_files

_MANIFEST = "networks.json"


def write_page(
    name: str,
    out: Path,
    *,
    assets: str | None = None,
    images: Sequence[str] | None = None,
    licence: str | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write a folder with the page, a network, its record, the browser's runtime and all licences.

    An older page in that folder is replaced in one step.

    Args:
        name: an artifact for ONNX Runtime or LiteRT, or any name of a network, which is exported to ONNX.
        out: the folder.
        assets: see `iformer.web.assets.load_assets`.
        images: see `iformer.web.demo.open_demo`; so are `licence` and `report`.

    Returns:
        `out`.

    Raises:
        UserError: the network cannot be used, or `out` holds something that is not a page.
    """
    if out.exists() and not _is_page_or_empty(out):
        raise UserError(f"--out is '{out}', which is not a page of iformer; give a new folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".iformer-page-", dir=out.parent) as temporary:
        artifacts, pictures = prepare_page(name, ["onnx"], Path(temporary), assets, images, report)
        terms = network_licence(artifacts[0].info, licence)
        files = page_files(artifacts, pictures, title=Path(name).stem, licence=terms, assets=assets)
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        for path, resource in files.items():
            target = new / (path or "index.html")
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(resource.content, Path):
                shutil.copyfile(resource.content, target)
                shutil.copyfile(record_path(resource.content), record_path(target))
            else:
                target.write_bytes(resource.content)
        runtimes = sorted({artifact.info.runtime for artifact in artifacts})
        (new / "licences.txt").write_text(licence_text(runtimes, terms), encoding="utf-8")
        if out.exists():
            os.replace(out, old)
        os.replace(new, out)
    return out


def licence_text(runtimes: Sequence[str], network: str) -> str:
    """Return what a page consists of, under which licences, with their texts."""
    packages = [package for runtime in runtimes for package in PACKAGES[runtime]]
    lines = ["The page: Apache-2.0", f"The network: {network}"]
    lines += [f"{package.name} {package.version}: {package.licence}" for package in packages]
    folder = Path(str(resources.files("iformer.web"))) / "licences"
    names = sorted({"Apache-2.0", *(package.licence for package in packages)})
    texts = [f"{name}\n\n{(folder / f'{name}.txt').read_text(encoding='utf-8')}" for name in names]
    return "\n".join([*lines, "", *texts])


def _is_page_or_empty(folder: Path) -> bool:
    if not folder.is_dir():
        return False
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return isinstance(manifest, dict) and manifest.get("format") == PAGE_FORMAT
    except FileNotFoundError:
        return not any(folder.iterdir())
    except (OSError, ValueError):
        return False
