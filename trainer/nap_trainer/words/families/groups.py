"""Sharing, groups, parts and seats."""

from __future__ import annotations

from nap_trainer.words.family import Family, steps
from nap_trainer.words.trace import ImpossibleError, Num, of


def _left_total_first(bags: Num, size: Num, children: Num) -> Num:
    return divmod(bags * size, children)[1]


def _left_size_first(bags: Num, size: Num, children: Num) -> Num:
    return divmod(bags * divmod(size, children)[1], children)[1]


def _left_bags_first(bags: Num, size: Num, children: Num) -> Num:
    return divmod(divmod(bags, children)[1] * size, children)[1]


def _full_buses(seats: Num, pupils: Num, teachers: Num) -> Num:
    buses, waiting = divmod(pupils + teachers, seats)
    return buses + 1 if int(waiting) else buses


def _last_bus(seats: Num, pupils: Num, teachers: Num) -> Num:
    buses, waiting = divmod(pupils, seats)
    if not 0 < int(waiting + teachers) <= int(seats):
        raise ImpossibleError("the last bus is not the last")
    return buses + 1


def _one_less(seats: Num, pupils: Num, teachers: Num) -> Num:
    return divmod(pupils + teachers - 1, seats)[0] + 1


FAMILIES = (
    Family(
        name="sharing",
        numbers={"bags": steps(3, 40), "size": steps(3, 40), "children": steps(3, 9)},
        asks=(
            "{name} has {bags} bags of {size} {things} and shares them with {children} children. Each one "
            "gets the same. How many {things} are left over?",
            "{bags} bags with {size} {things} each are shared by {children} children. How many {things} are "
            "left if all get the same?",
        ),
        answer=lambda b, s, k: b * s % k,
        methods={
            "total first": _left_total_first,
            "rest of a bag": _left_size_first,
            "rest of the bags": _left_bags_first,
        },
    ),
    Family(
        name="seats",
        numbers={
            "rows": steps(4, 12),
            "seats": steps(4, 15),
            "closed": lambda r, s: steps(2, min(r // 2, 9)),
            "guests": steps(5, 60),
        },
        asks=(
            "A hall has {rows} rows of {seats} seats. {closed} rows are closed and {guests} guests sit down. "
            "How many seats are free?",
            "There are {rows} rows with {seats} seats each, but {closed} rows can not be used. {guests} "
            "people come. How many seats stay free?",
        ),
        answer=lambda r, s, c, g: (r - c) * s - g,
        methods={
            "open rows": lambda r, s, c, g: (r - c) * s - g,
            "all seats": lambda r, s, c, g: r * s - c * s - g,
            "taken seats": lambda r, s, c, g: r * s - (c * s + g),
        },
    ),
    Family(
        name="ratio",
        numbers={
            "first": steps(2, 9),
            "second": steps(2, 9),
            "total": lambda a, b: steps(2 * (a + b), min(30 * (a + b), 300), a + b),
        },
        asks=(
            "{name} and {other} share {total} {things} in the ratio {first} to {second}. How many does {other} get?",
            "For each {first} {things} that {name} gets, {other} gets {second}. There are {total} in all. "
            "How many does {other} get?",
        ),
        answer=lambda a, b, n: n // (a + b) * b,
        methods={
            "one part": lambda a, b, n: n // (a + b) * b,
            "other first": lambda a, b, n: n - n // (a + b) * a,
            "product first": lambda a, b, n: n * b // (a + b),
        },
    ),
    Family(
        name="sum_gap",
        numbers={"total": steps(10, 400, 2), "more": lambda s: steps(2, min(s - 4, 60), 2)},
        asks=(
            "{name} and {other} have {total} {things} together. {name} has {more} more than {other}. How "
            "many does {name} have?",
            "Two numbers add up to {total}. One is {more} more than the other. What is the big one?",
        ),
        answer=lambda s, d: (s + d) // 2,
        methods={
            "add the gap": lambda s, d: (s + d) // 2,
            "small one first": lambda s, d: (s - d) // 2 + d,
            "halves": lambda s, d: s // 2 + d // 2,
        },
    ),
    Family(
        name="fraction",
        numbers={
            "parts": steps(3, 10),
            "some": lambda d: steps(1, d - 2),
            "total": lambda d, k: steps(2 * d, min(60 * d, 400), d),
        },
        asks=(
            "{some} out of {parts} pupils walk to school. There are {total} pupils. How many do not walk?",
            "In a box of {total} {things}, {some} out of every {parts} are red. How many are not red?",
        ),
        answer=lambda d, k, n: n // d * (d - k),
        methods={
            "other part": lambda d, k, n: n // d * (d - k),
            "take off": lambda d, k, n: n - n // d * k,
            "product first": lambda d, k, n: n - n * k // d,
        },
    ),
    Family(
        name="percent_gap",
        numbers={
            "total": steps(10, 500, 10),
            "most": steps(20, 90, 10),
            "least": lambda n, c: steps(10, min(c - 10, 100 - c), 10),
        },
        asks=(
            "{most}% of {total} pupils play football and {least}% play tennis. How many more play football?",
            "Of {total} {things}, {most}% are red and {least}% are green. How many more red ones are there?",
        ),
        answer=lambda n, c, e: n * (c - e) // 100,
        methods={
            "percent gap": lambda n, c, e: of(c - e, n),
            "count each": lambda n, c, e: of(c, n) - of(e, n),
            "by tenths": lambda n, c, e: n // 10 * ((c - e) // 10),
        },
    ),
    Family(
        name="legs",
        numbers={"heads": steps(4, 40), "legs": lambda h: steps(2 * h + 2, 4 * h - 2, 2)},
        asks=(
            "There are cows and hens on a farm with {heads} heads and {legs} legs in all. How many cows are there?",
            "{name} counts {heads} heads and {legs} legs of dogs and birds in a park. How many dogs are there?",
        ),
        answer=lambda h, n: n // 2 - h,
        methods={
            "all two legs": lambda h, n: (n - h * 2) // 2,
            "all four legs": lambda h, n: h - (h * 4 - n) // 2,
            "half the legs": lambda h, n: n // 2 - h,
        },
    ),
    Family(
        name="buses",
        numbers={
            "seats": (6, 8, 9, 10, 11, 12, 20, 30, 40),
            "pupils": lambda s: steps(s + 1, min(9 * s, 98)),
            "teachers": lambda s, n: steps(2, min(s - n % s, 9)),
        },
        asks=(
            "{pupils} pupils and {teachers} teachers go on a trip. Each bus has {seats} seats. How many "
            "buses do they need?",
            "A school trip has {teachers} teachers and {pupils} pupils. How many buses with {seats} seats are needed?",
        ),
        answer=lambda s, n, t: -(-(n + t) // s),
        methods={
            "full buses": _full_buses,
            "last bus": _last_bus,
            "one less": _one_less,
        },
    ),
)
