"""Write the tables of the docs that are made from the records in `benchmarks/results`.

A page marks the place of a table with `<!-- table: NAME -->` and `<!-- end of table -->`, and figures in a
line with `<!-- figure: NAME -->` and `<!-- end of figure -->`. A test fails when a page and the records disagree.

    python benchmarks/tables.py            # rewrite the pages
    python benchmarks/tables.py --check    # only say which pages are out of date
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cpu_tables import FIGURES as CPU_FIGURES
from cpu_tables import TABLES as CPU_TABLES
from cpu_tables import short
from machine_records import RESULTS, records
from peer_tables import peer_table

from iformer.tables import markdown_table

ROOT = Path(__file__).parents[1]
_PLACE = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_FIGURE = re.compile(r"(<!-- figure: ([\w-]+) -->).*?(<!-- end of figure -->)", re.DOTALL)


def figures(record: str) -> dict[str, Any]:
    """The figures of the only record in a file."""
    result: dict[str, Any] = json.loads((RESULTS / f"{record}.json").read_text())["figures"]
    return result


def by_size(rows: list[list[str]]) -> list[list[str]]:
    """Rows that begin with a network's short name, smallest network first; the order of equal ones stays."""
    sizes = ("T", "S", "M", "L", "L2", "H")
    return sorted(rows, key=lambda row: sizes.index(row[0].partition(",")[0]))


# ------------------------------------------------------------------------------------------------------------ GPU

_FORMS = ("timm amp", "timm amp, channels-last", "timm fused, channels-last", "iformer")


def _gpu_inference(batch: int) -> str:
    rows = []
    for what, forms in figures("gpu")["inference"].items():
        network, precision, size = what.split(", ")
        if precision == "bf16" and size == f"batch {batch}":
            cells = [f"{forms[name]['images/s']:,.0f}" for name in _FORMS]
            against = forms["timm fused, channels-last"]["median_ms"] / forms["iformer"]["median_ms"]
            cells += [f"{forms['iformer']['times as fast as timm amp']:.2f}x", f"{against:.2f}x"]
            graphs = [forms[f"{name}, CUDA graph"] for name in ("timm fused, channels-last", "iformer")]
            cells += [
                ", ".join(f"{graph['images/s']:,.0f}" for graph in graphs)
                + f" ({graphs[0]['median_ms'] / graphs[1]['median_ms']:.2f}x)"
            ]
            rows.append([short(network), *cells])
    columns = [
        *("network", "timm amp", "timm amp, channels-last", "timm fused, channels-last", "iFormer"),
        *("to timm amp", "to timm fused", "CUDA graphs: timm fused, iFormer"),
    ]
    return markdown_table(columns, by_size(rows))


def _gpu_before() -> str:
    """The same folded networks before and after the change of their kernels, at batch 256."""
    rows = []
    for name in ("iformer_t", "iformer_s", "iformer_m", "iformer_l"):
        ratios = []
        for record in ("gpu_before", "gpu"):
            forms = figures(record)["inference"][f"{name}, bf16, batch 256"]
            ratios.append(forms["timm fused, channels-last"]["median_ms"] / forms["iformer"]["median_ms"])
        rows.append([short(name), *(f"{ratio:.2f}x" for ratio in ratios)])
    return markdown_table(["network", "cuDNN's convolution", "matrix product with bias"], rows)


def _gpu_ratios(what: str, suffix: str = "") -> str:
    """How many times as fast a folded network is as timm's fused one, on two machines."""
    ratios = []
    for record in ("gpu", "gpu_second"):
        forms = figures(record)["inference"][what]
        theirs, ours = (forms[f"{name}{suffix}"] for name in ("timm fused, channels-last", "iformer"))
        ratios.append(f"{theirs['median_ms'] / ours['median_ms']:.2f}x")
    return ", ".join(ratios)


def _gpu_second() -> str:
    """Folded networks against timm's fused ones on two machines, eager and as CUDA graphs."""
    measured = [(suffix, batch) for suffix in ("", ", CUDA graph") for batch in (256, 32, 1)]
    rows = [
        [short(name), *(_gpu_ratios(f"{name}, bf16, batch {batch}", suffix) for suffix, batch in measured)]
        for name in ("iformer_t", "iformer_s", "iformer_m", "iformer_l")
    ]
    columns = [f"{'CUDA graph' if suffix else 'eager'}, batch {batch}" for suffix, batch in measured]
    return markdown_table(["network", *columns], rows)


def _gpu_training() -> str:
    rows = []
    for record in ("gpu_before", "gpu"):
        for what, sides in figures(record)["training step"].items():
            network, form = what.split(", ")
            timm = sides.get("timm, channels-last", sides["timm"])
            plain = sides["timm"] if "timm, channels-last" in sides else None
            rows.append(
                [
                    f"{short(network)}, {form}",
                    "" if plain is None else f"{plain['images/s']:,.0f}",
                    f"{timm['images/s']:,.0f}",
                    f"{sides['iformer']['images/s']:,.0f}",
                    f"{timm['median_ms'] / sides['iformer']['median_ms']:.2f}x",
                    f"{timm['peak GiB']:.1f}, {sides['iformer']['peak GiB']:.1f}",
                ]
            )
    columns = [
        "step",
        "timm amp",
        "timm amp, channels-last",
        "iFormer",
        "to channels-last",
        "peak GiB: timm, iFormer",
    ]
    return markdown_table(columns, by_size(rows))


