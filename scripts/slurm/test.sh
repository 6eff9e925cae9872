#!/usr/bin/env bash
# Extractions on a real Slurm cluster of four emulated nodes: whole, preempted, with a lost node, cancelled and submitted
# again. Each time every file but the log has the bytes of a run on one machine.
#
#   scripts/slurm/test.sh     # as root, on Debian or Ubuntu; elsewhere it says that it is skipped
#
# The parts are interrupted when their journals say that they are amid their work, not by the clock.
set -euo pipefail
cd "$(dirname "$0")/../.."
here=$PWD/scripts/slurm

if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
  echo "slurm: skipped, for the test cluster needs root and apt"
  exit 0
fi

home=$(mktemp -d)
chmod 755 "$home" # the daemons are not all root
export TREPHINE_CLUSTER=$home/cluster
finish() {
  local status=$?
  if [ $status != 0 ]; then
    # What there is to be seen, before it is removed.
    tail -n 30 "$home"/*.slurm/*.log "$home"/cluster/log/slurmctld 2>/dev/null || true
    squeue 2>/dev/null || true
  fi
  "$here/cluster.sh" down || true
  rm -rf "$home"
  exit $status
}
trap finish EXIT
trap 'exit 130' INT TERM

begun=$SECONDS
say() { echo "slurm: $((SECONDS - begun)) s: $*"; }
fail() {
  echo "slurm: FAILED: $*" >&2
  exit 1
}

export TREPHINE=${CARGO_TARGET_DIR:-$PWD/target}/release/trephine
"$here/cluster.sh" up || {
  # CI has what it takes; another machine may have no network.
  [ $? = 3 ] && [ -z "${CI:-}" ] || exit 1
  echo "slurm: skipped, for Slurm could not be installed"
  trap - EXIT
  rm -rf "$home"
  exit 0
}
# Modules of half a second and more on one thread, seven a part. The program is built along with the benchmark.
model=$home/model
cargo bench --quiet --bench shape_true -- "$model" --hidden 2048 --intermediate 6144 --heads 16 --layers 4 >/dev/null
SLURM_CONF=$("$here/cluster.sh" conf)
export SLURM_CONF
options=(--base "$model/base-fp8" --tuned "$model/tuned" --rank 256 --memory 1GiB)
"$TREPHINE" extract "${options[@]}" --out "$home/one" --quiet >/dev/null
say "one machine is done"

back() { [[ $(sinfo -h -n "$1" -o %t) =~ ^(idle|mix|alloc)$ ]]; }

# submit OUT: an array of four parts and its assembly; sets `array` and `assembly`.
submit() {
  local line
  line=$("$here/submit.sh" "${options[@]}" --out "$home/$1" --parts 4 -- --partition=low)
  say "$1: $line"
  array=$(sed 's/.* job \([0-9]*\); assembly.*/\1/' <<<"$line")
  assembly=$(sed 's/.* assembly: job \([0-9]*\);.*/\1/' <<<"$line")
}

# until_true SECONDS WHAT COMMAND...
until_true() {
  local end=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    [ $SECONDS -lt $end ] || fail "waited in vain: $what"
    sleep 0.1
  done
}

# Whether a part has finished a module; of its journal the first line is its beginning.
amid() { [ "$(cat "$home/$1"/.trephine/parts/"$2"-of-4-*/journal 2>/dev/null | wc -l)" -ge 2 ]; }
state() { scontrol --oneliner show job "$1" | sed -n '1s/.*JobState=\([A-Z_]*\).*/\1/p'; }
is_in() { [ "$(state "$1")" = "$2" ]; }
gone() { [ -z "$(squeue --noheader --jobs "$1" 2>/dev/null)" ]; }
node_of() { squeue --noheader --jobs "${array}_$1" --format %N; }

# assembled OUT: waits for the assembly, then compares.
assembled() {
  until_true 120 "$1 is assembled" gone "$assembly"
  is_in "$assembly" COMPLETED || fail "the assembly of $1 came to $(state "$assembly")"
  diff -r --exclude extraction.log "$home/one" "$home/$1" || fail "$1 has other bytes than one machine's run"
  "$TREPHINE" verify --quiet "$home/$1" >/dev/null
  say "$1: the bytes of one machine"
}

