"""The tables and charts of a report as PNG files, drawn by a browser."""

import pathlib
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence

from lsrjax.errors import InputError
from lsrjax.training.report import page, records
from lsrjax.training.report.elements import Element, tag

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--disable-gpu")
_SCALE = 2  # pixels of a picture for one of the page
_WIDTH = 560  # of a chart; tables are as wide as they are
_SECONDS = 120
# Says how large each figure is; the page that it measures is not published.
_MEASURE = """
document.title = [...document.querySelectorAll("figure")].map(figure => {
  const box = figure.getBoundingClientRect();
  return Math.ceil(box.width) + "x" + Math.ceil(box.height);
}).join(" ");
"""
_STYLE = f"""
:root {{ color-scheme: light; }}
body {{ padding: 10px; max-width: none; width: max-content; }}
figure {{ width: {_WIDTH}px; margin: 0 0 20px; }}
figure.wide {{ width: max-content; }}
"""


def write(runs: Sequence[pathlib.Path], folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Writes a picture of each table and chart of results and training.

    Yields:
      The path of each picture.

    Raises:
      InputError: there is no browser, or it draws nothing.
    """
    found = page.figures(records.read(runs))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        draft = pathlib.Path(temporary) / "figures.html"
        draft.write_text(_page(found.values(), tag("script", _MEASURE)), "utf-8")
        said = _browser("--dump-dom", str(draft))
        title = re.search(r"<title>([\dx ]*)</title>", said)
        sizes = title[1].split() if title else []
        for (name, figure), size in zip(found.items(), sizes, strict=True):
            width, height = (int(length) + 20 for length in size.split("x"))
            draft.write_text(_page([figure]), "utf-8")
            picture = folder / f"{name}.png"
            _browser(
                f"--screenshot={picture.absolute()}",
                f"--window-size={width},{height}",
                f"--force-device-scale-factor={_SCALE}",
                str(draft),
            )
            if not picture.is_file():
                raise InputError(f"The browser has drawn no {picture}.")
            yield picture


def _page(figures, script: Element | None = None) -> str:
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script is not None:
        policy += "; script-src 'unsafe-inline'"
    style = tag("style", _STYLE)
    return page.document("figures", style, [*figures], script, policy=policy)


def _browser(*arguments: str) -> str:
    program = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if program is None:
        raise InputError(
            f"--png needs a browser to draw with, and none of {', '.join(_BROWSERS)} is"
            " installed. Install Chromium, or leave --png out."
        )
    try:
        done = subprocess.run(
            [program, *_FLAGS, *arguments],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InputError(f"--png: {program} has drawn nothing ({error}).") from error
    return done.stdout
