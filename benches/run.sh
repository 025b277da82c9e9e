#!/usr/bin/env bash
# Builds the release programs and runs the benchmarks; arguments go to the program (benches/run.sh --help).
#
# Needs root, because it mounts: as another user, sudo runs the benchmark and nothing else. Peers are measured where they are:
# s3fs, rclone, aws and mount-s3 on the PATH, those that benches/peers.sh has installed, and the mount-s3 that MOUNT_S3 names.
# Nothing is installed here.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.test-env/peers/bin:$PATH"
SUDO=""
[ "$(id -u)" = 0 ] || SUDO="sudo env PATH=$PATH${MOUNT_S3:+ MOUNT_S3=$MOUNT_S3}"

CARGO_INCREMENTAL=0 cargo build --quiet --locked --release -p fuse-oss -p batch-agent -p benches --bins
program=bench
if [ "${1:-}" = logs ]; then
    program=bench-logs
    shift
fi
exec $SUDO "${CARGO_TARGET_DIR:-target}/release/$program" "$@"
