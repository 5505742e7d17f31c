"""Prices, discounts and bills."""

from __future__ import annotations

from nap_trainer.words.family import Family, exact, steps
from nap_trainer.words.trace import of

FAMILIES = (
    Family(
        name="discount",
        numbers={"price": steps(10, 990, 10), "percent": steps(10, 90, 10)},
        asks=(
            "A {item} costs ${price} and is on sale for {percent}% off. What is the final price?",
            "The price of a {item} was ${price}. Now it is {percent}% less. How much is it now?",
            "{name} wants a {item} that costs ${price}. The shop takes {percent}% off. How much does {name} pay?",
        ),
        answer=lambda p, c: p * (100 - c) // 100,
        methods={
            "discount first": lambda p, c: p - of(c, p),
            "part left": lambda p, c: of(100 - c, p),
            "tenths left": lambda p, c: p // 10 * (10 - c // 10),
        },
    ),
    Family(
        name="coupon",
        numbers={
            "percent": (5, 10, 15, 20, 25, 30, 40, 50, 60, 75),
            "price": lambda c: exact(c, 120),
            "coupon": steps(2, 20),
        },
        asks=(
            "A {item} costs ${price}. It is {percent}% off and {name} has a coupon for ${coupon} more off. "
            "How much does {name} pay?",
            "The price of a {item} is ${price}. The shop takes off {percent}% first and then ${coupon}. What "
            "is the final price?",
        ),
        answer=lambda c, p, k: p * (100 - c) // 100 - k,
        methods={
            "discount first": lambda c, p, k: p - of(c, p) - k,
            "part left": lambda c, p, k: of(100 - c, p) - k,
            "all cuts": lambda c, p, k: p - (of(c, p) + k),
        },
    ),
    Family(
        name="change",
        numbers={
            "count": steps(2, 10),
            "price": steps(2, 30),
            "bill": lambda n, p: [bill for bill in steps(20, 200, 10) if bill > n * p and bill % n == 0],
        },
        asks=(
            "{name} buys {count} {things} for ${price} each and pays with ${bill}. How much change does {name} get?",
            "One ticket costs ${price}. {name} has ${bill} and buys {count} tickets. How much money is left?",
        ),
        answer=lambda n, p, b: b - n * p,
        methods={
            "cost first": lambda n, p, b: b - n * p,
            "all but one": lambda n, p, b: b - (n - 1) * p - p,
            "share of money": lambda n, p, b: (b // n - p) * n,
        },
    ),
    Family(
        name="tip",
        numbers={
            "people": steps(2, 12),
            "bill": lambda n: steps(10 * n, 90 * n, 10 * n),
            "percent": (5, 10, 15, 20, 30),
        },
        asks=(
            "{people} friends share a bill of ${bill} and add a tip of {percent}%. How much does each friend pay?",
            "The bill for a meal is ${bill}. With a tip of {percent}% it is shared by {people} people. What "
            "does each one pay?",
        ),
        answer=lambda n, b, c: b * (100 + c) // 100 // n,
        methods={
            "total first": lambda n, b, c: (b + of(c, b)) // n,
            "share first": lambda n, b, c: (s := b // n) + of(c, s),
            "whole percent": lambda n, b, c: of(100 + c, b // n),
        },
    ),
    Family(
        name="tax",
        numbers={"percent": (5, 10, 15, 20, 25, 50), "price": lambda c: exact(c, 90), "count": steps(2, 10)},
        asks=(
            "{name} buys {count} {things} for ${price} each. A tax of {percent}% is added. What is the total cost?",
            "One {item} costs ${price} without the {percent}% tax. How much do {count} of them cost with tax?",
        ),
        answer=lambda c, p, n: n * p * (100 + c) // 100,
        methods={
            "cost first": lambda c, p, n: (cost := n * p) + of(c, cost),
            "each with tax": lambda c, p, n: (p + of(c, p)) * n,
            "whole percent": lambda c, p, n: of(100 + c, n * p),
        },
    ),
    Family(
        name="profit",
        numbers={
            "count": steps(2, 9),
            "cost": steps(2, 15),
            "price": lambda n, c: steps(c + 1, c + 12),
            "fee": steps(1, 20),
        },
        asks=(
            "{name} buys {count} {things} for ${cost} each and sells them for ${price} each. The market fee "
            "is ${fee}. What is the profit?",
            "At a market {name} pays a fee of ${fee} and sells {count} {things} for ${price} each. Each one "
            "costs {name} ${cost}. How much profit is left?",
        ),
        answer=lambda n, c, p, f: n * (p - c) - f,
        methods={
            "profit each": lambda n, c, p, f: (p - c) * n - f,
            "totals": lambda n, c, p, f: n * p - n * c - f,
            "all costs": lambda n, c, p, f: n * p - (n * c + f),
        },
    ),
    Family(
        name="packs",
        numbers={
            "size": (2, 3, 4, 5, 6, 8, 10, 12),
            "price": lambda k: steps(k, 8 * k, k),
            "need": lambda k, p: steps(2 * k, 24 * k, 2 * k),
        },
        asks=(
            "Batteries come in packs of {size} for ${price} a pack. How much do {need} batteries cost?",
            "A pack of {size} {things} costs ${price}. {name} needs {need} {things}. How much does {name} pay?",
        ),
        answer=lambda k, p, n: n // k * p,
        methods={
            "packs first": lambda k, p, n: n // k * p,
            "price of one": lambda k, p, n: p // k * n,
            "double packs": lambda k, p, n: n // (k * 2) * (p * 2),
        },
    ),
    Family(
        name="price_rise",
        numbers={
            "percent": (5, 10, 20, 25, 30, 40, 50),
            "price": lambda c: exact(c, 120),
            "cut": steps(1, 20),
        },
        asks=(
            "A {item} costs ${price}. The price goes up by {percent}% and then falls by ${cut}. What is the new price?",
            "A shop sells a {item} for ${price}. Next week it is {percent}% more, but {name} gets it for "
            "${cut} less. How much does {name} pay?",
        ),
        answer=lambda c, p, k: p * (100 + c) // 100 - k,
        methods={
            "rise first": lambda c, p, k: p + of(c, p) - k,
            "whole percent": lambda c, p, k: of(100 + c, p) - k,
            "cut first": lambda c, p, k: p - k + of(c, p),
        },
    ),
)
