#!/usr/bin/env bash
# The example from nothing: builds the two programs, lays the data into a store in a local directory (.demo), runs the job
# through mounts, outputs and logs, and prints the result as the store has it.
#
# On a fresh Debian machine it needs a Rust toolchain; what else is missing it installs. Mounting needs root: as another
# user, sudo runs the job, and nothing else.
set -euo pipefail
cd "$(dirname "$0")/../.."
SUDO=""
[ "$(id -u)" = 0 ] || SUDO="sudo"

missing=()
command -v cc >/dev/null || missing+=(gcc)
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
[ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
command -v python3 >/dev/null || missing+=(python3-minimal)
if [ ${#missing[@]} != 0 ]; then
    echo "installing ${missing[*]}"
    $SUDO apt-get update -qq
    $SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
fi
if [ ! -e /dev/fuse ]; then
    $SUDO modprobe fuse || { echo "there is no /dev/fuse on this machine; in a container, pass it in (--device /dev/fuse --cap-add SYS_ADMIN)" >&2; exit 71; }
fi

echo "building; the first time this takes some minutes"
CARGO_INCREMENTAL=0 cargo build --locked --bins -p batch-agent -p fuse-oss

store="$PWD/.demo/store"
$SUDO rm -rf .demo
python3 examples/log-count/prepare.py --store "file://$store/" --into "$store"
$SUDO target/debug/batch-agent run "$store/job.json" --state-dir "$PWD/.demo/state" --runtime-dir /run/batch-agent-demo \
    --outcome .demo/outcome.json >/dev/null

echo
echo "what is in the store now (.demo/store):"
$SUDO find .demo/store -type f -printf '  %P  %s bytes\n' | sort
echo
echo "merge_result.json:"
cat .demo/store/merge_result.json
