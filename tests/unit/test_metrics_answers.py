"""Reading answers and comparing them: a table of outputs as LLaDA, Dream, GSM8K and MATH write them."""

from __future__ import annotations

import json
import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nap_runtime.metrics.algebra import NotAlgebraError, simplify
from nap_runtime.metrics.answers import canonical, extract_boxed, find_answer, find_choice, read_answer, same_answer

NAP = "By analyzing multiple reasoning processes above, I concluded that: The final answer is "

# What a model wrote; the answer as it stands there; the right answer; whether it is right.
TABLE: list[tuple[str, str | None, str, bool]] = [
    # NAP summaries
    (NAP + r"\boxed{17}.", "17", "17", True),
    (NAP + r"\boxed{1,018}.", "1,018", "1018", True),
    (NAP + r"\boxed{\frac{3}{4}}.", r"\frac{3}{4}", "0.75", True),
    (NAP + r"\boxed{\$18}.", r"\$18", "18", True),
    (NAP + r"\boxed{18 \text{ dollars}}.", r"18 \text{ dollars}", "18", True),
    (NAP + r"\boxed{-10}.", "-10", "-10", True),
    (NAP + r"\boxed{−10}.", "−10", "-10", True),
    (NAP + r"\boxed{}.", None, "10", False),
    (NAP + r"\boxed{17", "17", "17", True),
    (NAP + r"\boxed{\text{No answer}}.", None, "10", False),
    (NAP + r"\boxed{\text{Evelyn}}.", r"\text{Evelyn}", r"\text{Evelyn}", True),
    (NAP + r"\boxed{Evelyn}", "Evelyn", r"\text{Evelyn}", True),
    (NAP + r"\boxed{\boxed{9}}.", "9", "9", True),
    (NAP + r"\boxed{20\%}.", r"20\%", "20", True),
    (NAP + r"\boxed{x = 5}.", "x = 5", "5", True),
    # a computation behind "answer is": its result
    ("The answer is 10 - 3 = 7.", "7", "7", True),
    ("The answer is $20 + $5.50 = $25.50.", "25.50", "25.5", True),
    ("The answer is 2 * 3 + 1 = 6 + 1 = 7 apples.", "7", "7", True),
    ("The answer is 8 - this is because 10 - 2 = 8.", "8", "8", True),
    ("The answer is 10 - 3 = 7 - 2", "10", "7", False),
    ("The answer is 3:30 p.m.", "3:30 p.m", "3:30 pm", True),
    # GSM8K's own marks, and models that imitate them
    ("She makes 9 * 2 = $<<9*2=18>>18 every day.\n#### 18", "18", "18", True),
    ("So 4000+1000=5000.\n#### 5,000", "5,000", "5000", True),
    ("#### 109,200,000", "109,200,000", "109,200,000", True),
    ("#### $70,000", "70,000", "70000", True),
    ("#### -3", "-3", "-3", True),
    ("#### 18\n\nQuestion: Tom has 5 apples. How many", "18", "18", True),
    ("#### 5 #### 7", "7", "7", True),
    ("####18", "18", "18", True),
    ("#### 18.", "18", "18", True),
    ("#### 18 dollars", "18 dollars", "18", True),
    ("#### 18.00", "18.00", "18", True),
    ("#### 2.5", "2.5", "5/2", True),
    ("#### **64**", "64", "64", True),
    ("#### 1/2", "1/2", "0.5", True),
    ("#### 50%", "50%", "50", True),
    ("#### 3 1/2", "3 1/2", "3.5", True),
    ("####", None, "3", False),
    ("#### 6 eggs per day", "6 eggs per day", "6", True),
    ("#### 60 km/h", "60 km/h", "60", True),
    ("#### 181", "181", "18", False),
    # boxed answers of MATH, LLaDA and Dream
    (r"Therefore $\boxed{\left( 3, \frac{\pi}{2} \right)}.$", r"\left( 3, \frac{\pi}{2} \right)", r"(3,\pi/2)", True),
    (r"so $p - q$ is $\boxed{p - q}$.", "p - q", "p-q", True),
    (r"$\boxed{-q+p}$", "-q+p", "p - q", True),
    (r"$\boxed{\dfrac{14}{3}}$", r"\dfrac{14}{3}", r"\frac{14}{3}", True),
    (r"$\boxed{\tfrac{28}{6}}$", r"\tfrac{28}{6}", r"\frac{14}{3}", True),
    (r"$\boxed{14/3}$", "14/3", r"\frac{14}{3}", True),
    (r"$\boxed{4.67}$", "4.67", r"\frac{14}{3}", False),
    (r"$\boxed{90^\circ}$", r"90^\circ", "90^{\\circ}", True),
    (r"$\boxed{90}$", "90", r"90^\circ", True),
    (r"$\boxed{90°}$", "90°", r"90^\circ", True),
    (r"$\boxed{90 \text{ degrees}}$", r"90 \text{ degrees}", r"90^\circ", True),
    (r"$\boxed{3\sqrt{13}}$", r"3\sqrt{13}", r"3\sqrt{13}", True),
    (r"$\boxed{\sqrt{117}}$", r"\sqrt{117}", r"3\sqrt{13}", True),
    (r"$\boxed{3\sqrt13}$", r"3\sqrt13", r"3\sqrt{13}", True),
    (r"$\boxed{3√13}$", "3√13", r"3\sqrt{13}", True),
    (r"$\boxed{3\sqrt{12}}$", r"3\sqrt{12}", r"3\sqrt{13}", False),
    (r"$\boxed{6 - 5i}$", "6 - 5i", "6-5i", True),
    (r"$\boxed{-5i + 6}$", "-5i + 6", "6-5i", True),
    (r"$\boxed{6 + 5i}$", "6 + 5i", "6-5i", False),
    (r"$\boxed{\pi}$", r"\pi", r"\pi", True),
    (r"$\boxed{3.14159}$", "3.14159", r"\pi", False),
    (r"$\boxed{1,-2}$", "1,-2", "-2, 1", True),
    (r"$\boxed{-2 \text{ and } 1}$", r"-2 \text{ and } 1", "1,-2", True),
    (r"$\boxed{1}$", "1", "1,-2", False),
    (r"$\boxed{3, 5, 7}$", "3, 5, 7", "3,5,7", True),
    (r"$\boxed{52_8}$", "52_8", "52_{8}", True),
    (r"$\boxed{52}$", "52", "52_8", False),
    (r"$\boxed{4210_{5}}$", "4210_{5}", "4210_5", True),
    (r"$\boxed{x^5 - x^4 + x^3 - x^2 + x - 1}$", "x^5 - x^4 + x^3 - x^2 + x - 1", "x^5+x^3+x-1-x^4-x^2", True),
    (r"$\boxed{(6,31,-1)}$", "(6,31,-1)", "(6, 31, -1)", True),
    (r"$\boxed{(31,6,-1)}$", "(31,6,-1)", "(6, 31, -1)", False),
    (r"$\boxed{[6,31]}$", "[6,31]", "(6,31)", False),
    (r"$\boxed{(3,4]}$", "(3,4]", r"\left(3, 4\right]", True),
    (r"$\boxed{\cot x}$", r"\cot x", r"\cot{x}", True),
    (r"$\boxed{\frac{3\sqrt{3}}{4}}$", r"\frac{3\sqrt{3}}{4}", r"\frac{3}{4}\sqrt{3}", True),
    (r"$\boxed{\frac{9}{4\sqrt{3}}}$", r"\frac{9}{4\sqrt{3}}", r"\frac{3\sqrt{3}}{4}", True),
    (r"$\boxed{1 \pm \sqrt{19}}$", r"1 \pm \sqrt{19}", r"1+\sqrt{19}, 1-\sqrt{19}", True),
    (r"$\boxed{\{1\pm\sqrt{5},-2\}}$", r"\{1\pm\sqrt{5},-2\}", r"\{-2, 1-\sqrt5, 1+\sqrt5\}", True),
    (r"$\boxed{\text{east}}$", r"\text{east}", "East", True),
    (r"$\boxed{\text{west}}$", r"\text{west}", r"\text{east}", False),
    (
        r"$\boxed{\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}}$",
        r"\begin{pmatrix} -1/3 \\ 2/3 \\ 5/3 \end{pmatrix}",
        r"\begin{pmatrix}-\frac13\\\frac{2}{3}\\\frac{5}{3}\end{pmatrix}",
        True,
    ),
    (
        r"$\boxed{\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}}$",
        r"\begin{pmatrix} -1 & 0 \\ 0 & -1 \end{pmatrix}",
        r"\begin{pmatrix} -1 & 0 \\ 0 & 1 \end{pmatrix}",
        False,
    ),
    (r"$\boxed{(a+5)(b+2)}$", "(a+5)(b+2)", "(b+2)(a+5)", True),
    (r"$\boxed{ab+2a+5b+10}$", "ab+2a+5b+10", "(a+5)(b+2)", True),
    (r"$\boxed{\frac43}$", r"\frac43", r"\frac{4}{3}", True),
    (r"$\boxed{\frac 59}$", r"\frac 59", r"\frac{5}{9}", True),
    (r"$\boxed{\frac{5}{9} }$", r"\frac{5}{9}", r"\frac 59", True),
    (r"$\boxed{\frac9{19}}$", r"\frac9{19}", "9/19", True),
    (r"$\boxed{\frac{270}{7}}$", r"\frac{270}{7}", r"\frac{270}7\text{ degrees}", True),
    (r"$\boxed{.0000672}$", ".0000672", "0.0000672", True),
    (r"$\boxed{6.72 \times 10^{-5}}$", r"6.72 \times 10^{-5}", ".0000672", True),
    (r"$\boxed{6.72e-5}$", "6.72e-5", ".0000672", True),
    (r"$\boxed{5x - 7y + 11z + 4 = 0}$", "5x - 7y + 11z + 4 = 0", "7y - 5x - 11z = 4", True),
    (r"$\boxed{5x - 7y + 11z - 4 = 0}$", "5x - 7y + 11z - 4 = 0", "5x-7y+11z+4=0", False),
    (r"$\boxed{(2,\infty)}$", r"(2,\infty)", r"(2, \infty)", True),
    (r"$\boxed{(2,∞)}$", "(2,∞)", r"(2, \infty)", True),
    (r"$\boxed{10,\!080}$", r"10,\!080", "10080", True),
    (r"$\boxed{11,\! 111,\! 111,\! 100}$", r"11,\! 111,\! 111,\! 100", "11,111,111,100", True),
    (r"$\boxed{10{,}080}$", "10{,}080", r"10,\!080", True),
    (r"$\boxed{58\,500}$", r"58\,500", "58,500", True),
    (r"$\boxed{\text{(C)}}$", r"\text{(C)}", "C", True),
    (r"$\boxed{C}$", "C", r"\text{(C)}", True),
    (r"$\boxed{\textbf{(C)}\ 12}$", r"\textbf{(C)}\ 12", r"\text{(D)}", False),
    (r"$\boxed{\$32,\!348}$", r"\$32,\!348", "32348", True),
    (r"$\boxed{864 \mbox{ inches}^2}$", r"864 \mbox{ inches}^2", "864", True),
    (r"$\boxed{864 \text{ in}^2}$", r"864 \text{ in}^2", r"864 \mbox{ inches}^2", True),
    (r"$\boxed{15\mbox{ cm}^2}$", r"15\mbox{ cm}^2", "15", True),
    (r"$\boxed{15 \, \text{cm}^2}$", r"15 \, \text{cm}^2", r"15\mbox{ cm}^2", True),
    (r"$\boxed{15cm}$", "15cm", "15", True),
    (r"$\boxed{1\frac{4}{5}}$", r"1\frac{4}{5}", r"\frac{9}{5}", True),
    (r"$\boxed{1.8}$", "1.8", r"1\frac{4}{5}", True),
    (r"$\boxed{137 \frac{1}{2}}$", r"137 \frac{1}{2}", "137.5", True),
    (r"$\boxed{137\tfrac12}$", r"137\tfrac12", "275/2", True),
    (r"$\boxed{18+2\pi}$", r"18+2\pi", r"2\pi + 18", True),
    (r"$\boxed{2(\pi+9)}$", r"2(\pi+9)", r"18+2\pi", True),
    (r"$\boxed{3 \pm 2 \sqrt{2}}$", r"3 \pm 2 \sqrt{2}", r"3 \pm \sqrt{8}", True),
    (r"$\boxed{(-\infty, 2) \cup (3, \infty)}$", r"(-\infty, 2) \cup (3, \infty)", r"(-\infty,2)\cup(3,\infty)", True),
    (r"$\boxed{x \in [-2,7]}$", r"x \in [-2,7]", "[-2,7]", True),
    (r"$\boxed{[-2,7]}$", "[-2,7]", r"x \in [-2,7]", True),
    (r"$\boxed{5.4 \text{ cents}}$", r"5.4 \text{ cents}", "5.4", True),
    (r"$\boxed{\frac{20000}{\pi}}$", r"\frac{20000}{\pi}", r"20000/\pi", True),
    (r"$\boxed{y = 2x + 3}$", "y = 2x + 3", "2x+3", True),
    (r"$\boxed{f(x) = 2x + 3}$", "f(x) = 2x + 3", "y = 2x + 3", True),
    (r"$\boxed{2x - 3}$", "2x - 3", "y = 2x + 3", False),
    (r"$\boxed{\$18.90}$", r"\$18.90", "18.9", True),
    (r"$\boxed{8n^2 + 4n + 1}$", "8n^2 + 4n + 1", "8n^{2}+4n+1", True),
    (r"$\boxed{3R^2}$", "3R^2", "3r^2", True),
    (r"$\boxed{\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]}$",
     r"\left[ \frac{\pi^2}{8}, \frac{5 \pi^2}{4} \right]", r"[\pi^2/8, 5\pi^2/4]", True),
    (r"$\boxed{0.\overline{3}}$", r"0.\overline{3}", r"\frac13", True),
    (r"$\boxed{0.1\overline{6}}$", r"0.1\overline{6}", r"\frac16", True),
    (r"$\boxed{0.333}$", "0.333", r"\frac13", False),
    (r"$\boxed{2 \text{ million}}$", r"2 \text{ million}", "2,000,000", True),
    (r"$\boxed{2+3=5}$", "2+3=5", "5", True),
    (r"$\boxed{3:30}$", "3:30", "3:30", True),
    (r"$\boxed{3 \text{ p.m.}}$", r"3 \text{ p.m.}", "3 pm", True),
    (r"$\boxed{3 \text{ am}}$", r"3 \text{ am}", "3 pm", False),
    (r"$\boxed{2:1}$", "2:1", "2:1", True),
    (r"$\fbox{12}$", "12", "12", True),
    (r"First \boxed{5}, but on reflection \boxed{6}.", "6", "6", True),
    (r"The set is $\boxed{\left\{ 2, 1 \right\}}$", r"\left\{ 2, 1 \right\}", r"\{1,2\}", True),
    (r"$\boxed{\frac{\sqrt{21}}{5}}$", r"\frac{\sqrt{21}}{5}", r"\sqrt{21}/5", True),
    (r"$\boxed{\sqrt[3]{8}}$", r"\sqrt[3]{8}", "2", True),
    (r"$\boxed{2^{10}}$", "2^{10}", "1024", True),
    (r"$\boxed{1/\sqrt{2}}$", r"1/\sqrt{2}", r"\frac{\sqrt2}{2}", True),
    (r"$\boxed{0}$", "0", "0.0", True),
    (r"$\boxed{-0}$", "-0", "0", True),
    (r"$\boxed{007}$", "007", "7", True),
    (r"$\boxed{\text{undefined}}$", r"\text{undefined}", "undefined", True),
    (r"$\boxed{1/0}$", "1/0", "0", False),
    # tags and brackets
    ("<answer>42</answer>", "42", "42", True),
    ("<reasoning>\n40+2\n</reasoning>\n<answer>\n\\boxed{42}\n</answer>", "42", "42", True),
    ("<answer>\nThe answer is 42 apples.\n</answer>", "42", "42", True),
    ("<answer> (B) </answer>", "(B)", "B", True),
    ("My final verdict: [[B]]", "B", "B", True),
    ("The total is [42]", "42", "42", True),
    ("The answer is [42].", "42", "42", True),
    ("The answer is (C).", "C", "C", True),
    ("The answer is (A) because of symmetry.", "A", "A", True),
    ("Answer: B", "B", "B", True),
    ("**Answer: D**", "D", "D", True),
    ("Answer: (3, 4)", "(3, 4)", "(3,4)", True),
    # sentences
    ("The answer is 42.", "42", "42", True),
    ("The answer is $42. That took 3 steps.", "42", "42", True),
    ("The final answer is 1,250.50 dollars.", "1,250.50", "1250.5", True),
    ("**Final answer:** 7 apples out of 9", "7", "7", True),
    ("Final Answer: The final answer is $\\frac{1}{2}$. I hope it is correct.", r"\frac{1}{2}", "0.5", True),
    ("The answer is $2\\sqrt{3}$.", r"2\sqrt{3}", r"\sqrt{12}", True),
    ("The answer is \\frac{1}{2}.", r"\frac{1}{2}", "1/2", True),
    ("The answer is \\(x = 5\\).", "x = 5", "5", True),
    ("The answer to the question is 12.", "12", "12", True),
    ("So the answer is therefore 12 cookies.", "12", "12", True),
    ("The answer is about 3.5 hours", "3.5", "7/2", True),
    ("the answer is -4", "-4", "-4", True),
    ("The answer is: 18%", "18%", "18", True),
    ("Answer = 12/5", "12/5", "2.4", True),
    ("The answer is that she has 42 apples left.", "42", "42", True),
    ("The answer is 5. No wait, the answer is 6.", "6", "6", True),
    ("The answer is unknown.", None, "6", False),
    ("The answer is none of these 3.", None, "3", False),
    ("The answer cannot be determined.", None, "3", False),
    ("I could not find an answer", None, "3", False),
    ("2 * 9 = 18", "18", "18", True),
    ("16-3=13", "13", "13", True),
    ("She has 3 apples and 5 pears, so 8 fruits.", "8", "8", True),
    ("It costs $1,250.50.", "1,250.50", "1250.5", True),
    ("it falls to -3.5 degrees", "-3.5", "-3.5", True),
    ("so he needs 20%", "20%", "20", True),
    ("", None, "1", False),
    ("no idea", None, "1", False),
    ("<|endoftext|>", None, "1", False),
    ("I am not sure what to do here", None, "5", False),
]  # fmt: skip


