r"""One spelling of an answer, so that equal answers become equal texts.

Numbers become fractions in lowest terms: no floating point is used, so 0.1 + 0.2 is 0.3 and 0.33 is not 1/3. The
conventions, which follow what graders of MATH and GSM8K do:

* Units, currency, degree and per-cent signs are dropped: `20\%`, `20` and `$20` are one answer; 0.2 is another.
* `1,000` and `10,\!080` are numbers; inside brackets a comma always separates.
* Answers separated by commas, "and" or "or" are a set, in any order; `\pm` stands for two answers; brackets keep order.
* `x = 5` and `x \in [2,7]` are read as what stands behind; an equation in more is brought to one side.
* "No answer", "N/A", "unknown" and the like are no answer.
"""

from __future__ import annotations

import re
from fractions import Fraction

from nap_runtime.metrics import algebra

_LONGEST = 400
_SIGNS = {
    **{"−": "-", "–": "-", "×": "\\times ", "·": "\\cdot ", "÷": "\\div ", "π": "\\pi ", "∞": "\\infty "},
    **{"²": "^2", "³": "^3", "±": "\\pm ", "∪": "\\cup ", "∈": "\\in ", "≈": "\\approx ", "°": " ", "\u00a0": " "},
    **{"½": "\\frac12", "¼": "\\frac14", "¾": "\\frac34", "⅓": "\\frac13", "⅔": "\\frac23", "，": ","},
    **{"\u202f": " ", "\u2009": " ", "’": "'"},
}
_WRAPPED = re.compile(r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mbox|operatorname|boxed)\s*\{")
_NOTHING = re.compile(
    r"\\(?:left|right|displaystyle|limits|big[lr]?|bigg[lr]?)(?![a-z])|\\[()\[\]!]|\*\*|`"
    r"|\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree|\\(?=[$%])"
)
_SPACE = re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![a-z])|~|\s+")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:(?:, ?|\{,\}|,\\!\s*)\d{3})+(?![\d,])")
_SPACED = re.compile(r"(?<![\d.,])\d{1,3}(?: \d{3})+(?![\d,])")
_CURRENCY = re.compile(r"(?:\b(?:us|usd|eur|gbp|rs\.?)\s*)?[$€£¥₹]|^(?:usd|eur|gbp|rs\.?)\s+(?=\d)")
_LEAD = re.compile(r"^(?:about|approximately|approx\.?|roughly|around|exactly|\\approx|=)\s*")
_REPEATING = re.compile(r"(\d*)\.(\d*)\\overline\{?(\d{1,18})\}?")
_MIXED = re.compile(r"(?<![\d./])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d./])")
_NAMED = {"million": 10**6, "billion": 10**9, "thousand": 1000, "hundred": 100, "dozen": 12}
_SCALE = re.compile(rf"(\d)\s*({'|'.join(_NAMED)})s?\b")
_STUCK = re.compile(r"(?<=[\d})])(cm|mm|km|kg|mg|ml|mph|kph|ft|in|lbs?|hrs?|mins?|secs?|oz|yd|mi|degrees?)(?![a-z])")
_NO_UNIT = r"(?!(?:am|pm|and|or|pi|sqrt|to|by|of|mod)\b|in\s+[a-z(])"
_UNIT = re.compile(
    rf"(?<=[\d}}\])a-z∞])\s+(?:{_NO_UNIT}[a-z]{{2,}}\.?|[mgshl](?![a-z]))"
    r"(?:\^\{?[23]\}?)?(?:(?:\s*/\s*|\s+|-)[a-z][a-z']*\.?(?:\^\{?-?[123]\}?)?)*$"
)
_RATE = re.compile(r"(?<=\d)\s*/\s*[a-z]{2,}$")
_SUBJECT = re.compile(r"^(?:[a-z](?:_\{?\w\}?)?|[fgp]\([a-z]\)|\\[a-z]+)\s*(?:=|\\in(?![a-z])|\\approx)\s*")
_MATRIX = re.compile(r"\\begin\{([pbv]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_NONE = {
    *("", "none", "n/a", "na", "noanswer", "unknown", "?", "??", "...", "idon'tknow", "cannotbedetermined"),
    *("cannotdetermine", "notenoughinformation", "null", "nil", "notgiven", "noanswerfound"),
}
_CLOCK = re.compile(r"\d\s*[ap]m\b")
_SCIENTIFIC = re.compile(r"(?<=\d)e([-+]?\d{1,3})(?!\w)")
_WORDS = re.compile(r"(?<![\\a-z])(?!sqrt|pi\b)[a-z]{3,}")


