"""`nap trace render`: the page in a real browser (Debian's package chromium; skips without one), and the pictures."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nap_runtime.cli import main
from nap_runtime.decoding.record import DecodeRecord
from nap_runtime.decoding.state import Kind
from nap_runtime.job import DecodeConfig, SyncPolicy
from nap_runtime.study.page import fill, script_json, trace_page

DRIVE = """<script>
  const slider = document.getElementById("slider");
  slider.value = {to}; slider.dispatchEvent(new Event("input"));
  document.body.dataset.after_input = document.body.dataset.committed;
  if ({press}) document.getElementById("play").click();
</script>"""


class Dom(HTMLParser):
    """Cells of the canvas in order: (classes, text); the body's data; how many marks are in the map."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[tuple[set[str], str]] = []
        self.data: dict[str, str] = {}
        self.marks = 0
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        classes = set(values.get("class", "").split())
        if tag == "body":
            self.data = {key.removeprefix("data-"): value for key, value in values.items()}
        self.marks += "commit" in classes
        self._in_cell = "cell" in classes
        if self._in_cell:
            self.cells.append((classes, ""))

    def handle_data(self, data: str) -> None:
        if self._in_cell and self.cells:
            classes, text = self.cells[-1]
            self.cells[-1] = classes, text + data

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = False


