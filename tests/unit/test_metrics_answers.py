"""Reading the boxed answer."""

from __future__ import annotations

import pytest

from nap_runtime.metrics.answers import extract_boxed


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"The final answer is \boxed{17}.", "17"),
        (r"\boxed{1} or rather \boxed{ 2 }", "2"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\left\{ 1, 2 \right\}}", r"\left\{ 1, 2 \right\}"),
        (r"\boxed{a \{ b}", r"a \{ b"),
        (r"\boxed {5}", "5"),
        (r"\boxed{\boxed{3}}", "3"),
        (r"\boxed{4} and \boxed{12", "4"),
        (r"\boxed{", None),
        (r"\boxed{\frac{1}{2}", None),
        (r"\boxed{ }", None),
        ("\\boxed{4\\", None),
        ("17", None),
        ("", None),
    ],
)
def test_extract_boxed(text: str, answer: str | None) -> None:
    assert extract_boxed(text) == answer
