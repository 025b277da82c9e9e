"""Cuts the log into parts of equal length.

usage: split.py INPUT_DIRECTORY OUTPUT_DIRECTORY PARTS
"""

import os
import sys

LOG = "log-count-data.txt"


def main():
    source, target, parts = sys.argv[1], sys.argv[2], int(sys.argv[3])

    with open(os.path.join(source, LOG), encoding="utf-8") as log:
        lines = log.readlines()
    print("read %d lines from %s" % (len(lines), LOG), flush=True)

    os.makedirs(target, exist_ok=True)
    with open("split.log", "w", encoding="utf-8") as report:
        for part in range(parts):
            begin, end = part * len(lines) // parts, (part + 1) * len(lines) // parts
            name = "%d.txt" % part
            with open(os.path.join(target, name), "w", encoding="utf-8") as output:
                output.writelines(lines[begin:end])
            print("%s: lines %d to %d" % (name, begin + 1, end), file=report)
            print("wrote %s" % name, flush=True)


if __name__ == "__main__":
    main()
