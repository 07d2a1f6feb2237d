#!/usr/bin/env bash
# usage: tests/cluster/long/image.sh
#
# Builds cluster/Containerfile without a registry and looks at what came out: Debian from its packages as the base, libraries from where
# pip finds them on this machine, and a copy of this checkout that is its owner's alone and has files that belong into no image. Needs root,
# buildah, mmdebstrap, some 8 GB of disk, and some minutes; everything is in build/image.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

work=$PWD/build/image
mkdir -p "$work/wheels" "$work/base"
buildah() { command buildah --storage-driver vfs --root "$work/storage" --runroot "$work/run" "$@"; }

if [[ ! -f $work/base/base.tar ]]; then
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv bookworm "$work/base/draft.tar"
    mv "$work/base/draft.tar" "$work/base/base.tar"
fi
if ! buildah inspect --type image guidino-tune-base > /dev/null 2>&1; then
    printf 'FROM scratch\nADD base.tar /\n' > "$work/base/Containerfile"
    buildah bud --quiet --isolation chroot --tag guidino-tune-base "$work/base" > /dev/null
fi

# This machine's pip knows its index, proxies and certificates; the image needs none of them, and keeps none.
python3 - << 'END' > "$work/requirements.txt"
import tomllib

project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = [line for name in ("postgres", "s3", "dicom", "nifti") for line in project["optional-dependencies"][name]]
print(*project["dependencies"], *extras, sep="\n")
print("mlflow[auth]", "setuptools>=77", "wheel", sep="\n")
END
python3 -m pip download --quiet --disable-pip-version-check --only-binary=:all: --python-version 3.11 --dest "$work/wheels" \
    --constraint constraints.txt --requirement "$work/requirements.txt" 2> "$work/pip.log" || { cat "$work/pip.log" >&2; exit 1; }

rm -rf "$work/context"
mkdir "$work/context"
git ls-files -z --cached --others --exclude-standard | xargs -0 cp --parents -t "$work/context"
mkdir "$work/context/.git"
touch "$work/context/"{.git/config,.env,cluster/.env}
chmod -R go= "$work/context"

buildah bud --quiet --isolation chroot --volume "$work/wheels:/wheels:ro" --build-arg BASE=localhost/guidino-tune-base \
    --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels --file cluster/Containerfile --tag guidino-tune \
    "$work/context" > /dev/null

buildah rmi --prune > /dev/null # the image of the run before
container=$(buildah from --pull-never localhost/guidino-tune)
trap 'buildah rm "$container" > /dev/null' EXIT
inside() { buildah run --isolation chroot "$container" -- "$@"; }

inside guidino-tune doctor
for script in head worker mlflow submit; do inside "$script.sh" --help > /dev/null; done
[[ $(inside id -u) == 10001 ]] || { echo "error: the image does not run as a user of its own" >&2; exit 1; }
[[ -z $(inside find /opt/guidino_tune -path /opt/guidino_tune/.venv -prune -o \( -name '.env' -o -name .git -o -name tests \) -print) ]] ||
    { echo "error: the image holds files that belong to the checkout alone" >&2; exit 1; }
inside pg_dump --version > /dev/null
echo "the image is well"
