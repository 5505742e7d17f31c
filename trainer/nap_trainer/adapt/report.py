"""A run as a page: figure, tables, the 2 × 2 contrast in words, how it was made; all numbers are the run's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nap_runtime.errors import UsageError
from nap_runtime.models.files import write_text_atomic
from nap_trainer.adapt.convert import describe_types
from nap_trainer.adapt.corpus import tokenizer_of
from nap_trainer.adapt.figures import RESAMPLES, Contrast, Point, contrast, read_points
from nap_trainer.adapt.folder import RunFolder
from nap_trainer.adapt.plot import draw
from nap_trainer.miniature.stats import Interval

LOW_ACCURACY = 0.2
"""Below this a model is reported for ARness only, with its accuracy."""

_QUESTION = """\
Dream decodes more from left to right than LLaDA (ARness 0.92 against 0.73 in the paper), but the two differ in two ways
at once: Dream began as an autoregressive model, and its logits are shifted (the row of position i − 1 predicts position
i). Here the two are taken apart: four models of one architecture, tokenizer, data, order of data, masks and number of
steps, {pretrained weights, random start} × {shifted, unshifted logits}. ARness is measured as training goes on."""

_MEASURE = """\
ARness is global ARness@1, set-based, over content slots: those before the first end of text. Corrected is the same on a
scale where a random order scores 0; local is local ARness@1. Decoding is confidence order (AO) over the whole region,
through the runtime's own worker. Intervals are 95% bootstraps over questions ({resamples:,} resamples), those of
accuracies Wilson's. Questions without content are left out of ARness; n counts the others. [metrics.md](metrics.md)
defines the measures."""


def write_report(run: Path, out: Path) -> list[Path]:
    """Write the page and its figure; returns their paths.

    Raises:
        UsageError: this is no run, or nothing is measured yet.
        DataError, ModelError: a file of the run is damaged or missing.
    """
    folder = RunFolder(run)
    facts = folder.facts()
    points = read_points(folder, tokenizer_of(folder.tokenizer))
    if not points:
        raise UsageError(f"run: {run} has no measured point yet", field="run")
    figure = out.with_suffix(".svg")
    rate = folder.config().decode.tokens_per_step
    draw(points, rate, figure)
    sections = [
        "# A pretrained model adapted to masked diffusion: start and shift apart",
        "<!-- Written by `python -m nap_trainer.adapt report`: change the run, not the page. -->",
        _QUESTION,
        *_missing(facts["config"]["points"], points),
        *_findings(points, rate),
        f"![ARness and held-out loss against adaptation tokens, one curve a model]({figure.name})",
        _MEASURE.format(resamples=RESAMPLES),
        "## Every point",
        _points_table(points, rate),
        "## Start, shift, interaction",
        *_contrasts(points, rate),
        *_last_rates(points, rate),
        "## What was run",
        *_setup(facts, points, list(folder.ledger())),
        "## Limits",
        _limits(points),
        "## Commands",
        _commands(facts),
    ]
    write_text_atomic(out, "\n\n".join(sections) + "\n")
    return [out, figure]


def _missing(planned: Sequence[int], points: Sequence[Point]) -> list[str]:
    """Which planned points no arm, or not every arm, has reached."""
    step = _last_common(points)
    left = [str(point) for point in planned if step is None or point > step]
    if not left:
        return []
    return [f"**The run is not finished**: not every arm reached step {', '.join(left)} of {planned[-1]}."]


# -- findings ---------------------------------------------------------------------------------------------------------


def _findings(points: Sequence[Point], rate: int) -> list[str]:
    """The last common point in words."""
    step = _last_common(points)
    here = [point for point in points if point.step == step and rate in point.scores]
    if step is None or not here:
        return ["The arms have no point in common yet: the run is not finished."]
    lines = [f"After {here[0].tokens:,} adaptation tokens ({step:,} steps), {rate} {_tokens(rate)} a step:\n"]
    for point in here:
        score = point.scores[rate]
        lines.append(
            f"- {_label(point)}: ARness {_span(score.interval('arness'))}, accuracy {_percent(score.accuracy)}"
        )
    found = contrast(points, step, rate)
    texts = ["\n".join(lines)]
    return [*texts, *([_contrast_words(found)] if found else []), _accuracy_words(points)]


def _contrast_words(found: Contrast) -> str:
    parts = [
        _effect("Starting from pretrained weights", found.start),
        _effect("Shifted logits", found.shift),
        f"The two interact by {_signed(found.interaction)}: {_sure(found.interaction)}.",
        f"A comparison that changes both at once would show {_signed(found.both)}.",
    ]
    return " ".join(parts)


def _effect(what: str, effect: Interval) -> str:
    if effect.low <= 0 <= effect.high:
        return f"{what}: no effect on ARness can be told from zero, {_signed(effect)}."
    verb = "raises" if effect.value > 0 else "lowers"
    verb = verb if what.endswith("weights") else verb.removesuffix("s")
    return f"{what} {verb} ARness by {_signed(effect)}."


def _sure(effect: Interval) -> str:
    if effect.low <= 0 <= effect.high:
        return "the effect of the shift cannot be told apart between the two starts"
    return f"the shift adds {'more' if effect.value > 0 else 'less'} to the pretrained start than to the random one"


def _accuracy_words(points: Sequence[Point]) -> str:
    best = max((score.accuracy.value, _label(point)) for point in points for score in point.scores.values())
    if best[0] < LOW_ACCURACY:
        return (
            f"No model reaches {LOW_ACCURACY:.0%} accuracy (the best anywhere is {best[0]:.1%}, {best[1]}): all of "
            "them are reported for ARness only, with their accuracies."
        )
    low = sorted({_label(p) for p in points if max(s.accuracy.value for s in p.scores.values()) < LOW_ACCURACY})
    return f"Models below {LOW_ACCURACY:.0%} accuracy at some point, reported there for ARness only: {', '.join(low)}."


# -- tables -----------------------------------------------------------------------------------------------------------


def _points_table(points: Sequence[Point], rate: int) -> str:
    head = ("model", "tokens", "ARness", "corrected", "local", "all slots", "content", "n", "held-out loss", "accuracy")
    rows = []
    for point in points:
        if rate not in point.scores:
            continue
        score = point.scores[rate]
        spans = [_span(score.interval(name)) for name in ("arness", "corrected", "local", "arness_all")]
        tail = [f"{score.content_Q.mean():.0f}", str(score.defined), f"{point.held_loss['text']:.2f}"]
        rows.append([_label(point), f"{point.tokens:,}", *spans, *tail, _percent(score.accuracy)])
    note = "content: mean content slots a question. held-out loss: nats a hidden text token, the same masks every time."
    return f"{_table(head, rows)}\n\n{note}"


def _contrasts(points: Sequence[Point], rate: int) -> list[str]:
    rows, questions = [], set()
    for step in sorted({point.step for point in points}):
        found = contrast(points, step, rate)
        if found is not None and found.questions:
            tokens = next(point.tokens for point in points if point.step == step)
            effects = [found.start, found.shift, found.interaction, found.both]
            rows.append([f"{tokens:,}", *map(_signed, effects), str(found.questions)])
            questions.add(found.questions)
    if not rows:
        return ["The run does not hold all four arms at any point; there is no contrast to make."]
    head = ("tokens", "start", "shift", "interaction", "both at once", "n")
    words = (
        "Differences of ARness (content slots), paired by question; n are the questions that have content in all four "
        "arms. start: pretrained − random, over both shifts. shift: shifted − unshifted, over both starts. "
        "interaction: effect of the shift with pretrained weights − with a random start. both at once: pretrained and "
        "shifted − random and unshifted, as Dream against LLaDA."
    )
    return [_table(head, rows), words]


def _last_rates(points: Sequence[Point], rate: int) -> list[str]:
    """The last point at other numbers of tokens a step."""
    rows = [
        [_label(point), f"{point.tokens:,}", str(other), _span(score.interval("arness")), _percent(score.accuracy)]
        for point in points
        for other, score in point.scores.items()
        if other != rate
    ]
    if not rows:
        return []
    return ["## More tokens a step", _table(("model", "tokens", "tokens a step", "ARness", "accuracy"), rows)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# -- how it was made --------------------------------------------------------------------------------------------------


def _setup(facts: dict[str, Any], points: Sequence[Point], ledger: Sequence[dict[str, Any]]) -> list[str]:
    model, data, config = facts["model"], facts["data"], facts["config"]
    train, questions = data["train"], data["questions"]
    lengths = ", ".join(f"{count} of {size} tokens" for size, count in questions["by_length"].items())
    heads = f"{model['n_heads']} heads ({model['n_kv_heads']} of keys)"
    shape = f"{model['n_layers']} layers, width {model['d_model']}, {heads}"
    epochs = max(point.step for point in points) * config["global_batch"] / train["rows"]
    items = [
        f"Model: {shape}, vocabulary {model['vocab_size']:,}, {'tied' if model['tied_head'] else 'untied'} head."
        + _origin(facts["conversion"]),
        f"Corpus: {data['corpus']['file']}, made of GSM8K's training questions, {data['corpus']['rows']:,} rows; "
        f"{train['rows']:,} fit ({_dropped(train['dropped'])}), with {train['prompt_tokens']:,} prompt and "
        f"{train['response_tokens']:,} response tokens. The runs saw {epochs:.1f} epochs of it.",
        f"Adaptation tokens count every position of every canvas: prompt, and the region of {data['gen_length']} slots "
        "with its end-of-text padding.",
        f"Questions: {questions['count']} of GSM8K's {data['test']['rows']:,} test questions, those of the most "
        f"frequent prompt lengths ({lengths}), chosen by length alone so that batches need no padding. Loss: the first "
        f"{data['held']['rows']} test rows that fit.",
        f"Seeds: {config['seed']} for random weights, order and masks, the same in all arms. One training each.",
        f"Decoding: {data['gen_length']} slots, end-of-text weight {config['decode']['eos_weight']:g}, "
        f"{config['decode']['dtype']}. Device: {_devices(ledger)}. {_seconds(ledger)}",
    ]
    return ["\n".join(f"- {item}" for item in items)]


def _origin(note: dict[str, Any] | None) -> str:
    if note is None:
        return ""
    text = f" Pretrained weights: {note['source']} ({describe_types(note['stored'])}; dequantised and kept as"
    rows = f"whose rows begin at the mean of the others plus noise of {note['spread']:g} of their standard deviation"
    return f"{text} {note['dtype']}). {len(note['added'])} tokens were added (the mask, NAP's tags), {rows}."


def _dropped(dropped: dict[str, int]) -> str:
    return ", ".join(f"{count:,} exceed {name}" for name, count in dropped.items())


def _devices(ledger: Sequence[dict[str, Any]]) -> str:
    names = dict.fromkeys(f"{row['device']}, torch {row['torch']}" for row in ledger if row.get("event") == "begin")
    return "; ".join(names) or "unknown"


def _seconds(ledger: Sequence[dict[str, Any]]) -> str:
    training, measuring = (sum(float(row.get(name, 0)) for row in ledger) for name in ("training", "measuring"))
    return f"{training:.0f} s of training and {measuring:.0f} s of measuring, compilation included."


def _limits(points: Sequence[Point]) -> str:
    lines = [
        "One training seed: intervals say how far other questions would move a figure, not how far another seed would.",
        "A small model and few tokens: the ARness of a model with a high loss says how an unfinished model decodes. "
        "Compare arms with their losses in view.",
        "The questions are close to the corpus in kind; ARness on other texts may differ.",
        "ARness does not say whether a text is right: look at the accuracies.",
    ]
    if any(point.tokens == 0 for point in points):
        lines.append(
            "At 0 tokens the pretrained weights have never seen a mask or a later word: that point is a start."
        )
    return "\n".join(f"- {line}" for line in lines)


def _commands(facts: dict[str, Any]) -> str:
    data, note = facts["data"], facts["conversion"]
    source = "SOURCE" if note is None else note["source"]
    dtype = "" if note is None else f" --dtype {note['dtype']}"
    sizes = f"--gen-length {data['gen_length']} --max-prompt {data['max_prompt']}"
    sizes += f" --questions {data['questions']['count']} --held {data['held']['rows']}"
    corpus, test = data["corpus"]["file"], data["test"]["file"]
    adapt = "python -m nap_trainer.adapt"
    commands = [
        f"nap model convert {source} --out MODEL{dtype}",
        f"{adapt} corpus --gsm8k train.jsonl --model MODEL --out {corpus}",
        f"{adapt} data --model MODEL --corpus {corpus} --test {test} --out data.npz \\",
        f"    {sizes}",
        f"{adapt} run --model MODEL --data data.npz --config CONFIG.yaml --out RUN",
        f"{adapt} report RUN --out docs/adaptation.md",
    ]
    config = yaml.safe_dump(facts["config"], sort_keys=False, default_flow_style=None, width=110)
    return f"```\n{chr(10).join(commands)}\n```\n\nCONFIG.yaml:\n\n```yaml\n{config}```"


# -- words ------------------------------------------------------------------------------------------------------------


def _last_common(points: Sequence[Point]) -> int | None:
    arms = {point.arm for point in points}
    steps = [step for step in {p.step for p in points} if arms == {p.arm for p in points if p.step == step}]
    return max(steps, default=None)


def _label(point: Point) -> str:
    return f"{point.arm.start}, {point.arm.logits}"


def _tokens(rate: int) -> str:
    return "token" if rate == 1 else "tokens"


def _span(interval: Interval) -> str:
    if interval.value != interval.value:
        return "undefined"
    return f"{interval.value:.3f} [{interval.low:.3f}, {interval.high:.3f}]"


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"
