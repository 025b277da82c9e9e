#!/usr/bin/env python3
"""Lays out all that the example needs in one directory, which is what the store must hold:

    data/log-count-data.txt   the log
    worker.tar.gz             the programs
    job.json                  the job, with the store's location put in
    job.yaml                  the same job in batch-agent's own format

With a file:// location that names the directory itself, nothing is left to do; for any other store, copy the
directory's content there. Doing it twice gives the same bytes.

usage: prepare.py --store LOCATION --into DIRECTORY
"""

import argparse
import gzip
import io
import json
import os
import sys
import tarfile

sys.dont_write_bytecode = True  # The example's directory stays as it is.
import generate  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))
STORE_IN_JOB = "oss://log-count/"


def tarball(directory):
    """A gzipped tar archive of a directory's files that depends on nothing but their names and content."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(os.listdir(directory)):
            if not name.endswith(".py"):
                continue
            with open(os.path.join(directory, name), "rb") as source:
                content = source.read()
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o644
            entry.uname = entry.gname = "root"
            tar.addfile(entry, io.BytesIO(content))
    return gzip.compress(archive.getvalue(), mtime=0)


def located(value, store):
    """The job with every location moved to the store, on whichever side of a mapping it stands."""
    if isinstance(value, dict):
        return {located(key, store): located(inner, store) for key, inner in value.items()}
    if isinstance(value, list):
        return [located(inner, store) for inner in value]
    if isinstance(value, str) and value.startswith(STORE_IN_JOB):
        return store + value[len(STORE_IN_JOB):]
    return value


def main():
    parser = argparse.ArgumentParser(description="Lays out the log-count example in a directory.")
    parser.add_argument("--store", required=True, metavar="LOCATION", help="such as file:///tmp/x/ or oss://bucket/dir/")
    parser.add_argument("--into", required=True, metavar="DIRECTORY", help="made when it is missing")
    arguments = parser.parse_args()
    store = arguments.store if arguments.store.endswith("/") else arguments.store + "/"

    data = os.path.join(arguments.into, "data")
    os.makedirs(data, exist_ok=True)
    with open(os.path.join(data, "log-count-data.txt"), "w", encoding="utf-8", newline="\n") as log:
        log.writelines(line + "\n" for line in generate.lines())
    with open(os.path.join(arguments.into, "worker.tar.gz"), "wb") as package:
        package.write(tarball(os.path.join(HERE, "worker")))
    with open(os.path.join(HERE, "job.json"), encoding="utf-8") as template:
        job = located(json.load(template), store)
    with open(os.path.join(arguments.into, "job.json"), "w", encoding="utf-8") as output:
        json.dump(job, output, indent=2)
        output.write("\n")
    with open(os.path.join(HERE, "job.yaml"), encoding="utf-8") as template:
        job = template.read().replace(STORE_IN_JOB, store)
    with open(os.path.join(arguments.into, "job.yaml"), "w", encoding="utf-8") as output:
        output.write(job)


if __name__ == "__main__":
    main()
