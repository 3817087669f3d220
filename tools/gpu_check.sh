#!/usr/bin/env bash
# Everything that needs a GPU, in one go: the tests marked gpu, the demo, images/s of the step and of the input.
#
#   tools/gpu_check.sh OUT          PYTHON=python3 chooses the interpreter; it must have what setup.py lists
#
# OUT/gpu_check.json holds what was run, how each ended and what the profilers measured; OUT/*.log what each printed.
set -uo pipefail
out=${1:?usage: tools/gpu_check.sh OUT}
python=${PYTHON:-python3}
cd "$(dirname "$0")/.." || exit
mkdir -p "$out" || exit
out=$(cd "$out" && pwd)
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
: >"$out/steps.tsv"

run() {  # run NAME COMMAND…: its output into OUT/NAME.log, its exit code and seconds into OUT/steps.tsv
  local name=$1 begun=$SECONDS
  shift
  echo "== $name: $*"
  "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 4 "$out/$name.log"
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begun))" >>"$out/steps.tsv"
}

"$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
  echo "gpu_check: torch of $python sees no NVIDIA GPU here; run this on a machine with one" >&2
  exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run tests "$python" -m pytest -m gpu -p no:cacheprovider
run demo_images "$python" -m fastirv2.demo "$work/images"
run demo_train_lmdb "$python" -m fastirv2.build_lmdb "$work/images/train" "$work/train"
run demo_val_lmdb "$python" -m fastirv2.build_lmdb "$work/images/val" "$work/val"
run demo "$python" -m fastirv2.train --recipe demo --train "$work/train" --val "$work/val" --out "$work/run"
cp "$work/run/metrics.jsonl" "$out/demo_metrics.jsonl" 2>/dev/null
run evaluate "$python" -m fastirv2.evaluate "$work/run" --val "$work/val" --crops 12 --json
run predict "$python" -m fastirv2.predict "$work/run" "$work/images/val" --json --features "$work/features.npy"
for arch in paper slim; do
  run "model_$arch" "$python" tools/bench_model.py --arch "$arch" --json "$out/model_$arch.json"
done
for load in 0 0.65 1; do
  run "data_$load" "$python" tools/bench_data.py --batch 256 --images 4000 --hw-decoder-load "$load" --json "$out/data_$load.json"
done

"$python" - "$out" <<'P'
import json, sys
from pathlib import Path
from fastirv2.report.machine import describe

out = Path(sys.argv[1])
steps = [line.split("\t") for line in (out / "steps.tsv").read_text().splitlines()]
measured = {path.stem: json.loads(path.read_text()) for path in sorted(out.glob("*.json")) if path.name != "gpu_check.json"}
result = {
    "machine": describe(),
    "steps": [{"name": name, "exit_code": int(code), "seconds": int(seconds)} for name, code, seconds in steps],
    "measured": {name: {k: v for k, v in value.items() if k != "machine"} for name, value in measured.items()},
}
(out / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
failed = [step["name"] for step in result["steps"] if step["exit_code"]]
print(f"gpu_check: {len(steps)} steps, failed: {', '.join(failed) or 'none'}; {out / 'gpu_check.json'}")
sys.exit(bool(failed))
P
