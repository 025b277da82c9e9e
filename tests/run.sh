#!/usr/bin/env bash
# The test command. Installs what it needs (Debian packages, an emulator among them; a Python environment, pjdfstest, fsx, cargo-deny and
# the image of a virtual machine in .test-env), then runs every check, and prints what each step took.
#
#   tests/run.sh          everything that has to hold before a change lands
#   tests/run.sh setup    only the installing
#   tests/run.sh soak     what takes longer: the tests marked as soak, with their full counts
#
# Needs root for the real mounts, namespaces and loop devices of the tests; as another user it uses sudo.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_INCREMENTAL=0
readonly ENV_DIR="$PWD/.test-env"
readonly DENY_VERSION=0.20.2
readonly PJDFSTEST_VERSION=0.2.2
readonly FSX_VERSION=0.3.2
SUDO=""
if [ "$(id -u)" != 0 ]; then
    SUDO="sudo"
    # Test programs run as root, the compiler does not.
    export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
fi

timings=()
step() { # step NAME COMMAND...: runs the command and takes its time; stops everything when it fails
    local name=$1 start=$SECONDS
    shift
    printf '\n==> %s\n' "$name"
    if ! "$@"; then
        printf '\nFAILED: %s (after %d s)\n' "$name" $((SECONDS - start)) >&2
        exit 1
    fi
    timings+=("$(printf '%5d s  %s' $((SECONDS - start)) "$name")")
}

# What mostly waits for the network and the disk is done beside what needs the processors.
beside_pid=""
beside() { # beside NAME COMMAND...: starts the command; `joined` waits for it
    beside_name=$1 beside_start=$SECONDS
    beside_log=$(mktemp)
    shift
    # A group of its own, so that nothing of it goes on when this ends.
    set -m
    "$@" >"$beside_log" 2>&1 &
    beside_pid=$!
    set +m
    trap 'kill -- "-$beside_pid" 2>/dev/null || true; rm -f "$beside_log"' EXIT
}
joined() {
    [ -n "$beside_pid" ] || return 0
    printf '\n==> %s (begun before)\n' "$beside_name"
    local status=0
    wait "$beside_pid" || status=$?
    trap - EXIT
    beside_pid=""
    cat "$beside_log"
    rm -f "$beside_log"
    if [ $status != 0 ]; then
        printf '\nFAILED: %s (after %d s)\n' "$beside_name" $((SECONDS - beside_start)) >&2
        exit 1
    fi
    timings+=("$(printf '%5d s  %s, beside others' $((SECONDS - beside_start)) "$beside_name")")
}

# The programs the tests use, each with the package that has it; and what is run in mounts to see whether it works there.
readonly PROGRAMS="cc:gcc make:make fusermount3:fuse3 mkfs.ext4:e2fsprogs mkfs.xfs:xfsprogs losetup:mount unshare:util-linux
    ps:procps python3:python3 curl:curl bwa:bwa samtools:samtools git:git rsync:rsync zip:zip unzip:unzip
    strace:strace systemd-analyze:systemd mmdebstrap:mmdebstrap sfdisk:fdisk setpriv:util-linux
    dockerd:docker.io containerd:containerd runc:runc podman:podman conmon:conmon busybox:busybox-static docker-registry:docker-registry zstd:zstd"
readonly SOAK_PROGRAMS="stress-ng:stress-ng blender:blender depmod:kmod"

