"""Draws the README's picture of a report: the top of its page, in a headless Chromium.

    pip install pillow==12.0.0; apt-get install chromium
    python scripts/report.py REPORT.html scripts/report.png
"""

import pathlib
import subprocess
import sys
import tempfile

from PIL import Image

WIDTH, HEIGHT = 1280, 1470


def main(page, picture):
    with tempfile.TemporaryDirectory() as home:
        shot = pathlib.Path(home) / "shot.png"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars"]
        size = [f"--window-size={WIDTH},{HEIGHT}", f"--user-data-dir={home}/profile", f"--screenshot={shot}"]
        subprocess.run(["chromium", *flags, *size, pathlib.Path(page).resolve().as_uri()], check=True, capture_output=True)
        # A picture of flat colours: a palette keeps it small, refined so that lines keep their own colours.
        colours = Image.open(shot).convert("RGB")
        colours.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2).save(picture, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
