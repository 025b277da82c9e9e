#!/usr/bin/env python3
"""Writes the example's log: 10,000 lines of a made-up shop, the same ones every time.

The words INFO, WARN, DEBUG and ERROR stand only where a line's level is, so that a program that merely searches for
them counts right.

usage: generate.py FILE
"""

import random
import sys

COUNTS = {"INFO": 2460, "WARN": 2448, "DEBUG": 2509, "ERROR": 2583}

MESSAGES = {
    "INFO": [
        "order {id} accepted, {n} items",
        "user {id} signed in from 10.0.{b}.{n}",
        "payment {id} settled in {ms} ms",
    ],
    "WARN": [
        "stock of article {id} is down to {n}",
        "slow query: {ms} ms for the basket of user {id}",
        "retrying delivery service, attempt {n}",
    ],
    "DEBUG": [
        "cache hit for article {id} after {ms} us",
        "basket {id} now holds {n} items",
        "connection {n} returned to the pool",
    ],
    "ERROR": [
        "payment {id} refused by the bank, code {n}",
        "delivery service did not answer within {ms} ms",
        "basket {id} is locked by session {n}",
    ],
}

MODULES = ["shop.basket", "shop.catalogue", "shop.delivery", "shop.login", "shop.payment"]


def lines(seed=20180530):
    """The log's lines, in order, without their line ends."""
    chance = random.Random(seed)
    levels = [level for level, count in COUNTS.items() for _ in range(count)]
    chance.shuffle(levels)
    seconds = 0
    for level in levels:
        seconds += chance.randint(0, 8)
        message = chance.choice(MESSAGES[level]).format(
            id=chance.randint(10000, 99999),
            n=chance.randint(1, 250),
            b=chance.randint(0, 255),
            ms=chance.randint(2, 5000),
        )
        yield "2018-05-30 %02d:%02d:%02d.%03d %-5s [worker-%d] %s: %s" % (
            seconds // 3600 % 24,
            seconds // 60 % 60,
            seconds % 60,
            chance.randint(0, 999),
            level,
            chance.randint(1, 8),
            chance.choice(MODULES),
            message,
        )


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], "w", encoding="utf-8", newline="\n") as log:
        for line in lines():
            log.write(line + "\n")


if __name__ == "__main__":
    main()
