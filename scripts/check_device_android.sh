#!/usr/bin/env bash
# Trains on an Android phone and compares the losses with those of a fixture.
#
#   python scripts/device_fixture.py -o fixture --target qnn --soc SM8650
#   scripts/check_device_android.sh fixture qnn_executor_runner libraries
#
# RUNNER is ExecuTorch's qnn_executor_runner, built for arm64-v8a from the sources of the release
# that pockmobile pins (backends/qualcomm/scripts/build.sh). LIBRARIES is a folder with the .so
# files that it needs on the phone: libqnn_executorch_backend.so, libQnnHtp.so, libQnnSystem.so,
# libQnnHtpV*Stub.so and libQnnHtpV*Skel.so of the phone's Hexagon.
set -euo pipefail

usage="usage: $0 [--dry-run] FIXTURE RUNNER LIBRARIES
  --dry-run  print what would be run, and run nothing"

fail() {
  echo "error: $1" >&2
  exit "${2:-1}"
}

dry_run=
if [[ ${1:-} == --dry-run ]]; then
  dry_run=1
  shift
fi
[[ $# == 3 ]] || fail "expected FIXTURE, RUNNER and LIBRARIES, found $# arguments
$usage" 2
fixture=$1 runner=$2 libraries=$3
folder=/data/local/tmp/pockmobile

[[ -f $fixture/steps.txt ]] || fail "$fixture has no steps.txt; make it with device_fixture.py" 2
[[ -f $runner ]] || fail "$runner is no file; build qnn_executor_runner" 2
[[ -d $libraries ]] || fail "$libraries is no folder" 2

run() {
  if [[ $dry_run ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@" </dev/null
  fi
}

[[ $dry_run ]] || command -v adb >/dev/null || fail "adb is missing; install platform-tools"
read -r method num_state <"$fixture/method.txt"
losses=$(mktemp -d)
trap 'rm -rf "$losses"' EXIT

run adb shell "rm -rf $folder && mkdir -p $folder/outputs"
run adb push "$runner" "$folder/runner"
run adb push "$libraries/." "$folder"
run adb push "$fixture/." "$folder"
run adb shell "chmod +x $folder/runner"

states=() outputs=()
for ((index = 0; index < num_state; index++)); do
  states+=("state_$index.bin")
  outputs+=("mv outputs/output_0_$((index + 1)).raw state_$index.bin")
done
number=0
while read -r _ inputs; do
  list="${states[*]} $inputs"
  command="cd $folder && echo $list >input_list.txt && LD_LIBRARY_PATH=. ADSP_LIBRARY_PATH=. \
./runner --model_path model.pte --method_index $method --input_list_path input_list.txt \
--output_folder_path outputs"
  for move in "${outputs[@]}"; do
    command+=" && $move"
  done
  run adb shell "$command"
  run adb pull "$folder/outputs/output_0_0.raw" "$losses/$number.raw"
  number=$((number + 1))
done <"$fixture/steps.txt"

if [[ $dry_run ]]; then
  exit
fi
python3 - "$fixture" "$losses" <<'PYTHON'
import json
import struct
import sys
from pathlib import Path

fixture, losses = map(Path, sys.argv[1:])
expected = json.loads((fixture / "fixture.json").read_text())
wrong = 0
for number, step in enumerate(expected["steps"]):
    (found,) = struct.unpack("<f", (losses / f"{number}.raw").read_bytes())
    is_near = abs(found - step["loss"]) <= expected["loss_relative"] * abs(step["loss"])
    wrong += not is_near
    print(f"step {number}: {found:.5f}, expected {step['loss']:.5f}{'' if is_near else ' WRONG'}")
print(f"{wrong} of {len(expected['steps'])} losses are wrong" if wrong else "all losses agree")
sys.exit(1 if wrong else 0)
PYTHON
