"""Lengths and areas, recipes, averages and number puzzles."""

from __future__ import annotations

from nap_trainer.words.family import Family, exact, steps
from nap_trainer.words.trace import of

FAMILIES = (
    Family(
        name="unit_rate",
        numbers={
            "count": steps(2, 12),
            "cost": lambda n: steps(2 * n, 15 * n, n),
            "want": lambda n, c: steps(2 * n, min(9 * n, 999 // c), n),
        },
        asks=(
            "{count} {things} cost ${cost}. How much do {want} {things} cost?",
            "{name} pays ${cost} for {count} {things}. What do {want} of them cost?",
        ),
        answer=lambda n, c, m: c // n * m,
        methods={
            "price of one": lambda n, c, m: c // n * m,
            "times as many": lambda n, c, m: m // n * c,
            "product first": lambda n, c, m: c * m // n,
        },
    ),
    Family(
        name="recipe",
        numbers={
            "people": steps(2, 10),
            "cups": lambda b: steps(b, 12 * b, b),
            "guests": lambda b, a: steps(2 * b, 9 * b, b),
        },
        asks=(
            "A recipe for {people} people needs {cups} cups of flour. How many more cups are needed for "
            "{guests} people?",
            "{name} cooks for {guests} people, but the recipe is for {people} with {cups} spoons of oil. How "
            "many spoons more are needed?",
        ),
        answer=lambda b, a, c: (c - b) * a // b,
        methods={
            "more people": lambda b, a, c: (c - b) * (a // b),
            "one person": lambda b, a, c: a // b * c - a,
            "more batches": lambda b, a, c: (c // b - 1) * a,
        },
    ),
    Family(
        name="perimeter",
        numbers={"length": steps(3, 25), "width": lambda a: steps(2, a - 1), "price": steps(3, 9)},
        asks=(
            "A garden is {length} metres long and {width} metres wide. A fence costs ${price} a metre. What "
            "does a fence all around cost?",
            "{name} puts wire at ${price} a metre around a field of {length} by {width} metres. What is the cost?",
        ),
        answer=lambda a, b, p: 2 * (a + b) * p,
        methods={
            "half way": lambda a, b, p: (a + b) * 2 * p,
            "side by side": lambda a, b, p: (a * 2 + b * 2) * p,
            "cost of sides": lambda a, b, p: (a * p + b * p) * 2,
        },
    ),
    Family(
        name="area",
        numbers={
            "length": steps(3, 12),
            "width": steps(4, 20),
            "path": lambda a, b: steps(2, b - 2),
            "plants": steps(2, 9),
        },
        asks=(
            "A garden is {length} metres by {width} metres. A path takes {path} metres of the width. Each "
            "square metre gets {plants} plants. How many plants is that?",
            "A wall is {length} metres long and {width} metres high. The top {path} metres stay free. Each "
            "square metre takes {plants} tiles. How many tiles are needed?",
        ),
        answer=lambda a, b, c, k: a * (b - c) * k,
        methods={
            "cut first": lambda a, b, c, k: (b - c) * a * k,
            "whole area": lambda a, b, c, k: (a * b - a * c) * k,
            "row by row": lambda a, b, c, k: a * k * (b - c),
        },
    ),
    Family(
        name="fence",
        numbers={
            "gap": (2, 3, 4, 5, 6, 8, 10, 20),
            "length": lambda g: steps(3 * g, min(40 * g, 600), g),
            "price": steps(2, 12),
        },
        asks=(
            "A fence of {length} metres has a post at both ends and every {gap} metres. A post costs "
            "${price}. How much do all posts cost?",
            "{name} plants a tree every {gap} metres along a road of {length} metres, with one at both ends. "
            "A tree is ${price}. What is the cost?",
        ),
        answer=lambda g, n, p: (n // g + 1) * p,
        methods={
            "posts first": lambda g, n, p: (n // g + 1) * p,
            "last apart": lambda g, n, p: n // g * p + p,
            "one gap more": lambda g, n, p: (n + g) // g * p,
        },
    ),
    Family(
        name="average",
        numbers={
            "games": steps(2, 9),
            "each": steps(3, 40),
            "last": lambda n, a: steps(a + n + 1, a + 5 * (n + 1), n + 1),
        },
        asks=(
            "{name} gets {each} points in each of {games} games and {last} in one more game. What is the "
            "average of all games?",
            "{games} boxes hold {each} {things} each and one more box holds {last}. How many are in a box on average?",
        ),
        answer=lambda n, a, b: (a * n + b) // (n + 1),
        methods={
            "sum first": lambda n, a, b: (a * n + b) // (n + 1),
            "share the gap": lambda n, a, b: (b - a) // (n + 1) + a,
            "from the last": lambda n, a, b: b - (b - a) // (n + 1) * n,
        },
    ),
    Family(
        name="missing_score",
        numbers={
            "mean": steps(10, 90),
            "first": lambda m: steps(m - 9, m),
            "second": lambda m, a: steps(m - 9, m),
        },
        asks=(
            "{name} has {first} and {second} points in two tests. How many points in test 3 make the average {mean}?",
            "Three numbers have the average {mean}. Two of them are {first} and {second}. What is the other one?",
        ),
        answer=lambda m, a, b: 3 * m - a - b,
        methods={
            "total first": lambda m, a, b: m * 3 - a - b,
            "sum of two": lambda m, a, b: m * 3 - (a + b),
            "make up the gaps": lambda m, a, b: m - a + (m - b) + m,
        },
    ),
    Family(
        name="score",
        numbers={"twos": steps(2, 15), "threes": steps(2, 12), "free": steps(2, 9)},
        asks=(
            "{name} makes {twos} shots for 2 points, {threes} shots for 3 points and {free} for 1 point. "
            "What is the score?",
            "A team has {threes} shots of 3 points, {twos} shots of 2 points and {free} of 1 point. How many "
            "points is that?",
        ),
        answer=lambda a, b, c: 2 * a + 3 * b + c,
        methods={
            "each kind": lambda a, b, c: a * 2 + b * 3 + c,
            "all as two": lambda a, b, c: (a + b) * 2 + b + c,
            "all as three": lambda a, b, c: (a + b) * 3 - a + c,
        },
    ),
    Family(
        name="consecutive",
        numbers={"step": steps(1, 12), "total": lambda k: steps(6 * k + 3, 300, 3)},
        asks=(
            "Three numbers add up to {total}. Each one is {step} more than the one before. What is the last number?",
            "{total} {things} lie in three rows, each row with {step} more than the one before. How many are "
            "in the last row?",
        ),
        answer=lambda k, s: s // 3 + k,
        methods={
            "middle first": lambda k, s: s // 3 + k,
            "make all equal": lambda k, s: (k * 3 + s) // 3,
            "from the first": lambda k, s: s // 3 - k + k * 2,
        },
    ),
    Family(
        name="mixture",
        numbers={
            "percent": (5, 10, 15, 20, 25, 30, 40, 60, 75, 80),
            "ml": lambda c: exact(c, 120),
            "more": steps(2, 40),
        },
        asks=(
            "A drink of {ml} ml is {percent}% water and the rest is juice. {name} adds {more} ml of juice. "
            "How many ml of juice are in it?",
            "{percent}% of {ml} ml of paint is white and the rest blue. Then {more} ml of blue are added. "
            "How many ml of blue are in the mix?",
        ),
        answer=lambda c, n, k: n * (100 - c) // 100 + k,
        methods={
            "rest first": lambda c, n, k: n - of(c, n) + k,
            "percent left": lambda c, n, k: of(100 - c, n) + k,
            "whole mix": lambda c, n, k: n + k - of(c, n),
        },
    ),
)
