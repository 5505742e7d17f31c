"""Pay, savings, coins and tickets."""

from __future__ import annotations

from nap_trainer.words.family import Family, steps
from nap_trainer.words.trace import of

FAMILIES = (
    Family(
        name="overtime",
        numbers={"hours": steps(3, 20), "pay": steps(3, 12), "extra": steps(2, 9)},
        asks=(
            "{name} works {hours} hours at ${pay} an hour and {extra} extra hours at double pay. How much "
            "does {name} earn?",
            "A job pays ${pay} an hour, and extra hours are paid double. {name} has {hours} normal hours and "
            "{extra} extra hours. What is the pay?",
        ),
        answer=lambda h, p, e: (h + 2 * e) * p,
        methods={
            "two rates": lambda h, p, e: h * p + p * 2 * e,
            "count double": lambda h, p, e: (e * 2 + h) * p,
            "all hours": lambda h, p, e: (h + e) * p + e * p,
        },
    ),
    Family(
        name="savings_weeks",
        numbers={
            "save": (2, 3, 4, 5, 6, 10, 20, 25, 30, 40, 50),
            "have": lambda s: steps(s, 10 * s, s),
            "goal": lambda s, h: steps(h + 2 * s, min(h + 24 * s, 999), 2 * s),
        },
        asks=(
            "{name} has ${have} and saves ${save} each week for a {item} that costs ${goal}. How many weeks "
            "does it take?",
            "A {item} costs ${goal}. {name} has ${have} and can save ${save} a week. After how many weeks "
            "can {name} buy it?",
        ),
        answer=lambda s, h, g: (g - h) // s,
        methods={
            "gap first": lambda s, h, g: (g - h) // s,
            "all in weeks": lambda s, h, g: g // s - h // s,
            "two weeks": lambda s, h, g: (g - h) // (s * 2) * 2,
        },
    ),
    Family(
        name="interest",
        numbers={"money": steps(20, 200, 10), "percent": (5, 10, 15, 20), "years": steps(2, 9)},
        asks=(
            "{name} puts ${money} in a bank that pays {percent}% of it each year. How much money is it after "
            "{years} years?",
            "A bank pays {percent}% simple interest a year. {name} starts with ${money}. How much is there "
            "after {years} years?",
        ),
        answer=lambda m, c, y: m + m * c * y // 100,
        methods={
            "year by year": lambda m, c, y: of(c, m) * y + m,
            "all percent": lambda m, c, y: of(c * y, m) + m,
            "with the start": lambda m, c, y: of(c * y + 100, m),
        },
    ),
    Family(
        name="coins",
        numbers={"small": steps(2, 60, 2), "big": steps(2, 60)},
        asks=(
            "{name} has {small} coins of 5 cents and {big} coins of 10 cents. How many cents is that in all?",
            "In a box there are {big} coins of 10 cents and {small} coins of 5 cents. How many cents are in the box?",
        ),
        answer=lambda a, b: 5 * a + 10 * b,
        methods={
            "each kind": lambda a, b: a * 5 + b * 10,
            "all as fives": lambda a, b: (b * 2 + a) * 5,
            "all as tens": lambda a, b: (a // 2 + b) * 10,
        },
    ),
    Family(
        name="tickets",
        numbers={"groups": steps(2, 9), "adult": steps(4, 20), "child": lambda n, a: steps(2, a - 1)},
        asks=(
            "{groups} parents go to a show, each with 2 children. A ticket is ${adult} for an adult and "
            "${child} for a child. What is the total cost?",
            "A child ticket costs ${child} and an adult ticket ${adult}. How much do {groups} adults pay if "
            "each one takes 2 children along?",
        ),
        answer=lambda n, a, c: n * (a + 2 * c),
        methods={
            "each group": lambda n, a, c: (c * 2 + a) * n,
            "each kind": lambda n, a, c: n * 2 * c + n * a,
            "one child first": lambda n, a, c: (a + c) * n + c * n,
        },
    ),
)
