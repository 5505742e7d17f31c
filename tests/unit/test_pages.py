"""Pages in light and in dark: one palette that both have whole, no colour beside it, legible text.

Contrast is WCAG 2's, from relative luminance; 4.5 is asked of text, 3 of marks and lines that carry meaning.
"""

from __future__ import annotations

import re

import pytest

from nap_runtime.study.page import PAGES, page_of

RULE = re.compile(r"([^{};]+)\{([^{}]*)\}")
NAMED = r"(?<![-\w])(?:white|black|red|green|blue|gr[ae]y|silver)(?![-\w])"
LITERAL = re.compile(rf"#[0-9a-f]{{3,8}}\b|\brgba?\(|\bhsla?\(|{NAMED}", re.IGNORECASE)
PATHS = ("path-0", "path-1", "path-2", "path-3", "path-4", "path-5", "summary")
NAMES = ("report", "trace")
Palette = dict[str, str]


def variables(text: str) -> Palette:
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6});", text))


def palettes() -> dict[str, Palette]:
    text = re.sub(r"/\*.*?\*/", "", (PAGES / "palette.css").read_text(encoding="utf-8"), flags=re.DOTALL)
    light, _, dark = text.partition("@media screen and (prefers-color-scheme: dark)")
    return {"light": variables(light), "dark": variables(dark.partition("@media print")[0])}


def body(name: str) -> str:
    """A page as it is written, its palette left out."""
    text = (PAGES / f"{name}.html").read_text(encoding="utf-8")
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def rules(name: str) -> list[tuple[str, dict[str, str]]]:
    style = body(name).partition("<style>")[2].partition("</style>")[0]
    return [
        (selector.strip(), dict(re.findall(r"([\w-]+):\s*([^;]+?)\s*(?:;|$)", inner.strip())))
        for selector, inner in RULE.findall(style)
    ]


def channels(colour: str) -> list[float]:
    return [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]


def luminance(rgb: list[float]) -> float:
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[float], other: list[float]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def resolved(value: str, palette: Palette, path: str) -> list[float]:
    """`var(--x)`, or a mixture in sRGB of two of them; `--c` is a path's colour."""
    known = {**palette, "c": palette[path]}
    mixed = re.fullmatch(r"color-mix\(in srgb, var\(--([\w-]+)\) (\d+)%, var\(--([\w-]+)\)\)", value)
    if mixed:
        share, a, b = int(mixed[2]) / 100, channels(known[mixed[1]]), channels(known[mixed[3]])
        return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]
    plain = re.fullmatch(r"var\(--([\w-]+)\)", value)
    assert plain, value
    return channels(known[plain[1]])


def test_contrast_of_known_colours() -> None:
    assert contrast(channels("#000000"), channels("#ffffff")) == pytest.approx(21)
    assert contrast(channels("#777777"), channels("#ffffff")) == pytest.approx(4.48, abs=0.01)


def test_both_palettes_have_the_same_names_and_differ() -> None:
    light, dark = palettes().values()
    assert set(light) == set(dark) >= {"ink", "paper", *PATHS}
    assert luminance(channels(light["paper"])) > 0.9
    assert luminance(channels(dark["paper"])) < 0.05
    assert light["panel"] == dark["panel"] == "#ffffff"  # figures are drawn for light ground


@pytest.mark.parametrize("name", NAMES)
def test_pages_hold_no_colour_of_their_own(name: str) -> None:
    text = body(name)
    assert text.count("@PALETTE@") == 1
    style, rest = text.partition("</style>")[::2]
    declared = [value for _, values in rules(name) for value in values.values()]
    assert not [value for value in declared if LITERAL.search(value)]
    code = rest.partition('<script id="data"')[2]
    assert not LITERAL.findall(code)
    known = set(palettes()["light"]) | {"c"}
    assert set(re.findall(r"var\(--([\w-]+)\)", style + rest)) <= known
    filled = page_of(name, {key: "" for key in re.findall(r"@([A-Z]+)@", text) if key != "PALETTE"})
    assert "color-scheme: light dark" in filled
    assert "@PALETTE@" not in filled


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_text_is_legible_on_its_ground(name: str, scheme: str) -> None:
    """Each rule that sets a text's colour, on the ground it sets or else the page's; in every path's colour."""
    palette, seen = palettes()[scheme], 0
    for selector, values in rules(name):
        ink = values.get("color") or values.get("fill") or ("var(--ink)" if "background" in values else None)
        ground = values.get("background", "var(--paper)")
        if ink in (None, "transparent") or "gradient" in ground or "#marks" in selector or selector == "figure svg":
            continue
        for path in PATHS:
            found = contrast(resolved(ink, palette, path), resolved(ground, palette, path))
            assert found >= 4.5, (scheme, selector, path, round(found, 2))
            seen += 1
    assert seen >= 4 * len(PATHS)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_marks_stand_out(scheme: str) -> None:
    palette = palettes()[scheme]
    for name in (*PATHS, "sync", "cursor", "focus"):
        assert contrast(channels(palette[name]), channels(palette["paper"])) >= 3, (scheme, name)
    for words in ("ink", "soft"):
        assert contrast(channels(palette[words]), channels(palette["mask"])) >= 4.5


def test_figures_stand_on_their_panel() -> None:
    assert ("figure svg", "var(--panel)") in [
        (selector, values.get("background")) for selector, values in rules("report")
    ]


def test_paths_on_the_page_have_the_colours_of_the_figures() -> None:
    """But for a shade: words stand on them here."""
    from nap_runtime.study.figures import COLOURS

    light = palettes()["light"]
    for path, colour in zip(PATHS, COLOURS, strict=False):
        apart = [abs(a - b) for a, b in zip(channels(light[path]), channels(colour), strict=True)]
        assert max(apart) <= 0.03, path
