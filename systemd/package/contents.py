#!/usr/bin/env python3
"""Looks whether packages hold what they should: every file of the tree they were made of, nothing else, owned by root, writable by
root alone, and no program that others could have a say in.

Usage: contents.py TREE PACKAGE...    (.deb, .rpm, .tar.gz)
"""
import gzip
import io
import os
import pathlib
import stat
import struct
import subprocess
import sys
import tarfile

# Where a kind of package puts what lies elsewhere in the tree.
MOVED = {
    ".deb": {
        "usr/share/zsh/site-functions/": "usr/share/zsh/vendor-completions/",
        "usr/share/licenses/batch-agent/": "usr/share/doc/batch-agent/",
    },
}
# What a kind of package has beyond the tree.
EXTRA = {".deb": {"usr/share/doc/batch-agent/copyright"}}


def members_of_tar(data, strip=0):
    """(path, mode, user, group, size) of each file."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            path = "/".join([part for part in member.name.split("/") if part != "."][strip:])
            if not member.isdir():
                yield path, member.mode, member.uid, member.gid, member.size


def members_of_rpm(path):
    """The same of an RPM: a lead of 96 bytes, two headers, and a compressed cpio archive with the files."""
    data = path.read_bytes()
    at = 96
    for _ in range(2):
        magic, entries, size = data[at:at + 4], *struct.unpack(">II", data[at + 8:at + 16])
        if magic != b"\x8e\xad\xe8\x01":
            raise ValueError("no header where one should be")
        at += 16 + 16 * entries + size
        at += -at % 8
    # What comes before the archive is padded to eight bytes from the start of the first header, which 96 is a multiple of.
    archive = gzip.decompress(data[data.index(b"\x1f\x8b", at - 8):])
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        mode, user, group, size, name_size = fields[1], fields[2], fields[3], fields[6], fields[11]
        name = archive[at + 110:at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            return
        if not stat.S_ISDIR(mode):
            yield name.removeprefix("./").lstrip("/"), stat.S_IMODE(mode), user, group, size
        at += size
        at += -at % 4


def members(package):
    if package.suffix == ".deb":
        return members_of_tar(subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE).stdout)
    if package.suffix == ".rpm":
        return members_of_rpm(package)
    return members_of_tar(package.read_bytes(), strip=1)


def expected(tree, kind):
    found = {}
    for directory, _, names in os.walk(tree):
        for name in names:
            path = pathlib.Path(directory, name)
            place = str(path.relative_to(tree))
            for old, new in MOVED.get(kind, {}).items():
                if place.startswith(old):
                    place = new + place[len(old):]
            found[place] = (stat.S_IMODE(path.lstat().st_mode), path.lstat().st_size)
    return found


def wrong(tree, package):
    kind = package.suffix
    wanted, seen = expected(tree, kind), set()
    for path, mode, user, group, size in members(package):
        seen.add(path)
        if path in EXTRA.get(kind, ()):
            continue
        if path not in wanted:
            yield f"{path} should not be there"
        elif (mode, size) != wanted[path]:
            yield f"{path} has mode {mode:o} and {size} bytes instead of {wanted[path][0]:o} and {wanted[path][1]}"
        if (user, group) != (0, 0):
            yield f"{path} belongs to {user}:{group}"
        if mode & 0o7022:
            yield f"{path} has mode {mode:o}"
    for path in sorted((wanted.keys() | EXTRA.get(kind, set())) - seen):
        yield f"{path} is missing"


def main():
    tree, packages = pathlib.Path(sys.argv[1]), [pathlib.Path(name) for name in sys.argv[2:]]
    failed = False
    for package in packages:
        for problem in wrong(tree, package):
            print(f"{package}: {problem}", file=sys.stderr)
            failed = True
    sys.exit(failed)


main()
