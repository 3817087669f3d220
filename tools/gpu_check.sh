#!/usr/bin/env bash
# Everything that needs a GPU, in parts of less than 9 minutes each: tests, the demo, and every speed that the README misses.
#
#   tools/gpu_check.sh OUT [PART…]      all parts unless some are named:
#
#   tests     the tests marked gpu
#   demo      the demo, from images to a trained network
#   data_cuda, data_mixed, data_engines      the input, with none, some and all of the JPEGs decoded by the hardware engines
#   paper     the step of the paper network at 299², siblings merged or not, for a sweep of batches
#   slim      the same of the slim network
#   paper_compiled, slim_compiled, slim_merged      the same compiled, for two batches, each of which is compiled anew
#   full      both networks compiled as a whole
#   sizes     the paper network's step at 192² and 224²
#   timm      the slim network beside timm's, compiled or not
#   originals the trainer from originals, beside its step on a batch that lies ready, and what bounds it
#   records   the same from records of 328²
#   first     seconds to the first step, with an empty folder of kernels and a full one
#   norm      synchronised normalisation beside torch's, on all GPUs of this host (two at least)
#   small     8 and 16 images a GPU, replayed as a CUDA graph or not
#
# PYTHON=python3 chooses the interpreter; it must have what setup.py lists, or PYTHONPATH has to lead to it. The part timm needs
# timm besides. GPU_CHECK_DRY=1 goes through all parts at the smallest sizes on a CPU: its figures mean nothing and its file
# says so. OUT/gpu_check.json holds what was run so far, how each ended and what was measured, and is written after each part;
# OUT/*.log hold what each printed.
set -uo pipefail
out=${1:?usage: tools/gpu_check.sh OUT [PART…]}
shift
parts=("$@")
known=(tests demo data_cuda data_mixed data_engines paper slim paper_compiled slim_compiled slim_merged full sizes timm originals
  records first norm small)
[ ${#parts[@]} -gt 0 ] || parts=("${known[@]}")
for part in "${parts[@]}"; do
  case " ${known[*]} " in
    *" $part "*) ;;
    *) echo "gpu_check: there is no part '$part'; known are: ${known[*]}" >&2; exit 2 ;;
  esac