def test_the_table_is_large() -> None:
    assert len(TABLE) >= 150
    assert len({text for text, *_ in TABLE}) == len(TABLE)


@pytest.mark.parametrize(("text", "answer", "gold", "right"), TABLE)
def test_table(text: str, answer: str | None, gold: str, right: bool) -> None:
    assert find_answer(text) == answer
    assert same_answer(answer, gold) is right
    assert same_answer(gold, gold)


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


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (r"#### 4 \boxed{5}", "boxed"),
        ("the answer is 3\n#### 4", "mark"),
        ("<answer>4</answer> the answer is 5", "tag"),
        ("the answer is 5, not 6", "stated"),
        ("so 3 or 4: [[4]] 9", "brackets"),
        ("so 3 or 4", "number"),
    ],
)
def test_the_surest_form_counts(text: str, source: str) -> None:
    found = read_answer(text)
    assert found is not None
    assert found.source == source


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("The answer is (C).", "C"),
        (r"\boxed{\text{(B)}}", "B"),
        (r"\boxed{D. 4 electrons}", "D"),
        (r"\boxed{b}", "B"),
        ("Answer: A) 12", "A"),
        ("I choose (D), since (A) fails. So (D)", "D"),
        ("B.", "B"),
        (r"\boxed{42}", None),
        ("A cat sat.", None),
        ("", None),
        ("The correct option is B", "B"),
        ("Option A is wrong. The correct option is **D**.", "D"),
        ("The right option is Blue", None),
    ],
)
def test_choices(text: str, choice: str | None) -> None:
    assert find_choice(text) == choice


