"""Speed, rates of work, tanks and growth."""

from __future__ import annotations

from nap_trainer.words.family import Family, steps
from nap_trainer.words.trace import EASY

FAMILIES = (
    Family(
        name="bike_trip",
        numbers={
            "speed": steps(4, 20),
            "before": steps(2, 5),
            "after": steps(2, 5),
            "km": lambda s, a, b: steps(s * (a + b + 1), s * (a + b + 4), s),
        },
        asks=(
            "{name} rides a bike at {speed} km an hour, {before} hours before lunch and {after} hours after "
            "it. How many km of a {km} km trip are left?",
            "A trip is {km} km long. {name} goes at {speed} km an hour for {before} hours, rests, and goes "
            "{after} hours more. How far is it still?",
        ),
        answer=lambda s, a, b, d: d - s * (a + b),
        methods={
            "hours first": lambda s, a, b, d: d - (a + b) * s,
            "add parts": lambda s, a, b, d: d - (s * a + s * b),
            "hours left": lambda s, a, b, d: (d // s - a - b) * s,
        },
    ),
    Family(
        name="two_trains",
        numbers={
            "first": steps(2, 9),
            "second": steps(2, 9),
            "minutes": steps(2, 9),
            "km": lambda u, v, t: steps((u + v) * t + 1, (u + v) * t + 20),
        },
        asks=(
            "Two trains are {km} km apart and run toward each other. One goes {first} km a minute, the other "
            "{second} km a minute. How far apart are they after {minutes} minutes?",
            "Two trains that are {km} km apart start to meet each other, at {first} and {second} km a "
            "minute. How many km are between them {minutes} minutes later?",
        ),
        answer=lambda u, v, t, d: d - (u + v) * t,
        methods={
            "closing speed": lambda u, v, t, d: d - (u + v) * t,
            "one by one": lambda u, v, t, d: d - u * t - v * t,
            "both ways": lambda u, v, t, d: d - (u * t + v * t),
        },
    ),
    Family(
        name="catch_up",
        numbers={
            "gain": (2, 3, 4, 5, 6, 10),
            "ahead": lambda g: steps(g, 30, g),
            "speed": lambda g, h: steps(2 * g, 90, g),
            "fast": lambda g, h, s: (s + g,),
        },
        asks=(
            "{name} walks {speed} metres a minute. {other} starts {ahead} minutes later and goes {fast} "
            "metres a minute. After how many minutes does {other} catch up?",
            "{other} goes {fast} metres a minute after {name}, who left {ahead} minutes before at {speed} "
            "metres a minute. How many minutes until they meet?",
        ),
        answer=lambda g, h, s, f: s * h // g,
        methods={
            "lead first": lambda g, h, s, f: s * h // (f - s),
            "minute by minute": lambda g, h, s, f: s // (f - s) * h,
            "share of lead": lambda g, h, s, f: h // (f - s) * s,
        },
    ),
    Family(
        name="work_rate",
        numbers={
            "box": (2, 3, 4, 5, 6, 10),
            "first": steps(2, 15),
            "second": lambda k, u: steps(2 * k - u % k, 20, k),
            "hours": steps(2, 9),
        },
        asks=(
            "{name} makes {first} {things} an hour and {other} makes {second}. They work {hours} hours and "
            "fill boxes of {box}. How many boxes do they fill?",
            "Two machines make {first} and {second} {things} an hour, which are put in boxes of {box}. How "
            "many boxes are full after {hours} hours?",
        ),
        answer=lambda k, u, v, t: (u + v) * t // k,
        methods={
            "both at once": lambda k, u, v, t: (u + v) * t // k,
            "one by one": lambda k, u, v, t: (u * t + v * t) // k,
            "boxes an hour": lambda k, u, v, t: (u + v) // k * t,
        },
    ),
    Family(
        name="tank",
        numbers={
            "start": steps(10, 99),
            "fill": steps(3, 12),
            "leak": lambda v, u: steps(2, u - 1),
            "minutes": steps(2, 9),
        },
        asks=(
            "A tank has {start} litres of water. Each minute {fill} litres run in and {leak} litres leak "
            "out. How many litres are in it after {minutes} minutes?",
            "Water runs into a tank at {fill} litres a minute, but {leak} litres a minute leak. It starts "
            "with {start} litres. How much is in it after {minutes} minutes?",
        ),
        answer=lambda v, u, w, t: v + (u - w) * t,
        methods={
            "net each minute": lambda v, u, w, t: v + (u - w) * t,
            "fill first": lambda v, u, w, t: v + u * t - w * t,
            "leak first": lambda v, u, w, t: v - w * t + u * t,
        },
    ),
    Family(
        name="fuel",
        numbers={
            "litres": steps(2, 10),
            "km": lambda a: [km for km in steps(10, 100, 10) if km % a == 0 and km // a in EASY],
            "trip": lambda a, b: steps(b * 2, min(b * 9, 900), b),
            "price": steps(2, 5),
        },
        asks=(
            "A car needs {litres} litres of fuel for {km} km. A litre costs ${price}. What is the fuel cost "
            "of a trip of {trip} km?",
            "{name} drives {trip} km. The car uses {litres} litres each {km} km and fuel is ${price} a "
            "litre. How much does {name} pay?",
        ),
        answer=lambda a, b, c, p: c // b * a * p,
        methods={
            "litres first": lambda a, b, c, p: c // b * a * p,
            "cost of a part": lambda a, b, c, p: c // b * (a * p),
            "km for a litre": lambda a, b, c, p: c // (b // a) * p,
        },
    ),
    Family(
        name="population",
        numbers={
            "years": steps(2, 6),
            "more": lambda n: steps(n * 2, n * 4, n),
            "old": steps(20, 80),
            "now": lambda n, m, p: steps(p + n, p + 9 * n, n),
        },
        asks=(
            "{years} years ago a town had {old} people and now it has {now}. It grows the same each year. "
            "How many people are there in {more} years?",
            "A park had {old} birds and {years} years later {now}. The number grows by the same step each "
            "year. How many birds are there {more} years after that?",
        ),
        answer=lambda n, m, p, q: q + (q - p) // n * m,
        methods={
            "step each year": lambda n, m, p, q: q + (q - p) // n * m,
            "times as long": lambda n, m, p, q: q + m // n * (q - p),
            "product first": lambda n, m, p, q: q + (q - p) * m // n,
        },
    ),
    Family(
        name="temperature",
        numbers={
            "start": steps(15, 90),
            "drop": steps(2, 8),
            "hours": steps(2, 10),
            "rise": lambda t, d, h: steps(2, min(d * h, 20)),
        },
        asks=(
            "It is {start} degrees at noon. The temperature falls {drop} degrees an hour for {hours} hours "
            "and then rises {rise} degrees. What is it now?",
            "A pot of {start} degrees cools {drop} degrees a minute for {hours} minutes. Then it is heated "
            "by {rise} degrees. How many degrees does it have?",
        ),
        answer=lambda t, d, h, r: t - d * h + r,
        methods={
            "in order": lambda t, d, h, r: t - d * h + r,
            "rise first": lambda t, d, h, r: t + r - d * h,
            "net fall": lambda t, d, h, r: t - (d * h - r),
        },
    ),
    Family(
        name="elevator",
        numbers={
            "floor": steps(1, 40),
            "up": steps(3, 30),
            "down": lambda f, a: steps(2, a - 1),
            "again": steps(2, 30),
        },
        asks=(
            "An elevator is on floor {floor}. It goes up {up} floors, down {down} floors and up {again} "
            "more. On which floor is it now?",
            "{name} gets in on floor {floor}, goes {up} floors up, then {down} down and {again} up again. "
            "Which floor is that?",
        ),
        answer=lambda f, a, b, c: f + a - b + c,
        methods={
            "in order": lambda f, a, b, c: f + a - b + c,
            "all up first": lambda f, a, b, c: a + c + f - b,
            "net move": lambda f, a, b, c: a - b + c + f,
        },
    ),
)
