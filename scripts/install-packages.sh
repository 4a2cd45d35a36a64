#!/bin/sh
# Install what is missing of the named Debian packages, and what this Python lacks to make a virtual
# environment and to compile. Says what it does; does nothing when all is there.
#
#     scripts/install-packages.sh fuse3 libfuse3-dev gcc
set -eu

python=${PYTHON:-python3}
missing=
for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' || missing="$missing $package"
done
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing python3-venv"
"$python" -c 'import os, sysconfig; os.stat(sysconfig.get_paths()["include"] + "/Python.h")' 2>/dev/null ||
    missing="$missing python3-dev"
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null; then
    echo "skep needs these Debian packages, and there is no apt-get here:$missing" >&2
    exit 1
fi
sudo=
if [ "$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
        echo "skep needs these Debian packages; install them as root:$missing" >&2
        exit 1
    fi
    sudo=sudo
fi
echo "installing$missing" >&2
export DEBIAN_FRONTEND=noninteractive
# The lists may be old, or may have been removed to make an image small.
$sudo apt-get -qq update
# shellcheck disable=SC2086
$sudo apt-get -qq install -y --no-install-recommends $missing >/dev/null
