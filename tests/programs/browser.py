"""A headless browser, as users have it: what it draws of a page and complains of."""

import shutil
import subprocess

import pytest

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
    None,
)
needed = pytest.mark.skipif(PROGRAM is None, reason="no Chromium or Chrome")


def opened(page, *flags, width=1280):
    """The document after its scripts, and the lines of the browser's console."""
    done = subprocess.run(
        [PROGRAM, "--headless=new", "--no-sandbox", "--disable-gpu"]
        + ["--enable-logging=stderr", f"--window-size={width},900", *flags]
        + ["--dump-dom", str(page)],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout, console
