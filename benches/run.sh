#!/usr/bin/env bash
# Builds the release programs and runs the benchmarks; arguments go to the program (benches/run.sh --help).
#
# Needs root, because it mounts: as another user, sudo runs the benchmark and nothing else. Peers (s3fs, rclone, mount-s3) are
# measured where they are on the PATH; nothing is installed.
set -euo pipefail
cd "$(dirname "$0")/.."
SUDO=""
[ "$(id -u)" = 0 ] || SUDO="sudo env PATH=$PATH"

CARGO_INCREMENTAL=0 cargo build --quiet --locked --release -p fuse-oss -p benches --bins
exec $SUDO "${CARGO_TARGET_DIR:-target}/release/bench" "$@"