@pytest.fixture(scope="module")
def browse(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Dom]:
    """Open a page and give back its DOM after the scripts have run, and half a minute of virtual time."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium; Debian's package has it")
    profile = tmp_path_factory.mktemp("profile")

    def run(
        page: Path, *, at: int | None = None, size: str = "1240,1150", picture: Path | None = None, dark: bool = False
    ) -> Dom:
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            f"--window-size={size}",
        ]
        flags += ["--virtual-time-budget=30000", "--disable-background-networking", "--no-first-run"]
        flags += [f"--screenshot={picture}"] if picture else ["--dump-dom"]
        flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
        url = page.resolve().as_uri() + ("" if at is None else f"#step={at}")
        done = subprocess.run([chromium, *flags, url], capture_output=True, text=True, timeout=120, check=True)
        return Dom(done.stdout)

    return run


@pytest.fixture(scope="module")
def record(decode_inline: Any, tiny_model: Any, nap_layout: Any, prompt_of: Any) -> DecodeRecord:
    """Three paths on two workers with syncs; some close early and are filled."""
    config = DecodeConfig(
        paths=3, path_tokens=(9, 7, 5), summary_tokens=4, steps=14, sync=SyncPolicy("tokens", every=3)
    )
    decoded = decode_inline(
        tiny_model("llada-tiny"), nap_layout((9, 7, 5)), config, list(map(prompt_of, range(12))), (0, 0, 1)
    )
    found: DecodeRecord = max(decoded.records, key=lambda record: sum(d.kind is Kind.FILL for d in record.deltas))
    return found


def expected(record: DecodeRecord, step: int) -> list[str]:
    """Ids that the canvas shows when `step` steps are done: blank where masked or filled."""
    ids = record.canvas(step)
    filled = {int(at) for d in record.deltas if d.kind is Kind.FILL and d.step < step for at in d.positions}
    masked = record.layout.mask_id
    return ["" if ids[at] == masked or at in filled else str(ids[at]) for at in record.layout.slots]


def test_the_canvas_at_every_step(record: DecodeRecord, browse: Callable[..., Dom], tmp_path: Path) -> None:
    page = tmp_path / "t.html"
    page.write_text(trace_page(record), encoding="utf-8")
    for step in (0, 1, 6, record.steps):
        dom = browse(page, at=step)
        assert [text for _, text in dom.cells] == expected(record, step)
        assert dom.data["step"] == str(step)
        assert dom.data["committed"] == str(sum(len(d.ids) for d in record.commits if d.step < step))
    assert dom.marks == sum(len(d.ids) for d in record.commits)
    fills = sum("fill" in classes for classes, _ in dom.cells)
    assert fills == sum(len(d.ids) for d in record.deltas if d.kind is Kind.FILL) > 0


def test_slider_and_play(record: DecodeRecord, browse: Callable[..., Dom], tmp_path: Path) -> None:
    page = tmp_path / "t.html"
    text = trace_page(record)
    page.write_text(text.replace("</body>", DRIVE.format(to=3, press="false") + "</body>"), encoding="utf-8")
    dom = browse(page)
    assert dom.data["step"] == "3"
    assert [word for _, word in dom.cells] == expected(record, 3)
    page.write_text(text.replace("</body>", DRIVE.format(to=3, press="true") + "</body>"), encoding="utf-8")
    dom = browse(page)  # it plays from there to the end
    assert int(dom.data["after_input"]) < int(dom.data["committed"])
    assert dom.data["step"] == str(record.steps)


def test_a_remasked_slot_is_blank_again(record: DecodeRecord, browse: Callable[..., Dom], tmp_path: Path) -> None:
    """A delta of kind REMASK takes a token away; made up, as the page must show any order of events."""
    first = record.commits[0]
    page = tmp_path / "t.html"
    data = json.loads(re.search(r'json">(.*?)</script>', trace_page(record), re.DOTALL)[1])  # type: ignore[index]
    slot = int(first.positions[0])
    data["deltas"] = [[0, 0, 1, [slot], ["7"], [0.5]], [1, 0, 3, [slot], [""], [1.0]], [2, 0, 4, [slot], ["8"], [0.5]]]
    page.write_text(re.sub(r'(json">).*?(</script>)', lambda m: m[1] + script_json(data) + m[2], trace_page(record),
                           count=1, flags=re.DOTALL), encoding="utf-8")  # fmt: skip
    at = list(record.layout.slots).index(slot)
    assert [browse(page, at=step).cells[at][1] for step in (1, 2, 3)] == ["7", "", "8"]


@pytest.mark.parametrize(
    ("dark", "ground", "paths"),
    [
        (False, (255, 255, 255), ((11, 114, 133), (156, 54, 181), (42, 134, 60))),
        (True, (20, 24, 29), ((79, 195, 217), (217, 163, 234), (105, 201, 125))),
    ],
    ids=["light", "dark"],
)
def test_a_screenshot_has_the_paths_colours(
    record: DecodeRecord, browse: Callable[..., Dom], tmp_path: Path, dark: bool, ground: Any, paths: Any
) -> None:
    image = pytest.importorskip("matplotlib.image")
    page, picture = tmp_path / "t.html", tmp_path / "t.png"
    page.write_text(trace_page(record), encoding="utf-8")
    browse(page, picture=picture, dark=dark)
    pixels = (image.imread(picture)[..., :3] * 255).round().astype(int)
    for colour in paths:
        assert (np.abs(pixels - colour).max(-1) <= 2).sum() > 100, colour
    assert (np.abs(pixels - ground).max(-1) <= 2).mean() > 0.4


def test_the_page_stands_alone(record: DecodeRecord) -> None:
    page = trace_page(record, title="a <b> & @DATA@")
    assert "a &lt;b&gt; &amp; @DATA@" in page  # what is put in is not looked at again
    assert "default-src 'none'" in page
    assert not re.search(r"(?:src|href)\s*=|@import|url\(", page)
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}  # a name space


def test_words_cannot_end_the_script() -> None:
    nasty = "</script><!--<script>&\u2028"
    text = script_json({"word": nasty})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"word": nasty}
    assert fill("@A@ and @B@ and @A@", {"A": "@B@", "B": "1"}) == "@B@ and 1 and @B@"


def test_the_command(tmp_path: Path, record: DecodeRecord, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    trace = tmp_path / "t.nap"
    assert main(["decode", "--trace", str(trace), "--steps", "12", "--json"]) == 0
    capsys.readouterr()
    argv = ["trace", "render", str(trace), "--svg", str(tmp_path / "o.svg"), "--png", str(tmp_path / "o.png")]
    assert main(argv) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("t.html", "o.svg", "o.png")]
    page = html.unescape((tmp_path / "t.html").read_text(encoding="utf-8"))
    assert '"of"' in page or '"the"' in page or '"="' in page  # words, not ids
    assert (tmp_path / "o.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "o.svg").read_bytes()
    assert main(argv) == 0
    assert (tmp_path / "o.svg").read_bytes() == first
    capsys.readouterr()
    for wrong, code, part in (
        ([str(tmp_path / "no.nap")], 2, "No such file"),
        ([str(tmp_path / "o.svg")], 1, "trace:"),
        ([str(trace), "--png", "x.jpg"], 2, "--png: x.jpg does not end in .png"),
    ):
        assert main(["trace", "render", *wrong]) == code
        error = capsys.readouterr().err
        assert part in error
        assert error.count("\n") == 1