@given(st.fractions(max_denominator=10**6), st.integers(1, 50))
def test_a_fraction_has_one_form_however_written(value: Fraction, factor: int) -> None:
    n, d = value.numerator, value.denominator
    sign = "-" if n < 0 else ""
    forms = [
        f"{n}/{d}",
        f"{sign}\\frac{{{abs(n) * factor}}}{{{d * factor}}}",
        f"$\\dfrac{{{n}}}{{{d}}}$",
        f"x = {n}/{d}",
    ]
    assert {canonical(form) for form in forms} == {str(value)}


@given(st.decimals(-(10**9), 10**9, places=4), st.decimals(-(10**9), 10**9, places=4))
def test_decimals_are_compared_exactly(one: object, other: object) -> None:
    assert same_answer(str(one), str(other)) is (Fraction(str(one)) == Fraction(str(other)))


@given(st.integers(0, 10**15))
def test_thousands_separators(value: int) -> None:
    latex = f"{value:,}".replace(",", ",\\!")
    assert canonical(f"{value:,}") == canonical(latex) == canonical(f"\\${value:,}") == str(value)


@given(st.text(max_size=60))
def test_any_text_has_a_form(text: str) -> None:
    form = canonical(text)
    assert canonical(text) == form
    find_answer(text)
    find_choice(text)


