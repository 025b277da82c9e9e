"""Adds up what the instances of count.py found.

usage: merge.py INPUT_DIRECTORY OUTPUT_FILE
"""

import json
import os
import sys


def main():
    source, target = sys.argv[1], sys.argv[2]

    totals = {}
    for name in sorted(os.listdir(source)):
        with open(os.path.join(source, name), encoding="utf-8") as counts:
            for level, count in json.load(counts).items():
                totals[level] = totals.get(level, 0) + count

    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(target, "w", encoding="utf-8") as output:
        json.dump(totals, output)
        output.write("\n")
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
