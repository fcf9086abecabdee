#!/usr/bin/env bash
# Runs the experiment and refreshes the results beside this script; needs AUTOCOMPRESS_DATA and about 15 minutes on 2 idle cores.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
run="${1:-runs/001_resnet20_budget}"
autocompress search cifar10:resnet20 --config "$here/search.yaml" --run-dir "$run"
cp "$run/front.csv" "$here/results.csv"
cp "$run/trials.jsonl" "$run/run.json" "$here/"
