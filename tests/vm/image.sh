#!/usr/bin/env bash
# The machine that the VM tests boot: a plain Debian with systemd, cloud-init and an NFS server, and nothing of ours in it.
#
#   tests/vm/image.sh CACHE    makes CACHE/root.img and CACHE/vmlinuz unless they are there already, made by this very recipe
#
# Needs root, for device nodes. Downloading and unpacking take minutes and are kept apart from what is configured here, which takes
# seconds.
set -euo pipefail

readonly SUITE=bookworm
readonly PACKAGES=systemd,systemd-sysv,udev,dbus,kmod,xfsprogs,e2fsprogs,nfs-common,nfs-kernel-server,fuse3,cloud-init,mdadm,iproute2,ifupdown,isc-dhcp-client,ca-certificates,procps,netbase,linux-image-cloud-amd64
# Where the root partition is in the disk, in bytes, and by which id the kernel finds it.
readonly OFFSET=$((1 << 20))
readonly PARTITION=6a1f0f3e-5d0c-4c2e-9f57-0b1d2c3e4f50
readonly DISK_SIZE=3G

hash_of() { sha256sum | cut -c -16; }

# Debian itself, as a tar archive.
packages() { # packages CACHE
    local tar
    tar=$1/packages-$(printf '%s %s' "$SUITE" "$PACKAGES" | hash_of).tar
    if [ ! -e "$tar" ]; then
        rm -f "$1"/packages-*
        mmdebstrap --quiet --variant=minbase --aptopt='Acquire::Retries "5"' --include="$PACKAGES" "$SUITE" "$tar.new.tar" >&2
        mv "$tar.new.tar" "$tar"
    fi
    echo "$tar"
}

# What a cloud's image has and a bare Debian has not.
configure() { # configure TREE
    local tree=$1 unit
    printf 'PARTUUID=%s / ext4 defaults 0 1\n' "$PARTITION" >"$tree/etc/fstab"
    echo localhost >"$tree/etc/hostname"
    printf '127.0.0.1 localhost\n' >"$tree/etc/hosts"
    # Every machine gets an identity of its own when it boots.
    : >"$tree/etc/machine-id"
    rm -f "$tree/var/lib/dbus/machine-id"
    mkdir -p "$tree/etc/network/interfaces.d" "$tree/etc/cloud/cloud.cfg.d" "$tree/etc/systemd/journald.conf.d"
    printf 'auto lo\niface lo inet loopback\nsource /etc/network/interfaces.d/*\n' >"$tree/etc/network/interfaces"
    # What the tests do not need and what costs time where every instruction is emulated.
    for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer \
        getty@.service serial-getty@.service systemd-timesyncd.service nfs-blkmap.service rpc-gssd.service; do
        ln -sf /dev/null "$tree/etc/systemd/system/$unit"
    done
    printf '[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\nMaxLevelConsole=info\nStorage=volatile\n' \
        >"$tree/etc/systemd/journald.conf.d/console.conf"
    # It has no other locale than C, and no SSH.
    printf 'locale: false\nssh_genkeytypes: []\nssh_deletekeys: false\n' >"$tree/etc/cloud/cloud.cfg.d/90-test.cfg"
    # On a busy host nothing in it is late, only slow.
    mkdir -p "$tree/etc/systemd/system.conf.d"
    printf '[Manager]\nDefaultTimeoutStartSec=20min\nDefaultTimeoutStopSec=10min\nDefaultDeviceTimeoutSec=20min\n' \
        >"$tree/etc/systemd/system.conf.d/slow.conf"
    # The NAS: served by the machine to itself.
    mkdir -p "$tree/srv/nas"
    echo '/srv/nas 127.0.0.1(rw,sync,no_subtree_check,no_root_squash,insecure)' >"$tree/etc/exports"
    # It has to outlive what is mounted from it; a real one is another machine.
    mkdir -p "$tree/etc/systemd/system/mnt-nas.mount.d"
    printf '[Unit]\nAfter=nfs-server.service\n' >"$tree/etc/systemd/system/mnt-nas.mount.d/server.conf"
}

make_image() { # make_image CACHE
    local cache=$1 stamp work tar
    mkdir -p "$cache"
    stamp=$(hash_of <"$0")
    [ "$(cat "$cache/recipe" 2>/dev/null)" = "$stamp" ] && return 0
    rm -f "$cache/recipe"
    tar=$(packages "$cache")
    work=$(mktemp -d "$cache/work.XXXXXX")
    # shellcheck disable=SC2064 # this very directory
    trap "rm -rf '$work'" EXIT
    mkdir "$work/tree"
    tar -xpf "$tar" --numeric-owner --xattrs -C "$work/tree"
    configure "$work/tree"
    cp "$work/tree"/boot/vmlinuz-* "$cache/vmlinuz"
    # Started by hand, without a boot loader: no need to carry these.
    rm -rf "$work/tree"/boot/* "$work/tree"/var/cache/apt/* "$work/tree"/var/lib/apt/lists/*
    truncate -s "$DISK_SIZE" "$work/root.img"
    printf 'label: gpt\nstart=%d, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, uuid=%s\n' $((OFFSET / 512)) "$PARTITION" |
        sfdisk --quiet "$work/root.img"
    # The last MiB is the second partition table's.
    mkfs.ext4 -q -F -E "offset=$OFFSET" -L root -d "$work/tree" "$work/root.img" $((3 * 1024 - 2))M
    mv "$work/root.img" "$cache/root.img"
    echo "$stamp" >"$cache/recipe"
}

[ "$(uname -m)" = x86_64 ] || {
    echo "the tests boot a virtual machine that runs the programs of this one, and there is an image for x86_64 only: $(uname -m)" >&2
    exit 1
}
[ $# = 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0" >&2; exit 64; }
make_image "$1"
