#!/usr/bin/env bash
# Checks Core ML programs on a Mac: makes fixtures, trains by them through Core ML, compares the
# losses with eager PyTorch's. With folders as arguments, these fixtures are checked instead.
set -euo pipefail
cd "$(dirname "$0")/.."

[ "$(uname -s)" = Darwin ] || { echo "error: Core ML is on macOS only, found $(uname -s)" >&2; exit 2; }
make setup
python=.venv/bin/python
if [ "$#" -eq 0 ]; then
    folder=$(mktemp -d)
    trap 'rm -rf "$folder"' EXIT
    for precision in fp32 fp16; do
        options=(--target coreml --precision "$precision" --steps 20)
        "$python" scripts/device_fixture.py -o "$folder/$precision" "${options[@]}"
        "$python" scripts/device_fixture.py -o "$folder/$precision-mobilenet" "${options[@]}" \
            --subject mobilenet_v2 --plan sparse:7:7
    done
    set -- "$folder"/*
fi
for fixture in "$@"; do
    echo "== $fixture"
    "$python" scripts/check_fixture.py "$fixture"
done
echo "== passed"
