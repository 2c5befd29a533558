#!/bin/sh
# Runs the SDK's tests, as installed from a wheel, with the oldest and the newest openai it supports.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
oldest=$(sed -n 's/.*"openai>=\([0-9.]*\),.*/\1/p' pyproject.toml)

"${PYTHON:-python3}" -m venv "$work/build"
# setuptools builds beside the sources: those of a copy
mkdir "$work/sdk" && cp -R pyproject.toml README.md LICENSE src "$work/sdk"
"$work/build/bin/python" -m pip --disable-pip-version-check --quiet wheel --no-deps \
  --wheel-dir "$work" "$work/sdk"

for openai in "openai==$oldest" "openai<4"; do
  venv=$(mktemp -d "$work/venv.XXXX")
  "${PYTHON:-python3}" -m venv "$venv"
  "$venv/bin/python" -m pip --disable-pip-version-check --quiet install "$openai" \
    "$(echo "$work"/omai_sdk-*.whl)[test]"
  echo "$("$venv/bin/python" -m pip --disable-pip-version-check freeze | grep '^openai=')"
  "$venv/bin/python" -m pytest -p no:cacheprovider
done
