"""Hours, days, ages and other units."""

from __future__ import annotations

from nap_trainer.words.family import Family, steps

FAMILIES = (
    Family(
        name="schedule",
        numbers={"lessons": steps(3, 8), "minutes": steps(8, 40), "rest": steps(2, 9)},
        asks=(
            "A school day has {lessons} lessons of {minutes} minutes with a break of {rest} minutes between "
            "them. How many minutes is it in all?",
            "{name} plays {lessons} games of {minutes} minutes and rests {rest} minutes between two games. "
            "How many minutes does it take?",
        ),
        answer=lambda n, m, b: n * m + (n - 1) * b,
        methods={
            "each kind": lambda n, m, b: n * m + (n - 1) * b,
            "add a break": lambda n, m, b: (m + b) * n - b,
            "last apart": lambda n, m, b: (n - 1) * (m + b) + m,
        },
    ),
    Family(
        name="training",
        numbers={"rest": steps(2, 5), "km": steps(2, 12), "weeks": steps(2, 12)},
        asks=(
            "{name} runs {km} km each day but rests {rest} days a week. How many km does {name} run in {weeks} weeks?",
            "In each week {name} has {rest} days of rest and walks {km} km on all other days. How far is "
            "that in {weeks} weeks?",
        ),
        answer=lambda r, k, w: (7 - r) * k * w,
        methods={
            "days first": lambda r, k, w: (7 - r) * w * k,
            "one week": lambda r, k, w: (7 - r) * k * w,
            "rest days apart": lambda r, k, w: (7 * w - r * w) * k,
        },
    ),
    Family(
        name="calendar",
        numbers={
            "month": (28, 29, 30, 31),
            "day": lambda n: steps(12, n - 1),
            "date": lambda n, d: steps(2, d - 1),
        },
        asks=(
            "Today is day {day} of a month with {month} days. How many days is it until day {date} of the next month?",
            "{name} leaves on day {day} of a month that has {month} days and comes home on day {date} of the "
            "next one. How many days is that?",
        ),
        answer=lambda n, d, e: n - d + e,
        methods={
            "rest of month": lambda n, d, e: n - d + e,
            "count on": lambda n, d, e: n + e - d,
            "back from it": lambda n, d, e: n - (d - e),
        },
    ),
    Family(
        name="ages_sum",
        numbers={"age": steps(2, 30), "older": steps(2, 20), "years": steps(2, 12)},
        asks=(
            "{name} is {age} years old and {other} is {older} years older. What is the sum of their ages in "
            "{years} years?",
            "{other} is {older} years older than {name}, who is {age}. How old are they together in {years} years?",
        ),
        answer=lambda a, d, n: 2 * (a + n) + d,
        methods={
            "each later": lambda a, d, n: a + n + (a + d + n),
            "sum now": lambda a, d, n: a + d + a + n * 2,
            "double": lambda a, d, n: (a + n) * 2 + d,
        },
    ),
    Family(
        name="ages_parent",
        numbers={
            "age": steps(2, 16),
            "times": lambda a: [times for times in steps(2, 12) if 18 <= a * times - a <= 45],
            "later": lambda a, k: steps(a + 1, a + 30),
        },
        asks=(
            "{name} is {age} years old. The mother is {times} times as old. How old is she when {name} is {later}?",
            "A child is {age}, and the father of the child is {times} times as old. How old is he when the "
            "child is {later} years old?",
        ),
        answer=lambda a, k, c: a * k + c - a,
        methods={
            "years to go": lambda a, k, c: c - a + a * k,
            "age gap": lambda a, k, c: a * k - a + c,
            "gap in parts": lambda a, k, c: (k - 1) * a + c,
        },
    ),
    Family(
        name="dozen",
        numbers={
            "dozen": steps(2, 12),
            "box": (2, 3, 4, 6, 12),
            "broken": lambda d, k: [b for b in steps(k, 9 * k, k) if b < d * 12],
        },
        asks=(
            "{name} has {dozen} dozen eggs. {broken} eggs break and the rest go in boxes of {box}. How many "
            "boxes are there?",
            "A shop gets {dozen} dozen {things} and sells {broken} of them. The rest are put in bags of "
            "{box}. How many bags is that?",
        ),
        answer=lambda d, k, b: (d * 12 - b) // k,
        methods={
            "count all": lambda d, k, b: (d * 12 - b) // k,
            "one dozen": lambda d, k, b: 12 // k * d - b // k,
            "divide both": lambda d, k, b: d * 12 // k - b // k,
        },
    ),
    Family(
        name="pages",
        numbers={
            "days": (2, 4, 6, 8, 10, 12),
            "read": lambda n: steps(n, 20 * n, n),
            "pages": lambda n, r: steps(r + n, min(r + 40 * n, 990), n),
        },
        asks=(
            "A book has {pages} pages and {name} has read {read}. How many pages a day must {name} read to "
            "end it in {days} days?",
            "{name} is on page {read} of a book with {pages} pages and has {days} days left to read it. How "
            "many pages a day is that?",
        ),
        answer=lambda n, r, p: (p - r) // n,
        methods={
            "pages left": lambda n, r, p: (p - r) // n,
            "divide both": lambda n, r, p: p // n - r // n,
            "half the days": lambda n, r, p: (p - r) // 2 // (n // 2),
        },
    ),
    Family(
        name="pages_growing",
        numbers={"pages": steps(2, 40), "more": steps(2, 12)},
        asks=(
            "{name} reads {pages} pages on day 1 and each day {more} pages more than the day before. How "
            "many pages are that in 3 days?",
            "On day 1 {name} plants {pages} trees and on each new day {more} more than on the last one. How "
            "many trees are planted after 3 days?",
        ),
        answer=lambda a, k: 3 * a + 3 * k,
        methods={
            "day by day": lambda a, k: a + (b := a + k) + (b + k),
            "middle day": lambda a, k: (a + k) * 3,
            "extra apart": lambda a, k: a * 3 + k * 3,
        },
    ),
    Family(
        name="hours",
        numbers={
            "minutes": (10, 20, 30),
            "days": lambda m: steps(60 // m, 40, 60 // m),
            "extra": steps(2, 24),
        },
        asks=(
            "{name} reads {minutes} minutes a day for {days} days and then {extra} hours on a trip. How many "
            "hours is that in all?",
            "A bus ride takes {minutes} minutes. {name} rides it {days} times and sits in a train for "
            "{extra} hours. How many hours is that?",
        ),
        answer=lambda m, n, x: m * n // 60 + x,
        methods={
            "minutes first": lambda m, n, x: m * n // 60 + x,
            "fill hours": lambda m, n, x: n // (60 // m) + x,
            "tens": lambda m, n, x: m // 10 * n // 6 + x,
        },
    ),
    Family(
        name="rope",
        numbers={
            "piece": (2, 4, 5, 10, 20, 25, 50),
            "metres": steps(2, 9),
            "used": lambda c, m: steps(100 // c, 100 // c * (m - 1), 100 // c),
        },
        asks=(
            "A rope of {metres} metres is cut in pieces of {piece} cm. {name} takes {used} pieces. How many "
            "pieces are left?",
            "{name} cuts {metres} metres of wire in pieces of {piece} cm and sells {used} of them. How many "
            "pieces are left?",
        ),
        answer=lambda c, m, k: m * 100 // c - k,
        methods={
            "all in cm": lambda c, m, k: m * 100 // c - k,
            "each metre": lambda c, m, k: 100 // c * m - k,
            "metres left": lambda c, m, k: (m - k // (per := 100 // c)) * per,
        },
    ),
)