# went_on OUT PART: a part was begun more than once, and did not do again what it had done.
went_on() {
  # The parts' own logs stand one after the other, each under its name.
  awk -v part="$2-of-4-" '/:$/ { mine = index($2, part) == 1 } mine && / are ahead;/' "$home/$1/extraction.log" |
    sed 's/.*: \([0-9]* modules of [0-9]*\) are ahead.*/\1/' >"$home/begun"
  say "$1: part $2 began with $(paste -sd, "$home/begun" | sed 's/,/, then /g')"
  [ "$(wc -l <"$home/begun")" -ge 2 ] || fail "part $2 of $1 was not begun twice"
  awk '$1 >= $4 { full++ } END { exit full > 1 }' "$home/begun" || fail "part $2 of $1 did its work again"
}

submit whole
assembled whole

# The process of a part, as it wrote down when it began.
process_of() { sed -n 's/.*"process": \([0-9]*\).*/\1/p' "$home/$1"/.trephine/parts/"$2"-of-4-*/attempt.json; }

submit preempted
until_true 60 "part 2 is amid its work" amid preempted 2
# A machine that is fast would finish in the grace time, which counts as done.
kill -STOP "$(process_of preempted 2)"
# What comes before a time limit: part 4 stops, and requeues itself alone.
until_true 60 "part 4 is amid its work" amid preempted 4
scancel --batch --signal=USR1 "${array}_4"
node=$(node_of 2)
sbatch --quiet --partition=high --nodelist="$node" --output=/dev/null --wrap 'sleep 3'
until_true 30 "part 2 is preempted" test -n "$(squeue --noheader --partition high)"
for part in 2 4; do
  until_true 60 "part $part runs again" grep -q 'restarted 1 times' "$home/preempted.slurm/part-${array}_$part.log"
done
assembled preempted
for part in 1 3; do
  grep -q 'restarted 0 times' "$home/preempted.slurm/part-${array}_$part.log" || fail "part $part did not run"
  ! grep -q 'restarted 1 times' "$home/preempted.slurm/part-${array}_$part.log" || fail "part $part was requeued too"
done
went_on preempted 2
went_on preempted 4

submit lost
until_true 60 "part 3 is amid its work" amid lost 3
node=$(node_of 3)
# As if its power was cut: slurmd, the step's daemon and the part go at once, without a word to anyone. The daemon comes
# before the part, whose end it would report.
processes=()
for process in /proc/[0-9]*; do
  grep -qzx "SLURMD_NODENAME=$node" "$process/environ" 2>/dev/null || continue
  parent=$(sed -n 's/^PPid:\t//p' "$process/status")
  [[ $(cat "/proc/$parent/comm") != slurmstepd* ]] || processes=("$parent" "${processes[@]}")
  processes+=("${process#/proc/}")
done
[ ${#processes[@]} -ge 3 ] || fail "only ${#processes[@]} processes were found on $node"
kill -KILL "$(cat "$TREPHINE_CLUSTER/slurmd-$node.pid")" "${processes[@]}"
# Slurm would see it by itself after SlurmdTimeout.
scontrol update nodename="$node" state=down reason=lost
say "lost: $node"
until_true 60 "part 3 runs again" grep -q 'restarted 1 times' "$home/lost.slurm/part-${array}_3.log"
"$here/cluster.sh" node "${node#node}"
# Where it has not come back by itself.
scontrol update nodename="$node" state=resume 2>/dev/null || true
until_true 60 "$node is back" back "$node"
assembled lost
went_on lost 3

# The other commands whose work can be split.
bridge=(dequantize "$model/base-fp8" --max-shard-size 20MB)
"$TREPHINE" "${bridge[@]}" --out "$home/bridge-one" --quiet >/dev/null
line=$("$here/submit.sh" "${bridge[@]}" --out "$home/bridge" --parts 4 -- --partition=low)
say "bridge: $line"
assembly=$(sed 's/.* assembly: job \([0-9]*\);.*/\1/' <<<"$line")
until_true 120 "bridge is assembled" gone "$assembly"
is_in "$assembly" COMPLETED || fail "the assembly of bridge came to $(state "$assembly")"
diff -r "$home/bridge-one" "$home/bridge" || fail "bridge has other bytes than one machine's run"
say "bridge: the bytes of one machine"

submit cancelled
for part in 1 2 3 4; do until_true 60 "part $part is amid its work" amid cancelled $part; done
scancel "$array"
until_true 60 "the array is gone" gone "$array"
until_true 60 "its assembly is gone" gone "$assembly"
say "cancelled: $("$TREPHINE" status "$home/cancelled" | grep 'modules are done')"
submit cancelled
assembled cancelled
went_on cancelled 1
say "all is well"
