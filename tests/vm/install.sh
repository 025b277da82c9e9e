#!/usr/bin/env bash
# Puts things into the image of a machine that is off.
#
#   tests/vm/install.sh IMAGE FILE...    a FILE is a Debian package (*.deb), or SOURCE=/PATH/IN/THE/IMAGE; units are enabled
#
# Needs root. What it mounts is mounted in a namespace of its own: nobody else sees it, and it is gone with this script, however that ends.
set -euo pipefail
[ $# -ge 1 ] || { sed -n '2,6s/^# \{0,1\}//p' "$0" >&2; exit 64; }
[ "${IN_NAMESPACE:-}" = yes ] || IN_NAMESPACE=yes exec unshare --mount --propagation private "$0" "$@"

# Where the root partition is in the disk, in bytes; see image.sh.
readonly OFFSET=$((1 << 20))

install_into() { # install_into IMAGE FILE...
    local image=$1 root entry from to
    shift
    root=$(mktemp -d)
    # shellcheck disable=SC2064 # this very directory
    trap "umount '$root' 2>/dev/null || true; rmdir '$root'" EXIT
    mount -o "loop,offset=$OFFSET" "$image" "$root"
    for entry in "$@"; do
        case $entry in
        *.deb)
            cp "$entry" "$root/tmp/package.deb"
            # Quiet about what goes well.
            chroot "$root" dpkg -i /tmp/package.deb >"$root/tmp/log" 2>&1 || { cat "$root/tmp/log" >&2; return 1; }
            rm "$root/tmp/package.deb" "$root/tmp/log"
            ;;
        *)
            from=${entry%%=*} to=$root${entry#*=}
            mkdir -p "$(dirname "$to")"
            cp -aT "$from" "$to"
            chown -hR 0:0 "$to"
            case ${entry#*=} in /etc/systemd/system/*.service) chroot "$root" systemctl --quiet enable "$(basename "$to")" ;; esac
            ;;
        esac
    done
}

install_into "$@"
