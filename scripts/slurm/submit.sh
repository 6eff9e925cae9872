#!/usr/bin/env bash
# Submits a run to Slurm: an array of parts, and their assembly when all are done.
#
#   scripts/slurm/submit.sh --base BASE --tuned TUNED --out OUT --parts 16 [options of trephine extract] [-- options of sbatch]
#   scripts/slurm/submit.sh dequantize CHECKPOINT --out OUT --parts 16 ...   (merge and analyze likewise)
#
# The checkpoints and OUT lie where every node sees them. Parts may be preempted, killed, lost with their node: they are
# requeued and go on. After a cancelled or failed run the same line goes on too. `trephine status OUT` tells how far it is.
# Options after `--` go to sbatch for parts and assembly alike:  -- --partition=spot --cpus-per-task=8 --mem=4G --time=2:00:00
# TREPHINE names the program, if it is not on the PATH.
set -euo pipefail

usage() {
  sed -n '2,/^set /p' "$0" | sed -n 's/^# \{0,1\}//p' >&2
  echo "submit.sh: $*" >&2
  exit 2
}

command=extract
case ${1:-} in
extract | dequantize | merge | analyze) command=$1 && shift ;;
esac
parts='' out='' options=() assembly=() sbatch=()
while [ $# -gt 0 ]; do
  case $1 in
  --) shift && sbatch=("$@") && break ;;
  --help | -h) usage "what to submit?" ;;
  --parts=*) parts=${1#*=} && shift && continue ;;
  --parts) parts=${2:-} && shift 2 && continue ;;
  --part | --part=* | --dry-run | --json) usage "$1 is for a single run" ;;
  --out=*) out=${1#*=} ;;
  --out) out=${2:-} ;;
  --keep-shards | --other-simd | --quiet | -q) assembly+=("$1") ;;
  --memory=* | --threads=*) assembly+=("$1") ;;
  --memory | --threads) assembly+=("$1" "${2:-}") ;;
  esac
  options+=("$1")
  shift
done
[[ $parts =~ ^[1-9][0-9]*$ ]] || usage "--parts N is missing, or no number"
[ -n "$out" ] || usage "--out is missing"

trephine=${TREPHINE:-trephine}
script=$(dirname "$(readlink -f "$0")")/part.sbatch
# A slip in the options is better reported now than by every part.
[ $command != extract ] || "$trephine" extract "${options[@]}" --part "1/$parts" --dry-run >/dev/null

# Beside the output folder, in which nothing else may lie.
logs=${out%/}.slurm
mkdir -p "$logs"
array=$(sbatch --parsable --array="1-$parts" --output="$logs/part-%A_%a.log" "${sbatch[@]}" \
  "$script" "$trephine" $command "${options[@]}" --part "auto/$parts")
array=${array%%;*}
# Only the parts are an array.
alone=()
for option in "${sbatch[@]}"; do [[ $option == --array=* ]] || alone+=("$option"); done
assembly_job=$(sbatch --parsable --dependency="afterok:$array" --kill-on-invalid-dep=yes \
  --output="$logs/assemble-%j.log" "${alone[@]}" "$script" "$trephine" assemble "$out" "${assembly[@]}")
echo "parts 1 to $parts: job $array; assembly: job ${assembly_job%%;*}; logs: $logs"