def canonical(answer: str) -> str:
    """One spelling of an answer; empty where it says that there is none."""
    text = clean(answer)
    if "".join(text.split()) in _NONE:
        return ""
    return _form(text) if len(text) <= _LONGEST else "".join(text.split())


def same_answer(one: str | None, other: str | None) -> bool:
    """Whether two answers are one: equal numbers (1,000 = 1000.0 = $1000), or equal texts; None is no answer."""
    if one is None or other is None:
        return False
    form = canonical(one)
    return form != "" and form == canonical(other)


def clean(answer: str) -> str:
    """Lower case without LaTeX's dress: delimiters, spacing, fonts, degree signs; single spaces."""
    text = "".join(_SIGNS.get(sign, sign) for sign in answer).casefold()
    text = _unwrapped(text)
    text = re.sub(r",\\!\s*", ",", text).replace("{,}", ",")
    text = re.sub(r"√\s*(\d+|[a-z]|\()", lambda m: f"\\sqrt{{{m[1]}}}" if m[1] != "(" else "\\sqrt(", text)
    text = _SPACE.sub(" ", _NOTHING.sub("", text)).strip()
    if text.startswith("$") and text.endswith("$") and len(text) > 1:
        text = text.strip("$").strip()
    return re.sub(r"(?<!\.)[.。;:!\\]+$", "", text).strip()


def _unwrapped(text: str) -> str:
    r"""`\text{ cents}` as ` cents `, whatever is nested in it."""
    while match := _WRAPPED.search(text):
        end = closing(text, match.end() - 1)
        if end is None:
            return text
        rest = text[end + 1 :].lstrip()
        text = f"{text[: match.start()]} {text[match.end() : end].strip()}{'' if rest[:1] in '^_.' else ' '}{rest}"
    return text


def closing(text: str, start: int) -> int | None:
    """Where the bracket at `start` is closed, of whatever kind brackets inside are; None if never."""
    depth = 0
    for at in range(start, len(text)):
        depth += (text[at] in "([{") - (text[at] in ")]}")
        if depth == 0:
            return at
    return None


# -- forms -----------------------------------------------------------------------------------------


def _form(text: str) -> str:
    text = text.strip()
    if matrix := _MATRIX.fullmatch(text):
        rows = [row for row in matrix[2].split("\\\\") if row.strip()]
        return f"matrix[{';'.join(','.join(_form(cell) for cell in row.split('&')) for row in rows)}]"
    if "\\cup" in text:
        return "∪".join(_form(part) for part in text.split("\\cup"))
    if _SUBJECT.match(text) and text.count("=") < 2:
        return _form(_SUBJECT.sub("", text))
    inner = _bracketed(text)
    if inner is not None:
        return inner
    return _listed(text)


def _bracketed(text: str) -> str | None:
    """A tuple, interval or set; what stands alone in brackets is itself. None where no bracket holds the whole."""
    opened = text.removeprefix("\\")
    if not opened or opened[0] not in _PAIRS:
        return None
    body = opened.replace("\\}", "}").replace("\\{", "{")
    if closing(body, 0) != len(body) - 1:
        return None
    parts = _split(body[1:-1])
    if len(parts) == 1 and "\\pm" not in body:
        return _form(parts[0])
    forms = [form for part in parts for form in _both(part)]
    if opened[0] == "{":
        return f"{{{','.join(sorted(forms))}}}"
    return f"{opened[0]}{','.join(forms)}{body[-1]}"


def _split(text: str) -> list[str]:
    """Parts between commas that no bracket holds."""
    parts, depth, start = [], 0, 0
    for at, sign in enumerate(text):
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]


