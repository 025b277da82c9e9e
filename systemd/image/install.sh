#!/usr/bin/env bash
# Puts batch-agent into a machine image, and proves that what starts from it will be a node.
#
#   install.sh --root DIR [OPTIONS]    into the root tree of an image that is being built
#   install.sh --running [OPTIONS]     into this machine, which is about to be imaged: it forgets who it is
#   install.sh --check --root DIR      changes nothing, and only proves; also with --running
#
# OPTIONS
#   --order-after-mounts UNIT    docker.service or ecs.service starts when disks and mounts are there, and not without (several times)
#   --without-cloud-init         the image gets its settings in another way: do not ask for cloud-init
#
# The programs come from where this script lies: an unpacked batch-agent-*.tar.gz, or an installed package. Running it again changes
# nothing. What it does not understand it refuses, before anything is changed.
#
# EXIT STATUS   0 the image is good   1 it is not, and why is printed   64 wrong usage   65 refused, nothing was changed
set -euo pipefail
umask 022

# What the image must have, and where it comes from here.
readonly PROGRAMS="batch-agent fuse-oss nvme-setup"
SOURCE=$(realpath "$(dirname "$0")/../../../..")
readonly SOURCE
readonly FOLDERS="usr/bin usr/lib/systemd/system usr/lib/systemd/system-preset usr/lib/tmpfiles.d usr/share"
readonly INDENT="s/^/  /"

usage() {
    [ $# = 0 ] || echo "install.sh: $*" >&2
    sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 64
}
refuse() { echo "refused: $*" >&2; exit 65; }
note() { echo "note: $*"; }

root="" only_check=no wants_cloud_init=yes order=()
while [ $# -gt 0 ]; do
    case $1 in
    --root) [ -z "$root" ] || usage "--root and --running do not go together"; root=${2:?--root needs a directory}; shift ;;
    --running) [ -z "$root" ] || usage "--root and --running do not go together"; root=/ ;;
    --check) only_check=yes ;;
    --without-cloud-init) wants_cloud_init=no ;;
    --order-after-mounts)
        case ${2:-} in docker.service | ecs.service) order+=("$2") ;; *) usage "there is no drop-in for '${2:-}'" ;; esac
        shift ;;
    -h | --help) usage ;;
    *) usage "what is $1?" ;;
    esac
    shift
done
[ -n "$root" ] || usage "say which image: --root DIR, or --running for this machine"
[ "$(id -u)" = 0 ] || refuse "an image belongs to root: run this as root"
[ -d "$root" ] || refuse "$root is no directory"
root=$(realpath "$root")
# The form that can be put in front of a path.
at=${root%/}
is_running=no
if [ "$root" = / ]; then is_running=yes; fi

# --- Is this an image that we understand? Nothing is changed yet.

[ -e "$at/usr/lib/os-release" ] || [ -e "$at/etc/os-release" ] || refuse "$root is not the root of a Linux system: it has no os-release"
[ -x "$at/usr/lib/systemd/systemd" ] || [ -x "$at/lib/systemd/systemd" ] || refuse "$root has no systemd, which is what starts the agent"
for program in $PROGRAMS; do
    [ -x "$SOURCE/usr/bin/$program" ] || refuse "this script lies beside no programs: $SOURCE/usr/bin/$program is missing; unpack batch-agent-*.tar.gz and run the script in it"
done

inside() { # inside COMMAND...: runs it in the image
    if [ "$is_running" = yes ]; then "$@"; else chroot "$root" "$@"; fi
}
units() { systemctl --root="$root" "$@"; }
command -v systemctl >/dev/null || refuse "systemctl is needed for looking at the image's units; install systemd here"