done
python=${PYTHON:-python3}
dry=${GPU_CHECK_DRY:-}
[[ $out == /* ]] || out=$PWD/$out
cd "$(dirname "$0")/.." || exit
[ -n "$dry" ] || "$python" -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null || {
  echo "gpu_check: torch of $python sees no NVIDIA GPU here; run this on a machine with one" >&2
  exit 2
}
mkdir -p "$out" || exit
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
begun_of_part=$SECONDS
failed=()

run() {  # run NAME COMMAND…: its output into OUT/NAME.log, its exit code and seconds into OUT/steps.tsv; 9 minutes a part
  local name=$1 begun=$SECONDS left=$((530 - SECONDS + begun_of_part))
  shift
  echo "== $name: $*"
  rm -f "$out/$name.json" # of an earlier time
  timeout --kill-after 10 "$((left > 1 ? left : 1))" "$@" >"$out/$name.log" 2>&1
  local code=$?
  tail -n 4 "$out/$name.log"
  [ "$code" = 0 ] || failed+=("$name")
  if [ -f "$out/steps.tsv" ]; then grep -v "^$name	" "$out/steps.tsv" >"$out/steps.new"; mv "$out/steps.new" "$out/steps.tsv"; fi
  printf '%s\t%s\t%s\n' "$name" "$code" "$((SECONDS - begun))" >>"$out/steps.tsv"
}

model() {  # model NAME OPTIONS…: bench_model.py
  local name=$1
  shift
  run "$name" "$python" tools/bench_model.py "$@" "${model_size[@]}" --json "$out/$name.json"
}

train() {  # train NAME OPTIONS…: bench_train.py, with batches of their own where none are given
  local name=$1
  shift
  run "$name" "$python" tools/bench_train.py "${train_size[@]}" "$@" --json "$out/$name.json"
}

images=4000 sweep=(64 128 256 512) some=(128 256) small=(8 16) modes=(off regional)
model_size=(--rounds 20) train_size=(--images "$images" --recipe setting1 --batch 256) data_size=(--batch 256 --images "$images" --rounds 3)
side() { echo "$1"; }
if [ -n "$dry" ]; then
  images=64 sweep=(2 4) some=(2) small=(2) modes=(off)
  model_size=(--rounds 1 --device cpu --amp fp32)
  train_size=(--images 32 --recipe demo --batch 4 --seconds 0.1 --rounds 1 --train.device cpu --input.resize 82 --input.crop 75)
  data_size=(--batch 4 --images 16 --device cpu --seconds 0.1 --rounds 1 --resize 88 --crop 80)
  side() { echo 75; }
fi

tests() { run tests "$python" -m pytest -m gpu -p no:cacheprovider tests/training tests/models tests/data \
  tests/use/test_evaluate.py tests/train/test_not_finite.py; }

demo() {
  local stop=()
  [ -z "$dry" ] || stop=(--train.stop-after 2 --train.device cpu)
  run demo_images "$python" -m fastirv2.demo "$work/images"
  run demo_train_lmdb "$python" -m fastirv2.build_lmdb "$work/images/train" "$work/train"
  run demo_val_lmdb "$python" -m fastirv2.build_lmdb "$work/images/val" "$work/val"
  run demo "$python" -m fastirv2.train --recipe demo --train "$work/train" --val "$work/val" --out "$work/run" "${stop[@]}"
  cp "$work/run/metrics.jsonl" "$out/demo_metrics.jsonl" 2>/dev/null
}

data() {  # data LOAD: the share of the JPEGs that the hardware engines decode
  run "data_$1" "$python" tools/bench_data.py "${data_size[@]}" --hw-decoder-load "$1" --json "$out/data_$1.json"
}

data_cuda() { data 0; }

data_mixed() { data 0.65; }

data_engines() { data 1; }

network() {  # network ARCH MODE MERGE BATCH…
  model "model_$1_$2_merge_$3" --arch "$1" --size "$(side 299)" --batch "${@:4}" --compile "$2" --merge "$3"
}

both() {  # both ARCH MODE BATCH…: with siblings merged and not
  for merge in off on; do network "$1" "$2" "$merge" "${@:3}"; done
}

paper() { both paper off "${sweep[@]}"; }

slim() { both slim off "${sweep[@]}"; }

paper_compiled() { both paper "${modes[-1]}" "${some[@]}"; }

slim_compiled() { network slim "${modes[-1]}" off "${some[@]}"; }

slim_merged() { network slim "${modes[-1]}" on "${some[@]}"; }

full() {
  local mode=full
  [ -z "$dry" ] || mode=off
  for arch in paper slim; do network "$arch" "$mode" off "${some[-1]}"; done
}

sizes() {
  for pixels in 192 224; do
    model "model_paper_$pixels" --arch paper --size "$(side "$pixels")" --batch "${some[@]}" --compile "${modes[@]}" --merge on
  done
}

timm() {
  for mode in "${modes[@]}"; do
    model "model_timm_$mode" --arch slim --vs timm --size "$(side 299)" --batch "${some[0]}" --compile "$mode" --merge on off
  done
}

from() {  # from NAME RESIZE: the trainer, and what bounds it, from images that were built so; warped and cropped, as both can be
  local batch=256 input=(--input.resize-mode warp --input.augment crop) last=(--minutes 1)
  [ -z "$dry" ] || batch=4 last=(--minutes 0.02 --train.device cpu --input.resize 82 --input.crop 75)
  train "train_$1" --recipe setting1 --build-resize "$2" "${input[@]}"
  "$python" tools/photographs.py "$work/$1-images" --images "$images" >/dev/null
  "$python" -m fastirv2.build_lmdb "$work/$1-images" "$work/$1" --resize "$2" >/dev/null 2>&1
  run "diagnose_$1" "$python" tools/diagnose.py "$work/$1" --batch "$batch" "${input[@]}" "${last[@]}" \
    --json "$out/diagnose_$1.json"
}

originals() { from originals none; }

records() { from records 328x328; }

first() {
  for cache in cold warm; do
    TORCHINDUCTOR_CACHE_DIR="$work/kernels" train "first_$cache" --train.compile "${modes[-1]}" --seconds 0.5 --rounds 1
  done
}

norm() {
  local gpus
  gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())')
  if [ -n "$dry" ]; then
    run norm "$python" -m torch.distributed.run --standalone --nproc-per-node 2 tools/bench_model.py --size 75 --batch 2 \
      --norm local shared "${model_size[@]}" --json "$out/norm.json"
  elif [ "$gpus" -lt 2 ]; then
    echo "gpu_check: norm needs two GPUs, and here is one: left out"
  else
    run norm "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" tools/bench_model.py --size 299 \
      --batch 128 --norm local shared torch --compile "${modes[@]}" "${model_size[@]}" --json "$out/norm.json"
  fi
}

small() {
  local how=(off on)
  [ -z "$dry" ] || how=(off)
  for batch in "${small[@]}"; do
    for graph in "${how[@]}"; do
      train "small_${batch}_graph_$graph" --batch "$batch" --train.cuda-graph "$graph"
    done
  done
}

summary() {
  "$python" - "$out" "$dry" <<'P'
import json, sys
from pathlib import Path
from fastirv2.report.machine import describe

out, dry = Path(sys.argv[1]), bool(sys.argv[2])
lines = (out / "steps.tsv").read_text().splitlines() if (out / "steps.tsv").exists() else []
steps = [line.split("\t") for line in lines]
measured = {}
for path in sorted(out.glob("*.json")):
    try:
        measured |= {path.stem: json.loads(path.read_text())} if path.name != "gpu_check.json" else {}
    except ValueError as error:
        print(f"gpu_check: {path} is left out, it is cut short: {error}")
result = {
    "machine": describe(),
    "dry": dry,
    "steps": [{"name": name, "exit_code": int(code), "seconds": int(seconds)} for name, code, seconds in steps],
    "measured": {name: {k: v for k, v in value.items() if k != "machine"} for name, value in measured.items()},
}
(out / "gpu_check.json").write_text(json.dumps(result, indent=1) + "\n")
bad = [step["name"] for step in result["steps"] if step["exit_code"]]
said = " (a dry run on a CPU: no figure means anything)" if dry else ""
print(f"gpu_check: {len(steps)} steps so far, failed: {', '.join(bad) or 'none'}; {out / 'gpu_check.json'}{said}")
P
}

for part in "${parts[@]}"; do
  begun_of_part=$SECONDS
  "$part"
  summary || failed+=(summary)
done
[ ${#failed[@]} -eq 0 ]
