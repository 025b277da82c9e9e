#!/usr/bin/env bash
# Packages of the three programs, in dist/: .deb, .rpm and .tar.gz, each with units, manual pages, completions, samples and licences.
#
#   systemd/dist.sh                        static programs that run on any Linux of this architecture, in all three forms
#   systemd/dist.sh --programs DIR [FORM]  the programs that are in DIR, as they are, in one form (deb, rpm, tar, or tree for only laying
#                                          it all out in target/dist-tree) or all: to try packaging
#   systemd/dist.sh --tools [FORM]         only builds what makes packages
#
# Needs a Rust toolchain and python3; cargo-deb and cargo-generate-rpm are installed below target/. What comes out depends only on what is
# committed and on the toolchain. The environment variable DIST names another directory than dist/.
set -euo pipefail
cd "$(dirname "$0")/.."
export CARGO_INCREMENTAL=0
umask 022
readonly CARGO_DEB_VERSION=3.8.0
readonly CARGO_GENERATE_RPM_VERSION=0.21.1
readonly PROGRAMS="batch-agent fuse-oss nvme-setup"
readonly TOOLS="$PWD/target/dist-tools"
readonly TREE="$PWD/target/dist-tree"
readonly DIST=${DIST:-dist}

programs="" forms="deb rpm tar" quick="" only_tools=""
if [ "${1:-}" = --tools ]; then
    forms=${2:-$forms} only_tools=yes
    shift $(($# < 2 ? $# : 2))
elif [ "${1:-}" = --programs ]; then
    programs=$(realpath "${2:?--programs needs a directory}")
    forms=${3:-$forms} quick=--fast
    shift $(($# < 3 ? $# : 3))
fi
[ $# = 0 ] || { sed -n '2,8s/^# \{0,1\}//p' "$0" >&2; exit 64; }
for form in $forms; do
    case $form in deb | rpm | tar | tree) ;; *) echo "no such form: $form; there are deb, rpm, tar and tree" >&2; exit 64 ;; esac
done

target=$(rustc -vV | sed -n 's/^host: //p')
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -1)
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
export SOURCE_DATE_EPOCH

# Built without optimisation: they run for seconds.
tool() { # tool CRATE VERSION [OPTIONS...]
    local crate=$1 version=$2
    shift 2
    if ! cargo install --list --root "$TOOLS" 2>/dev/null | grep -q "^$crate v$version:"; then
        CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR="$TOOLS/build" \
            cargo install --quiet --debug --locked --force --root "$TOOLS" "$@" "$crate@$version"
        rm -rf "$TOOLS/build"
    fi
}
for form in $forms; do
    case $form in
    deb) tool cargo-deb "$CARGO_DEB_VERSION" --no-default-features --features gzip ;;
    rpm) tool cargo-generate-rpm "$CARGO_GENERATE_RPM_VERSION" ;;
    esac
done
[ -z "$only_tools" ] || exit 0

if [ -z "$programs" ]; then
    # With --target, the flags reach the programs and not the build scripts and macros, which cannot be static.
    RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target "$target" -p batch-agent -p fuse-oss -p nvme-setup --bins
    programs="$PWD/target/$target/release"
    for program in $PROGRAMS; do
        if ldd "$programs/$program" 2>/dev/null | grep -q '=>'; then
            echo "$programs/$program is not static" >&2
            exit 1
        fi
    done
fi

# Everything as it will lie in a machine's root; all forms are made of it.
rm -rf "$TREE"
place() { install -D -m 644 -t "$TREE/$1" "${@:2}"; }
for program in $PROGRAMS; do
    install -D -m 755 -t "$TREE/usr/bin" "$programs/$program"
    "$TREE/usr/bin/$program" manual "$TREE/usr/share"
done
gzip -9n "$TREE"/usr/share/man/man1/*.1
place usr/lib/systemd/system systemd/units/*
place usr/lib/systemd/system-preset systemd/package/80-batch-agent.preset
place usr/lib/tmpfiles.d systemd/tmpfiles.d/batch-agent.conf
for unit in systemd/drop-ins/*; do
    place "usr/share/batch-agent/drop-ins/$(basename "$unit")" "$unit"/*
done
install -D -m 755 -t "$TREE/usr/share/batch-agent/image" systemd/image/install.sh
place usr/share/doc/batch-agent README.md CHANGELOG.md
place usr/share/doc/batch-agent/examples systemd/cloud-init/* examples/node.yaml
place usr/share/licenses/batch-agent LICENSE
python3 systemd/package/licences.py "$target" $PROGRAMS >"$TREE/usr/share/licenses/batch-agent/THIRD-PARTY"
chmod 644 "$TREE/usr/share/licenses/batch-agent/THIRD-PARTY"
find "$TREE" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$DIST"
made=()
for form in $forms; do
    case $form in
    deb)
        "$TOOLS/bin/cargo-deb" --quiet --locked --no-build --no-strip -p batch-agent --deb-revision "" $quick --output "$DIST/"
        case $target in x86_64-*) architecture=amd64 ;; aarch64-*) architecture=arm64 ;; *) architecture=${target%%-*} ;; esac
        made+=("$DIST/batch-agent_${version}_$architecture.deb")
        ;;
    rpm)
        "$TOOLS/bin/cargo-generate-rpm" generate-rpm -p agent --payload-compress gzip --source-date "$SOURCE_DATE_EPOCH" -o "$DIST/"
        made+=("$DIST/batch-agent-$version-1.${target%%-*}.rpm")
        ;;
    tar)
        name="batch-agent-$version-${target%%-*}"
        tar -C "$TREE" --owner=root:0 --group=root:0 --sort=name --mtime="@$SOURCE_DATE_EPOCH" --transform "s,^\./,$name/," -cf - . |
            gzip -9n >"$DIST/$name.tar.gz"
        made+=("$DIST/$name.tar.gz")
        ;;
    esac
done
[ ${#made[@]} = 0 ] && exit 0
python3 systemd/package/contents.py "$TREE" "${made[@]}"
ls -l "${made[@]}"