def _both(text: str) -> list[str]:
    r"""The form, or with `\pm` the two forms."""
    if text.count("\\pm") != 1:
        return [_form(text)]
    return [_form(text.replace("\\pm", sign)) for sign in "+-"]


def _listed(text: str) -> str:
    """Several answers as a sorted set, or one."""
    text = _THOUSANDS.sub(lambda match: re.sub(r"\D", "", match[0]), text)
    text = _SPACED.sub(lambda match: match[0].replace(" ", ""), text) if _SPACED.fullmatch(text) else text
    joined = re.sub(r"\s*,?\s+(?:and|or)\s+", ",", text)
    parts = _split(joined)
    if len(parts) > 1 and all(_value(part) is not None or _PAIRS.get(part.strip()[:1]) for part in parts):
        return "{" + ",".join(sorted(form for part in parts for form in _both(part))) + "}"
    if len(parts) == 1 and text.count("\\pm") == 1 and text.strip() != "\\pm":
        return "{" + ",".join(sorted(_both(text))) + "}"
    found = _value(text)
    return found if found is not None else _as_text(text)


def _value(text: str) -> str | None:
    """A number or an expression, without its unit; None where it is words."""
    text = _LEAD.sub("", _CURRENCY.sub("", text.strip())).replace("%", " ").strip()
    text = re.sub(r"\s+(?:per ?cent|percent)\b", "", text)
    text, factor = _scaled(_STUCK.sub(r" \1", text))
    for candidate in dict.fromkeys((_RATE.sub("", _UNIT.sub("", text)).strip(), text)):
        found = _evaluated(candidate)
        if found is not None:
            return found if factor == 1 else _evaluated(f"({candidate})*{factor}")
    return None


def _scaled(text: str) -> tuple[str, int]:
    """`2.5 million` as 2.5 and a million."""
    match = _SCALE.search(text)
    if match is None or _SCALE.search(text, match.end()):
        return text, 1
    return f"{text[: match.start()]}{match[1]}{text[match.end() :]}", _NAMED[match[2]]


def _evaluated(text: str) -> str | None:
    if not text or _WORDS.search(text) or _CLOCK.search(text) or not re.search(r"\d|\\|[-+*/^]|^[a-z]$|∞", text):
        return None
    text = re.sub(r"(?<![\\a-z])(pi|sqrt)(?![a-z])", r"\\\1", text)
    text = _SCIENTIFIC.sub(r"*10^(\1)", _REPEATING.sub(_repeating, text))
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text)
    try:
        left, equals, right = text.partition("=")
        if not equals:
            return algebra.simplify(text)
        return _equation(left, right)
    except (ValueError, RecursionError):  # no algebra, or a number too long to print
        return None


def _equation(left: str, right: str) -> str | None:
    """`2 + 3 = 5` is its result; one with letters on the left is brought to one side."""
    if not re.search(r"[a-z]", left) or "=" in right:
        return algebra.simplify(right.rpartition("=")[2])
    return f"{algebra.show(algebra.monic(algebra.subtract(algebra.parse(left), algebra.parse(right))))}=0"


def _repeating(match: re.Match[str]) -> str:
    r"""`0.1\overline{6}` as a fraction."""
    whole, plain, period = match[1] or "0", match[2], match[3]
    nines = (10 ** len(period) - 1) * 10 ** len(plain)
    value = Fraction(int(whole + plain), 10 ** len(plain)) + Fraction(int(period), nines)
    return f"({value.numerator}/{value.denominator})"


def _as_text(text: str) -> str:
    """Words: no spaces, no braces around single signs, one spelling of a.m. and p.m."""
    text = re.sub(r"\b([ap])\.m\.?", r"\1m", text)
    text = re.sub(r"([_^])\{(\w+)\}", r"\1\2", text)
    text = re.sub(r"\{(\w)\}", r" \1", text)
    text = re.sub(r"^\(?([a-j])\)?(?:[.):].*)?$", r"\1", text)
    return "".join(_CURRENCY.sub("", text).replace("%", "").split()).rstrip(".")
