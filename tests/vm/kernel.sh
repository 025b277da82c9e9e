#!/usr/bin/env bash
# The newer kernel that Debian has for the system of image.sh: with FUSE passthrough, which its own lacks.
#
#   tests/vm/kernel.sh CACHE    makes CACHE/newer/vmlinuz and CACHE/newer/modules unless they are there already, made by this very script
set -euo pipefail
[ $# = 1 ] || { sed -n '2,4s/^# \{0,1\}//p' "$0" >&2; exit 64; }
readonly RELEASE=bookworm-backports
mkdir -p "$1"
CACHE=$(realpath "$1")
readonly CACHE TO=$CACHE/newer
stamp=$(sha256sum <"$0" | cut -c -16)
[ "$(cat "$TO/recipe" 2>/dev/null)" = "$stamp" ] && exit 0

work=$(mktemp -d "$CACHE/work.XXXXXX")
# shellcheck disable=SC2064 # this very directory
trap "rm -rf '$work'" EXIT
mkdir -p "$work/parts" "$work/lists" "$work/tree"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $RELEASE main" >"$work/parts/kernel.list"
# Nothing of the machine's own is looked at or changed.
options=(-qq -o Dir::Etc::SourceList=/dev/null -o "Dir::Etc::SourceParts=$work/parts" -o "Dir::State::Lists=$work/lists"
    -o "Dir::Cache=$work" -o APT::Sandbox::User=root)
apt-get "${options[@]}" update >&2
package=$(apt-cache "${options[@]}" show "linux-image-cloud-amd64/$RELEASE" | sed -n 's/^Depends: \(linux-image-[^ ]*\).*/\1/p' | head -1)
[ -n "$package" ] || { echo "$RELEASE has no kernel for clouds" >&2; exit 1; }
(cd "$work" && apt-get "${options[@]}" download "$package/$RELEASE" >&2)
dpkg-deb -x "$work"/linux-image-*.deb "$work/tree"
version=$(basename "$work"/tree/lib/modules/*)
depmod -b "$work/tree" "$version"
rm -rf "$TO"
mkdir -p "$TO"
mv "$work/tree/boot/vmlinuz-$version" "$TO/vmlinuz"
mv "$work/tree/lib/modules" "$TO/modules"
echo "$stamp" >"$TO/recipe"
