#!/usr/bin/env bash
# Static binaries that run on any Linux of this architecture, in dist/batch-agent-VERSION-ARCH.tar.gz with licence and README.
set -euo pipefail
cd "$(dirname "$0")/.."
target="$(rustc -vV | sed -n 's/^host: //p')"
version="$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)"
name="batch-agent-$version-${target%%-*}"

# With --target, the flags reach the programs and not the build scripts and macros, which cannot be static.
RUSTFLAGS="-C target-feature=+crt-static" CARGO_INCREMENTAL=0 \
    cargo build --locked --release --target "$target" -p batch-agent -p fuse-oss -p nvme-setup --bins

rm -rf "dist/$name"
mkdir -p "dist/$name"
for program in batch-agent fuse-oss nvme-setup; do
    built="target/$target/release/$program"
    if ldd "$built" 2>/dev/null | grep -q '=>'; then
        echo "$built is not static" >&2
        exit 1
    fi
    install -m 755 "$built" "dist/$name/"
done
install -m 644 README.md LICENSE CHANGELOG.md "dist/$name/"
tar -C dist --owner=root:0 --group=root:0 --sort=name --mtime="@$(git log -1 --format=%ct)" -czf "dist/$name.tar.gz" "$name"
rm -rf "dist/${name:?}"
ls -l "dist/$name.tar.gz"
