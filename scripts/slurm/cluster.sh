#!/usr/bin/env bash
# A Slurm cluster of four emulated nodes on this machine, for tests: Debian's packages, loopback only, no systemd.
#
#   scripts/slurm/cluster.sh up     # as root; then: export SLURM_CONF=$(scripts/slurm/cluster.sh conf)
#   scripts/slurm/cluster.sh node 2 # starts the slurmd of node2 again
#   scripts/slurm/cluster.sh down   # ends all of it, and removes its files
#
# Exit code 3: the packages cannot be had.
# Nodes node1..node4 have one processor each. Partition `low` is preempted by `high`: requeued after 5 s of grace.
set -euo pipefail
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C

home=${TREPHINE_CLUSTER:-${TMPDIR:-/tmp}/trephine-cluster}
nodes=4
grace=5
controller_port=27817
conf=$home/slurm.conf
export SLURM_CONF=$conf

fail() {
  echo "cluster: $*" >&2
  exit 1
}

install_packages() {
  for program in munged mungekey slurmctld slurmd sbatch; do
    command -v $program >/dev/null || missing=$program
  done
  [ -n "${missing:-}" ] || return 0
  # No daemon is to be started by its package: this machine may have no systemd, and the test has settings of its own.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod +x $policy
    trap 'rm -f $policy' EXIT
  fi
  export DEBIAN_FRONTEND=noninteractive
  if ! { apt-get -q update && apt-get -q -y --no-install-recommends install slurm-wlm munge; } >"$home/apt.log" 2>&1; then
    tail -n 3 "$home/apt.log" >&2
    echo "cluster: apt-get could not install slurm-wlm and munge" >&2
    rm -rf "$home"
    exit 3
  fi
}

write_settings() {
  cat >"$conf" <<EOF
ClusterName=trephine
SlurmctldHost=localhost
SlurmctldPort=$controller_port
# Listen on loopback only: on what the names of the hosts resolve to.
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
# A requeued job starts again once its old credential has expired: after 120 s, unless told otherwise (5 is the least).
AuthInfo=socket=$home/munge/socket,cred_expire=5
SlurmUser=slurm
StateSaveLocation=$home/state
SlurmctldPidFile=$home/slurmctld.pid
SlurmctldLogFile=$home/log/slurmctld
SlurmdPidFile=$home/slurmd-%n.pid
SlurmdLogFile=$home/log/slurmd-%n
SlurmdSpoolDir=$home/spool-%n
# No cgroups: containers have none to give.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
CompleteWait=0
ReturnToService=2
SlurmdTimeout=20
NodeName=node[1-$nodes] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((controller_port + 1))-$((controller_port + nodes))] CPUs=1
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE DefaultTime=30 PriorityTier=1 PreemptMode=REQUEUE GraceTime=$grace
PartitionName=high Nodes=ALL MaxTime=INFINITE DefaultTime=30 PriorityTier=2 PreemptMode=OFF
EOF
  # Loaded even where nothing uses it, and the default of it fails without /sys/fs/cgroup.
  echo CgroupPlugin=cgroup/v1 >"$home/cgroup.conf"
}

# The daemons bind to the address of the machine's own name, which has to be loopback while the cluster is up.
name_is_loopback() {
  [[ $(getent ahostsv4 "$(hostname)" | head -n 1) == 127.* ]]
}

start_munge() {
  mkdir -p "$home/munge"
  [ -s "$home/munge/key" ] || mungekey --create --keyfile "$home/munge/key"
  chown -R munge: "$home/munge"
  chmod 755 "$home/munge"
  chmod 400 "$home/munge/key"
  setpriv --reuid munge --regid munge --clear-groups munged --key-file "$home/munge/key" --socket "$home/munge/socket" \
    --pid-file "$home/munge/pid" --log-file "$home/munge/log" --seed-file "$home/munge/seed"
}

start_node() {
  mkdir -p "$home/spool-node$1"
  slurmd -N "node$1" >>"$home/log/slurmd-node$1" 2>&1
}

up() {
  [ "$(id -u)" = 0 ] || fail "only root can start it"
  [ ! -e "$home/up" ] || fail "is up already, or was not ended: $0 down"
  mkdir -p "$home/log" "$home/state"
  chmod 755 "$home"
  touch "$home/up"
  install_packages
  write_settings
  if ! name_is_loopback; then
    cp /etc/hosts "$home/hosts"
    # Written in place: in a container it is a mount, and cannot be renamed over.
    { echo "127.0.0.1 $(hostname)"; cat "$home/hosts"; } >/etc/hosts
    name_is_loopback || fail "the name of this machine does not resolve to loopback"
  fi
  chown slurm: "$home/state" "$home/log"
  start_munge
  slurmctld >>"$home/log/slurmctld" 2>&1
  for ((node = 1; node <= nodes; node++)); do start_node "$node"; done
  for ((tries = 0; tries < 150; tries++)); do
    idle=$(sinfo --noheader --partition low --format %D --states idle 2>/dev/null || true)
    [ "$idle" != $nodes ] || break
    sleep 0.2
  done
  [ "$idle" = $nodes ] || fail "its nodes are not ready: see $home/log"
  echo "cluster: $(slurmctld -V) with $nodes nodes; export SLURM_CONF=$conf"
}

# Ends the process of a pid file, if that is `program` still.
end() {
  local pid tries
  pid=$(cat "$2" 2>/dev/null) || return 0
  for ((tries = 0; tries < 100; tries++)); do
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ] || return 0
    if ((tries == 0)); then kill "$pid"; elif ((tries == 80)); then kill -KILL "$pid"; fi
    sleep 0.1
  done
  echo "cluster: $1 ($pid) does not end" >&2
}

# Ends what is left of this cluster's jobs: steps that could not tell anyone that their job is over would try for ever.
end_steps() {
  local process
  for process in /proc/[0-9]*; do
    if [[ $(cat "$process/comm" 2>/dev/null) == slurmstepd* ]]; then
      [[ $(readlink "$process/cwd") == "$home"/* ]] || continue
    else
      grep -qz "^SLURMD_NODENAME=" "$process/environ" 2>/dev/null || continue
      grep -qzx "SLURM_CONF=$conf" "$process/environ" 2>/dev/null || continue
    fi
    kill -KILL "${process#/proc/}" 2>/dev/null || true
  done
}

down() {
  [ -e "$home/up" ] || return 0
  # Jobs outlive their slurmd, so they go first.
  mapfile -t jobs < <(timeout 5 squeue --noheader --format %A 2>/dev/null | sort -u)
  if [ ${#jobs[@]} -gt 0 ]; then
    timeout 10 scancel --quiet --full --signal=KILL "${jobs[@]}" || true
    timeout 10 scancel --quiet "${jobs[@]}" || true
    for ((tries = 0; tries < 50; tries++)); do
      [ -n "$(timeout 5 squeue --noheader 2>/dev/null)" ] || break
      sleep 0.2
    done
  fi
  for ((node = 1; node <= nodes; node++)); do end slurmd "$home/slurmd-node$node.pid"; done
  end_steps
  end slurmctld "$home/slurmctld.pid"
  end munged "$home/munge/pid"
  if [ -e "$home/hosts" ]; then cat "$home/hosts" >/etc/hosts; fi
  rm -rf "$home"
}

case ${1:-} in
up) up ;;
down) down ;;
conf) echo "$conf" ;;
node) start_node "$2" ;;
*) fail "up, down, conf, or node N" ;;
esac
