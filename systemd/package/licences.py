#!/usr/bin/env python3
"""Prints the licences of the crates that are linked into the programs: each text once, with the crates it came with.

Usage: licences.py TARGET PACKAGE...    for the programs of these packages, built for this target
"""
import json
import pathlib
import re
import subprocess
import sys


def linked(metadata, packages, roots):
    """The ids of what the packages need when they run: no build scripts, no tests, and what macros need only while compiling."""
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    todo, seen = list(roots), set()
    while todo:
        at = todo.pop()
        # A macro runs in the compiler, and so does what it needs.
        if at in seen or any("proc-macro" in target["kind"] for target in packages[at]["targets"]):
            continue
        seen.add(at)
        for dependency in nodes[at]["deps"]:
            if any(kind["kind"] is None for kind in dependency["dep_kinds"]):
                todo.append(dependency["pkg"])
    return seen


def main():
    target, names = sys.argv[1], sys.argv[2:]
    command = ["cargo", "metadata", "--format-version=1", "--locked", "--filter-platform", target]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    members = set(metadata["workspace_members"])
    roots = [id for id in members if packages[id]["name"] in names]
    if len(roots) != len(names):
        sys.exit(f"not all of {' '.join(names)} are packages of this workspace")
    texts, without = {}, []
    for id in sorted(linked(metadata, packages, roots) - members, key=lambda id: packages[id]["name"]):
        package = packages[id]
        what = f"{package['name']} {package['version']} ({package['license'] or 'see its text'})"
        directory = pathlib.Path(package["manifest_path"]).parent
        files = [path for path in sorted(directory.iterdir())
                 if path.is_file() and re.match(r"(?i)(licen[cs]e|copying|copyright|notice|unlicense)", path.name)]
        if package["license_file"] and directory / package["license_file"] not in files:
            files.append(directory / package["license_file"])
        for path in files:
            texts.setdefault(path.read_text(errors="replace").strip(), []).append(what)
        if not files:
            without.append(what)
    print("The programs contain the following software, under the licences below.\n")
    if without:
        print("Without a text of their own; the licence named is the well-known one:")
        print("".join(f"  {what}\n" for what in without))
    for text, crates in texts.items():
        print("=" * 100)
        print("".join(f"{what}\n" for what in crates) + "\n" + text + "\n")


main()
