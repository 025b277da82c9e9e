"""Counts the levels in this instance's share of the parts.

Every instance runs this same program; it finds its share by its own number and the number of instances.

usage: count.py INPUT_DIRECTORY OUTPUT_DIRECTORY
"""

import json
import os
import re
import sys

LEVELS = ["INFO", "WARN", "DEBUG", "ERROR"]


def main():
    source, target = sys.argv[1], sys.argv[2]
    instance = int(os.environ["BATCH_COMPUTE_DAG_INSTANCE_ID"])
    instances = int(os.environ["BATCH_COMPUTE_DAG_INSTANCE_COUNT"])

    parts = sorted(name for name in os.listdir(source) if name.endswith(".txt"))
    counts = dict.fromkeys(LEVELS, 0)
    for part in parts[instance::instances]:
        with open(os.path.join(source, part), encoding="utf-8") as log:
            text = log.read()
        for level in LEVELS:
            counts[level] += len(re.findall(level, text))
        print("instance %d of %d counted %s" % (instance, instances, part), flush=True)

    os.makedirs(target, exist_ok=True)
    with open(os.path.join(target, "%d.json" % instance), "w", encoding="utf-8") as output:
        json.dump(counts, output)
    print(json.dumps(counts))


if __name__ == "__main__":
    main()