def _gpu_loop() -> str:
    rows = [
        [
            short(network),
            *(f"{sides[name]['images/s']:,.0f}" for name in ("timm", "iformer")),
            *(f"{100 * sides[name]['data wait']:.0f} %" for name in ("timm", "iformer")),
        ]
        for network, sides in figures("gpu_before")["training loop"].items()
    ]
    return markdown_table(
        ["network", "timm, images/s", "iFormer, images/s", "timm waits for data", "iFormer waits for data"],
        by_size(rows),
    )


def _gpu_attention() -> str:
    rows = [
        [
            what,
            *(f"{row[name]['median_ms']:.2f}" for name in ("stored", "fused")),
            f"{row['fused is faster by']:.2f}x",
        ]
        for what, row in figures("gpu")["attention"].items()
    ]
    return markdown_table(["attention", "scores stored, ms", "fused kernel, ms", "ratio"], rows)


def _gpu_large() -> str:
    found: dict[str, dict[str, Any]] = figures("gpu")["large images"]
    names = list(dict.fromkeys(what.rpartition(", ")[0] for what in found))
    sizes = list(dict.fromkeys(what.rpartition(", ")[2] for what in found))
    rows = [[name, *(f"{found[f'{name}, {size}']['median_ms']:.2f}" for size in sizes)] for name in names]
    return markdown_table(["ms at batch 1, bf16", *sizes], rows)


# -------------------------------------------------------------------------------------------------------- browser


def _browser() -> str:
    rows = [
        [
            name,
            f"{row['python ms']:.1f}",
            f"{row['browser ms']:.1f}",
            f"{row['ratio']:.2f}x",
            f"{min(row['ratios']):.2f}x to {max(row['ratios']):.2f}x",
        ]
        for name, row in records("browser")[-1]["figures"]["networks"].items()
    ]
    return markdown_table(["network", "Python, ms", "Chromium, ms", "ratio", "range over the blocks"], rows)


# ------------------------------------------------------------------------------------------------------------ ARM


def _arm() -> str:
    rows = []
    for name, row in figures("arm")["rows"].items():
        runtime, precision = name.split()
        beside = row["arm to x86"]
        rows.append(
            [
                f"{_RUNTIMES[runtime]}, {precision}",
                str(row["photographs"]),
                f"{beside['max abs error']:.1e} ({beside['max relative error']:.1e})",
                f"{100 * beside['top-1 agreement']:.2f} %",
                # the accuracy on few photographs says nothing
                *(f"{row['top-1'][at]:.2f} %" if row["photographs"] >= 100 else "" for at in _SIDES),
            ]
        )
    columns = ["artifact", "photographs", "largest logit error", "same first class"]
    return markdown_table([*columns, "top-1 on ARM", "on x86", "PyTorch, fp32"], rows)


_SIDES = ("arm", "x86", "network")
_RUNTIMES = {"onnx": "ONNX Runtime", "litert": "LiteRT", "ncnn": "ncnn"}


TABLES: dict[str, Callable[[], str]] = {
    "gpu-inference-256": lambda: _gpu_inference(256),
    "gpu-inference-32": lambda: _gpu_inference(32),
    "gpu-inference-1": lambda: _gpu_inference(1),
    "gpu-before": _gpu_before,
    "gpu-second": _gpu_second,
    "gpu-training": _gpu_training,
    "gpu-loop": _gpu_loop,
    "gpu-attention": _gpu_attention,
    "gpu-large": _gpu_large,
    **CPU_TABLES,
    "browser": _browser,
    "arm": _arm,
    "peers": peer_table,
}
FIGURES: dict[str, Callable[[], str]] = {
    "gpu-over-timm": lambda: _gpu_ratios("iformer_m, bf16, batch 256"),
    **CPU_FIGURES,
}


def pages() -> list[Path]:
    """The pages that may have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def with_tables(text: str) -> str:
    """The text of a page with each of its marked tables and figures made from the records."""
    text = _PLACE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n\n{match[3]}", text)
    return _FIGURE.sub(lambda match: f"{match[1]}{FIGURES[match[2]]()}{match[3]}", text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the pages, or with --check name those that are out of date; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args(arguments)
    stale = []
    for page in pages():
        text = page.read_text()
        if (made := with_tables(text)) != text:
            stale.append(page)
            if not options.check:
                page.write_text(made)
    for page in stale:
        print(f"{page.relative_to(ROOT)}: {'is out of date' if options.check else 'rewritten'}")
    return 1 if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