# What a path leads to in the image. A link out of it would have us write into this machine.
for folder in $FOLDERS etc/systemd/system etc/batch-agent var/lib/batch-agent var/lib/dbus var/lib/systemd var/lib/cloud; do
    real=$(realpath -m "$at/$folder")
    case $real/ in "$at"/*) ;; *) refuse "$at/$folder leads out of the image, to $real" ;; esac
done

owned_by_package() { # the version of the installed package, if there is one
    if [ -x "$at/usr/bin/dpkg-query" ]; then
        inside dpkg-query -W -f '${db:Status-Status} ${Version}' batch-agent 2>/dev/null | sed -n 's/^installed //p'
    elif [ -x "$at/usr/bin/rpm" ]; then
        inside rpm -q --qf '%{VERSION}' batch-agent 2>/dev/null | grep -v 'not installed' || true
    fi
}
version_of() { "$1" --version 2>/dev/null | sed -n '1s/^[a-z-]* //p'; }
ours=$(version_of "$SOURCE/usr/bin/batch-agent")
[ -n "$ours" ] || refuse "$SOURCE/usr/bin/batch-agent does not run on this machine"
packaged=$(owned_by_package)
if [ -n "$packaged" ] && [ "${packaged%%-*}" != "$ours" ]; then
    refuse "the image has the package batch-agent $packaged, and this is $ours: upgrade the package instead"
fi

# Nobody's work is thrown away.
agent_state="$at/var/lib/batch-agent"
if [ "$is_running" = yes ] && systemctl --quiet is-active batch-agent.service 2>/dev/null; then
    [ "$only_check" = yes ] || refuse "an agent runs on this machine: systemctl stop batch-agent, and see that no task is left"
fi
if grep -qE " $agent_state(/| )| $at/run/batch-agent/" /proc/self/mountinfo; then
    refuse "something is mounted below $agent_state or $at/run/batch-agent: unmount it, or restart the machine"
fi
if [ -n "$(find "$agent_state/instances" "$agent_state/scratch" -mindepth 1 -not -type d -print -quit 2>/dev/null)" ]; then
    refuse "$agent_state holds what a task has left, which may not have been uploaded: look at it and remove it"
fi

# --- Installing.

same() { cmp -s "$1" "$2" && [ "$(stat -c %a:%u:%g "$2")" = "$3:0:0" ]; }
changed=0
put() { # put FILE: from the source into the image, when it is not there already
    local mode=644
    if [ -x "$SOURCE/$1" ]; then mode=755; fi
    same "$SOURCE/$1" "$at/$1" "$mode" && return 0
    install -D -m "$mode" -o 0 -g 0 "$SOURCE/$1" "$at/$1"
    changed=$((changed + 1))
}
remove() { # remove PATH: below the image, if it is there
    local path="$at/${1:?}"
    [ -e "$path" ] || [ -L "$path" ] || return 0
    rm -rf --one-file-system -- "$path"
    changed=$((changed + 1))
}

put_all() {
    [ "$SOURCE" != "$root" ] || return 0
    [ -z "$packaged" ] || return 0
    local file
    while IFS= read -r -d '' file; do
        put "$file"
    done < <(cd "$SOURCE" && find $FOLDERS -type f -print0)
}

enable_all() {
    if [ "$(units is-enabled batch-agent.service 2>/dev/null)" != enabled ]; then
        units preset batch-agent.service 2>/dev/null || true
        # A distribution may have a preset against everything.
        units enable batch-agent.service 2>/dev/null
        changed=$((changed + 1))
    fi
    local unit drop_in
    for unit in "${order[@]}"; do
        drop_in="etc/systemd/system/$unit.d/batch-node.conf"
        same "$SOURCE/usr/share/batch-agent/drop-ins/$unit.d/batch-node.conf" "$at/$drop_in" 644 && continue
        install -D -m 644 -o 0 -g 0 "$SOURCE/usr/share/batch-agent/drop-ins/$unit.d/batch-node.conf" "$at/$drop_in"
        changed=$((changed + 1))
    done
    install -d -m 755 -o 0 -g 0 "$at/etc/batch-agent"
    if [ "$is_running" = yes ] && [ -d /run/systemd/system ]; then
        systemctl daemon-reload
    fi
}

# Every instance of the image is somebody else than the machine it was made on.
forget() {
    if [ -s "$at/etc/machine-id" ] && [ "$(cat "$at/etc/machine-id")" != uninitialized ]; then
        : >"$at/etc/machine-id"
        changed=$((changed + 1))
    fi
    local path
    for path in var/lib/dbus/machine-id var/lib/systemd/random-seed; do
        # A link to /etc/machine-id is as it should be.
        [ -L "$at/$path" ] || remove "$path"
    done
    # What a task has left has been looked for above; all else is memory.
    while IFS= read -r -d '' path; do
        remove "${path#"$at/"}"
    done < <(find "$agent_state" -mindepth 1 -maxdepth 1 -print0 2>/dev/null)
    if [ "$wants_cloud_init" = yes ] && [ -e "$at/var/lib/cloud/instance" ]; then
        inside cloud-init clean --logs
        changed=$((changed + 1))
    fi
}

# --- Proving.

failures=0
holds() { # holds WHAT TEST...
    local what=$1
    shift
    if "$@"; then echo "ok: $what"; else echo "WRONG: $what" >&2; failures=$((failures + 1)); fi
}
runs() { [ "$(inside "/usr/bin/$1" --version 2>/dev/null | sed -n '1s/^[a-z-]* //p')" = "$ours" ]; }
is_enabled() { case $(units is-enabled "$1" 2>/dev/null) in enabled | enabled-runtime | static | alias) ;; *) return 1 ;; esac; }
is_ours() { [ "$SOURCE" = "$root" ] || [ -n "$packaged" ] || cmp -s "$SOURCE/$1" "$at/$1"; }
only_roots() { [ -z "$(find "$at/$1" -maxdepth 0 \( -not -uid 0 -o -perm /022 \) -print)" ]; }
empty_file() { [ ! -s "$at/$1" ] || [ "$(cat "$at/$1")" = uninitialized ]; }
without() { [ ! -e "$at/$1" ]; }
is_empty() { [ -z "$(find "$at/$1" -mindepth 1 -print -quit 2>/dev/null)" ]; }
settings_are_good() { inside /usr/bin/batch-agent check --config >/dev/null; }
cloud_init_runs() { inside cloud-init --version >/dev/null 2>&1; }
cloud_init_is_on() { [ ! -e "$at/etc/cloud/cloud-init.disabled" ] && { is_enabled cloud-init.service || is_enabled cloud-init-network.service; }; }
# node.yaml has to be written in the network stage; the later ones may come after the agent.
cloud_init_writes_early() {
    awk '/^[^ #-]/ { in_it = /^cloud_init_modules:/ } in_it && /write[-_]files/ { found = 1 } END { exit !found }' "$at/etc/cloud/cloud.cfg"
}
# Only a running machine has had a boot to be judged by.
cloud_init_was_well() {
    local said
    said=$(timeout 60 cloud-init status 2>/dev/null || true)
    case $said in *error*) timeout 60 cloud-init status --long 2>/dev/null | sed "$INDENT" >&2; return 1 ;; esac
}

prove() {
    local program unit path
    for program in $PROGRAMS; do
        holds "$program $ours runs in the image" runs "$program"
        holds "/usr/bin/$program is the one from here" is_ours "usr/bin/$program"
        holds "only root can change /usr/bin/$program" only_roots "usr/bin/$program"
    done
    for unit in batch-agent.service fuse-oss.service batch-node-mounts.target batch-node-mounts.service batch-node-ready.target batch-node-ready.service \
        nvme-setup-trim.timer nvme-setup-trim.service; do
        holds "$unit is there" test -e "$at/usr/lib/systemd/system/$unit"
        [ -e "$at/etc/systemd/system/$unit" ] && note "/etc/systemd/system/$unit hides the one that comes with the agent"
    done
    holds "batch-agent.service starts with the machine" is_enabled batch-agent.service
    for unit in "${order[@]}"; do
        holds "$unit waits for the mounts" test -e "$at/etc/systemd/system/$unit.d/batch-node.conf"
    done
    holds "the image has no machine-id of its own" empty_file etc/machine-id
    holds "the agent has no memory of this machine (/var/lib/batch-agent is empty)" is_empty var/lib/batch-agent
    if [ -e "$at/etc/batch-agent/node.yaml" ] || [ -n "$(find "$at/etc/batch-agent/node.yaml.d" -name '*.yaml' -print -quit 2>/dev/null)" ]; then
        note "the image carries settings of its own in /etc/batch-agent; every instance has them, unless user data replaces them"
        holds "they are good (batch-agent check --config)" settings_are_good
    fi
    if [ "$wants_cloud_init" = yes ]; then
        holds "cloud-init is there and runs" cloud_init_runs
        holds "cloud-init is not switched off" cloud_init_is_on
        holds "cloud-init writes files before the agent starts (write_files in cloud_init_modules)" cloud_init_writes_early
        if [ "$is_running" = yes ]; then
            holds "cloud-init was well when this machine started" cloud_init_was_well
        fi
        holds "cloud-init has forgotten this machine" without var/lib/cloud/instance
    fi
    for program in mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs mdadm:mdadm mount.nfs:nfs-common; do
        [ -e "$at/usr/sbin/${program%%:*}" ] || [ -e "$at/sbin/${program%%:*}" ] ||
            note "${program%%:*} is not in the image (package ${program#*:}); needed only where settings ask for it"
    done
}

if [ "$only_check" = no ]; then
    # cloud-init's own word about this boot is gone once it has forgotten it.
    if [ "$is_running" = yes ] && [ "$wants_cloud_init" = yes ] && command -v cloud-init >/dev/null; then
        cloud_init_was_well || refuse "cloud-init was not well when this machine started; an image of it would not be, either"
    fi
    put_all
    enable_all
    forget
    echo "changed: $changed"
fi
prove
if [ "$failures" -gt 0 ]; then
    echo "the image is NOT good: $failures of the above are wrong" >&2
    exit 1
fi
echo "the image is good"
