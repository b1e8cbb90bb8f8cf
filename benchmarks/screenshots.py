"""Pictures for the README, of real pages in a real browser.

    python benchmarks/screenshots.py [--run-dir runs/demo] [--out docs/images]

Writes report.png (the top of the run's report) and report_card.png, of those pages that a run folder holds; `make demo`
leaves both. Needs Chromium and the `dev` extra.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

from browser import NoBrowserError, chromium, opened
from PIL import Image
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"report.png": "report.html", "report_card.png": "report_card/report_card.html"}
WIDTH, HEIGHT = 1120, 1100  # CSS pixels: the tiles, the total and the terms of a report
COLOURS = 128  # plots have few: a third of the size, and nobody sees it


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-dir", type=Path, default=ROOT / "runs" / "demo", help="what benchmarks/demo.py has made")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images", help="where the pictures go")
    given = parser.parse_args()
    console = Console(stderr=True)
    if not any((given.run_dir / page).is_file() for page in PAGES.values()):
        console.print(f"{given.run_dir} holds no {' and no '.join(PAGES.values())}: run `make demo` first.")
        return 1
    given.out.mkdir(parents=True, exist_ok=True)
    try:
        for name, size in take(given.run_dir, given.out).items():
            console.print(f"{given.out / name}: {size / 1024:.0f} KiB", highlight=False)
    except NoBrowserError as error:
        console.print(str(error), markup=False)
        return 1
    return 0


def take(run_dir: Path, out: Path) -> dict[str, int]:
    """Size in bytes of each picture. Raises NoBrowserError without Chromium."""
    sizes = {}
    with chromium() as browser:
        for name, page_file in PAGES.items():
            if not (run_dir / page_file).is_file():
                continue
            with opened(browser, run_dir / page_file, width=WIDTH, height=HEIGHT) as (page, _):
                picture = Image.open(io.BytesIO(page.screenshot()))
            few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
            few.save(out / name, optimize=True)
            sizes[name] = (out / name).stat().st_size
    return sizes


if __name__ == "__main__":
    sys.exit(main())
