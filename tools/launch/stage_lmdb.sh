#!/usr/bin/env bash
# Copies LMDB folders to this node's own disk and prints where they are, joined by commas; all else goes to stderr.
#
#   train=$(tools/launch/stage_lmdb.sh [--to DIR] [--check] LMDB[,LMDB…]…)
#   … --train "$train"
#
#   --to DIR   a folder on the node's own disk; $STAGE_TO, $SLURM_TMPDIR, $TMPDIR or /tmp unless given
#   --check    reads every record of a new copy, with PYTHON=python3 -m fastirv2.build_lmdb --check
#
# Whoever comes first copies, and everybody else on the node waits for it. What is there already is not copied again. A copy
# bears a part of the sha256 of its dataset.json in its name, so that it is never taken for that of another build.
set -euo pipefail

say() { echo "stage_lmdb.sh: $*" >&2; }

fail() {  # fail CODE SENTENCE
  say "$2"
  exit "$1"
}

size() { stat --dereference --format %s "$1" 2>/dev/null || echo -1; }

files() {  # the files of an LMDB folder that a copy needs, a line each: everything but LMDB's table of readers
  find -L "$1" -maxdepth 1 -type f ! -name lock.mdb -printf '%f\n'
}

complete() {  # complete SOURCE COPY: whether COPY holds all that SOURCE does
  cmp --silent "$1/dataset.json" "$2/dataset.json" || return 1
  local name
  while read -r name; do
    [ "$(size "$1/$name")" = "$(size "$2/$name")" ] || return 1
  done < <(files "$1")
}

bytes() {  # bytes SOURCE: what a copy takes
  local name sum=0
  while read -r name; do sum=$((sum + $(size "$1/$name"))); done < <(files "$1")
  echo "$sum"
}

gigabytes() { printf '%d.%02d GB' $(($1 / 1000000000)) $(($1 / 10000000 % 100)); }

missing_bytes() {  # what all that is not here yet takes
  local i sum=0
  for i in "${!sources[@]}"; do
    complete "${sources[i]}" "${copies[i]}" || sum=$((sum + $(bytes "${sources[i]}")))
  done
  echo "$sum"
}

check_space() {  # check_space BYTES: fails when they do not fit
  local free
  free=$(df --output=avail --block-size=1 "$to" | tail -n 1)
  [ "$1" -le "$free" ] || fail 65 "$to has $(gigabytes "$free") free, but $(gigabytes "$1") are to be copied;\
 remove what is no longer needed there, or name another folder with --to"
}

copy() {  # copy SOURCE COPY: aside first, so that a copy that bears its name is whole
  local name aside=$2.copying begun=$SECONDS
  say "copying $1 to $2, $(gigabytes "$(bytes "$1")")"
  mkdir "$aside"
  while read -r name; do
    cp -- "$1/$name" "$aside/$name" || { rm -rf "$aside"; fail 65 "$1/$name cannot be copied to $to; the reason is above"; }
  done < <(files "$1")
  complete "$1" "$aside" || fail 65 "$aside is not what $1 is: was that changed meanwhile? give the same command again"
  if [ "$check" = yes ]; then
    "${PYTHON:-python3}" -m fastirv2.build_lmdb --check "$aside" >&2 || fail 65 "$aside, a copy of $1, is damaged"
  fi
  sync "$aside"/*
  rm -rf "$2"
  mv --no-target-directory "$aside" "$2"
  say "copied $1 in $((SECONDS - begun)) s"
}

to=${STAGE_TO:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}
check=no
sources=() copies=()
while [ $# -gt 0 ]; do
  case $1 in
    --to) to=${2:?--to needs a folder}; shift 2 ;;
    --check) check=yes; shift ;;
    -*) fail 2 "there is no option $1; the options are --to DIR and --check" ;;
    *)
      IFS=, read -ra some <<<"$1"
      sources+=("${some[@]}")
      shift
      ;;
  esac
done
[ ${#sources[@]} -gt 0 ] || fail 2 "name at least one LMDB folder: stage_lmdb.sh [--to DIR] [--check] LMDB…"
[[ $to != *,* ]] || fail 2 "--to $to has a comma in its name, which joins paths here; choose another folder"
for source in "${sources[@]}"; do
  [[ -f $source/data.mdb && -f $source/dataset.json ]] ||
    fail 65 "$source is no finished LMDB folder of fastirv2-build-lmdb: it has no data.mdb or no dataset.json"
done
mkdir -p "$to/fastirv2-$(id -u)" || fail 65 "$to cannot be written to; name another folder with --to"
to=$(cd "$to/fastirv2-$(id -u)" && pwd)
for source in "${sources[@]}"; do
  hash=$(sha256sum <"$source/dataset.json")
  copies+=("$to/$(basename -- "$(realpath -- "$source")")-${hash:0:12}")
done

if [ "$(missing_bytes)" -gt 0 ]; then
  exec 9>"$to/lock"
  flock --nonblock 9 || { say "waiting for another process that copies to $to"; flock 9; }
  rm -rf "$to"/*.copying # whoever was at it is gone: it held the lock
  check_space "$(missing_bytes)"
  for i in "${!sources[@]}"; do
    complete "${sources[i]}" "${copies[i]}" || copy "${sources[i]}" "${copies[i]}"
  done
fi
(IFS=,; echo "${copies[*]}")
