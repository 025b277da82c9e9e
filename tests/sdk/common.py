"""What the scripts share: where the double is, odd keys, and a way to say what must be refused."""

import json
import os
import random

DOUBLE = json.loads(os.environ["STORE_DOUBLE"])
ENDPOINT = DOUBLE["endpoint"]
REGION = DOUBLE["region"]
BUCKET = DOUBLE["bucket"]
KEY = DOUBLE["key"]
TEMPORARY = DOUBLE["temporary"]
EXPIRED = DOUBLE["expired"]

# Keys that real buckets hold and that tools trip over. Keys with "." and ".." segments are left to those SDKs that
# escape slashes: the HTTP library below the others rewrites such paths before they are sent.
ODD_KEYS = [
    "plain",
    "dir/",
    "dir/inner",
    "a//b",
    "a b+c",
    "100%25",
    "q?x=1&y#z",
    "\u6570\u636e/\u6837\u672c.bam",
    "tab\tbell\x07",
    "new\nline",
    "<xml>&amp;\"'",
    "~-_.!*'()",
    "\U0001f9ec",
    " leading and trailing ",
]
DOTTED_KEYS = ["a/./b", "a/../b", "../up"]

DATA = random.Random(7).randbytes(1_000_003)

checks = 0


def equal(got, want):
    """Fails unless both are the same."""
    global checks
    checks += 1
    if got != want:
        raise AssertionError(f"got {got!r:.300}, wanted {want!r:.300}")


def refused(call, status, code, of):
    """Fails unless `call` raises an error of which `of` gives this status and code. Returns the error."""
    global checks
    checks += 1
    try:
        result = call()
    except Exception as error:  # noqa: BLE001 - every SDK has its own class
        got = of(error)
        if got != (status, code):
            raise AssertionError(f"refused with {got}, wanted {(status, code)}: {error!r:.500}") from error
        return error
    raise AssertionError(f"not refused: {result!r:.300}; wanted {(status, code)}")


def finish():
    print(f"{checks} checks passed")
