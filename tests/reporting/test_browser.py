"""The page as a browser shows it: headless Chromium, no network."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from medtune.reporting.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --hide-scrollbars"
).split()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the PATH to open the report in")


def browse(page: Path, profile: Path, *flags: str) -> str:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        try:
            shown, _ = process.communicate(timeout=90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its helpers hold the pipe open
            raise
    assert process.returncode == 0
    return shown


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    def shade(path: str) -> Image.Image:
        return Image.new("RGB", (64, 64), (200, 30, 160))

    out = tmp_path_factory.mktemp("browser") / "report.html"
    return write_report(runs, out, title="Four models", samples=2, open_image=shade)


def test_the_browser_parses_every_section_and_table(page, tmp_path):
    shown = browse(page, tmp_path / "profile", "--dump-dom")
    for text in ("Four models", "Paired comparison with untuned", "McNemar p", "Worst cases", "unread"):
        assert text in shown
    written = page.read_text(encoding="utf-8")
    for tag in ("<table", "<details", "<section", "<caption", "<img"):
        assert shown.count(tag) == written.count(tag) > 0


def test_the_screenshot_shows_the_page_with_its_plots_and_pictures(page, tmp_path):
    picture = tmp_path / "page.png"
    browse(page, tmp_path / "profile", f"--screenshot={picture}", "--window-size=1200,12000")
    with Image.open(picture) as image:
        colours = dict((colour, count) for count, colour in image.convert("RGB").getcolors(1 << 24))
        assert image.size == (1200, 12000)
    assert 0.5 < colours[(255, 255, 255)] / (1200 * 12000) < 0.97
    for drawn in ((0x2E, 0x9E, 0x4F), (0x25, 0x63, 0xC4), (0xD1, 0x34, 0x2F)):  # each run's colour, in plots and tables
        assert colours.get(drawn, 0) > 500
    assert colours.get((200, 30, 160), 0) > 10_000  # the sample images, embedded