debian_packages() { # debian_packages PROGRAM:PACKAGE...
    local need=() entry
    for entry in "$@"; do
        command -v "${entry%%:*}" >/dev/null || PATH="$PATH:/sbin:/usr/sbin" command -v "${entry%%:*}" >/dev/null || need+=("${entry#*:}")
    done
    python3 -c 'import ensurepip, venv' 2>/dev/null || need+=(python3-venv)
    [ -e /usr/include/stdlib.h ] || need+=(libc6-dev)
    [ -e /etc/ssl/certs/ca-certificates.crt ] || need+=(ca-certificates)
    [ ${#need[@]} = 0 ] && return 0
    echo "installing ${need[*]}"
    $SUDO apt-get update -qq
    # apt is quiet only about what went well.
    local log
    log=$($SUDO env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${need[@]}" 2>&1) || {
        echo "$log" >&2
        return 1
    }
}

# SDKs that check our protocol double, and an S3 server that is not ours. Made anew when the list changes.
python_environment() {
    local stamp="$ENV_DIR/requirements.txt"
    cmp -s tests/requirements.txt "$stamp" && return 0
    rm -rf "$ENV_DIR/bin" "$ENV_DIR/lib" "$ENV_DIR/include"
    python3 -m venv "$ENV_DIR"
    "$ENV_DIR/bin/pip" install -q --disable-pip-version-check -r tests/requirements.txt
    cp tests/requirements.txt "$stamp"
}

# Built without optimisation: it runs for a second and would take minutes to compile.
cargo_deny() {
    [ "$("$ENV_DIR/bin/cargo-deny" --version 2>/dev/null)" = "cargo-deny $DENY_VERSION" ] && return 0
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$PWD/target/cargo-deny" cargo install --quiet --debug --locked --force \
        --no-default-features --root "$ENV_DIR" "cargo-deny@$DENY_VERSION"
    rm -rf target/cargo-deny
}

# Suites for file systems that were not written here. Built without optimisation: quicker, and what they wait for is the kernel.
suites() {
    local installed
    installed=$(cargo install --list --root "$ENV_DIR" 2>/dev/null || true)
    grep -q "^pjdfstest v$PJDFSTEST_VERSION:" <<<"$installed" && grep -q "^fsx v$FSX_VERSION:" <<<"$installed" &&
        [ -x "$ENV_DIR/bin/pjdfstest" ] && [ -x "$ENV_DIR/bin/fsx" ] && return 0
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$PWD/target/suites" cargo install --quiet --debug --locked --force \
        --root "$ENV_DIR" "pjdfstest@$PJDFSTEST_VERSION" "fsx@$FSX_VERSION"
    rm -rf target/suites
}

# QEMU, for booting a node in a machine of its own. Debian 12 has tools of it from its backports on many machines, and those go only with
# an emulator from there.
emulator() {
    command -v qemu-system-x86_64 >/dev/null && return 0
    local sources release
    release=$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)
    if [ "$release" != bookworm ]; then
        debian_packages qemu-system-x86_64:qemu-system-x86
        return
    fi
    sources=$(mktemp -d)
    mkdir "$sources/parts" "$sources/lists"
    printf 'deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/%s main\n' \
        "debian $release" "debian $release-backports" "debian-security $release-security" >"$sources/parts/emulator.list"
    # Only for this: the machine's own sources stay what they are.
    local apt=($SUDO env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dir::Etc::SourceList=/dev/null
        -o "Dir::Etc::SourceParts=$sources/parts" -o "Dir::State::Lists=$sources/lists" -o Acquire::Retries=5)
    local log status=0
    log=$({ "${apt[@]}" update && "${apt[@]}" install -y --no-install-recommends -t "$release-backports" qemu-system-x86; } 2>&1) || status=$?
    $SUDO rm -rf "$sources"
    [ $status = 0 ] || echo "$log" >&2
    return $status
}

# What the machine boots, before anything of ours is in it.
machine_image() { $SUDO bash tests/vm/image.sh "$ENV_DIR/vm"; }

# The packages that go into it are made by the tests, of the programs that they test; what makes packages is built here, once.
packager() { bash systemd/dist.sh --tools deb; }

dependencies() {
    "$ENV_DIR/bin/cargo-deny" --log-level error check licenses sources bans || return 1
    # The advisory database is a git repository on the internet, which not every machine reaches.
    if timeout 60 "$ENV_DIR/bin/cargo-deny" --log-level error fetch db >/dev/null 2>&1; then
        "$ENV_DIR/bin/cargo-deny" --log-level error check --disable-fetch advisories
    else
        echo "SKIPPED: advisories (the advisory database cannot be reached from this machine)"
    fi
}

# What is not run here, by name and with the reason.
skipped() {
    grep -rhn -A1 --include='*.rs' '#\[ignore' agent fuse-oss nvme-setup oss tests |
        sed -n 's/.*ignore = "\(.*\)".*/SKIPPED (\1):/p; s/.*-fn \(.*\)() {.*/    \1/p' || true
}

setup() {
    mkdir -p "$ENV_DIR"
    # shellcheck disable=SC2086 # a list of words
    step "packages" debian_packages $PROGRAMS "$@"
    beside "image of a virtual machine" machine_image
    step "Python environment" python_environment
    step "pjdfstest and fsx" suites
    step "emulator" emulator
    step "packager" packager
}

documentation() { RUSTDOCFLAGS="-D warnings" cargo doc --quiet --workspace --no-deps --document-private-items; }

# What an aborted test run may have left; the tests themselves clean up after themselves.
nothing_left() {
    local left
    # What tests call the directories in which they mount and attach things, servers and network namespaces of theirs among them.
    local theirs='/(batch-agent|batch-node|fuse-oss|nvme-setup|file-servers|network-test|engine)-[^/ ]*/'
    left=$(grep -E "(fuse\.)?fuse-oss|/batch-agent|$theirs" /proc/self/mountinfo || true)
    left+=$(pgrep -fa '(^|/)(fuse-oss serve|batch-agent shim|guest-relay|qemu-system-x86_64 .*guest-relay)' || true)
    # Of tasks, at the top of each tree of version 1 and of version 2, or in systemd's slice.
    left+=$(find /sys/fs/cgroup -maxdepth 4 -type d \( -path '*/batch-agent/*' -o -path '*/batch-agent.slice/*' \) 2>/dev/null || true)
    left+=$(losetup --noheadings --output NAME,BACK-FILE | grep -E "$theirs" || true)
    [ -z "$left" ] && return 0
    printf 'left behind by the tests:\n%s\n' "$left" >&2
    return 1
}

export TEST_PYTHON="$ENV_DIR/bin/python"
case "${1:-test}" in
setup)
    setup
    joined
    ;;
test)
    setup
    step "format" cargo fmt --all --check
    step "build" cargo build --quiet --locked --workspace --all-targets
    joined
    step "tests" cargo test --quiet --locked --workspace
    step "nothing left behind" nothing_left
    skipped
    step "the example" bash examples/log-count/demo.sh
    step "clippy" cargo clippy --quiet --locked --workspace --all-targets -- -D warnings
    step "documentation" documentation
    step "cargo-deny" cargo_deny
    step "licences and sources" dependencies
    ;;
soak)
    # shellcheck disable=SC2086 # a list of words
    setup $SOAK_PROGRAMS
    joined
    step "newer kernel of a virtual machine" $SUDO bash tests/vm/kernel.sh "$ENV_DIR/vm"
    step "build" cargo build --quiet --locked --workspace --all-targets
    step "soak tests" cargo test --quiet --locked --workspace -- --ignored --nocapture soak
    step "nothing left behind" nothing_left
    ;;
*)
    echo "unknown step $1; see the top of tests/run.sh" >&2
    exit 64
    ;;
esac
printf '\nWhat each step took:\n'
printf '%s\n' "${timings[@]}"
printf '%5d s  in all\n' "$SECONDS"