@pytest.mark.parametrize(
    "text", ["((9^{400})^{400})^{400}", "9^{400}" * 57, "(" * 200 + "1" + ")" * 200, "\\text{" * 60]
)
def test_hostile_texts_end_soon(text: str) -> None:
    assert same_answer(text, text)
    assert not same_answer(text, "2")


def test_nothing_is_rounded() -> None:
    assert not same_answer("0.30000000000000004", "0.3")
    assert not same_answer("100000000000000000001", "100000000000000000000")
    assert same_answer("0.1+0.2", "0.3")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"(1+\sqrt{2})^2", r"3+2\sqrt{2}"),
        (r"\sqrt{2}\sqrt{3}", r"\sqrt{6}"),
        (r"\frac{x}{2}+\frac{x}{3}", r"\frac{5x}{6}"),
        ("x^2/x", "x"),
        ("i^3", "-i"),
        (r"\sqrt{-4}", "2i"),
        ("2--3", "5"),
        ("-3^2", "-9"),
        ("4^{1/2}", "2"),
        (r"\frac{1}{1+x}", r"\frac{2}{2x+2}"),
    ],
)
def test_algebra(one: str, other: str) -> None:
    assert simplify(one) == simplify(other)


@pytest.mark.parametrize("text", ["", "1/0", "(1", "2 3", r"\sin x", "|x|", "9" * 500 + "!", "(a+b)^{12}" * 9])
def test_what_is_no_algebra_says_so(text: str) -> None:
    with pytest.raises(NotAlgebraError):
        simplify(text)


def data_folder() -> Path:
    return Path(os.environ.get("NAP_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")


def rows(name: str) -> list[dict[str, str]]:
    file = data_folder() / name
    if not file.is_file():
        pytest.skip(f"no {name}; set NAP_DATA")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_gsm8k_solutions_say_their_answers() -> None:
    for row in rows("gsm8k/test.jsonl"):
        gold = row["answer"].rpartition("####")[2]
        assert same_answer(find_answer(row["answer"]), gold)
        assert canonical(gold).lstrip("-").isdigit()


def test_math_solutions_say_their_answers() -> None:
    """Every answer of MATH-500 is found in its solution, and counts as equal to the one that stands beside it."""
    wrong = [row["answer"] for row in rows("math500/test.jsonl")
             if not same_answer(find_answer(row["solution"]), row["answer"])]  # fmt: skip
    assert wrong == []
