#!/usr/bin/env bash
# A real Slurm on this machine, for tests: one slurmctld, four slurmd (n1 to n4), munge; on loopback only.
#
#   slurm/local_cluster.sh install          Debian's packages, where they are missing (root)
#   eval "$(slurm/local_cluster.sh up)"     start, wait until every node is idle, print what `env` prints
#   srun -N 2 hostname                      any Slurm command
#   slurm/local_cluster.sh status
#   slurm/local_cluster.sh down             end the jobs and the daemons; fails if anything is left
#
# --dir DIR: where all of it lives, from configuration to logs. `up` makes a temporary directory by default;
# the other commands default to the cluster that `env` made current. `down` keeps the logs of a DIR of yours.
# Clusters may run side by side, and the machine's own Slurm and munge are not touched.
set -euo pipefail

NODES=4
CPUS_PER_NODE=2   # declared, not counted: the nodes share whatever the machine has
MEMORY_MIB=16384  # likewise, so that jobs may ask for --mem
UP_DEADLINE_S=60
DOWN_DEADLINE_S=10
LONGEST_DIR=70    # the path of a UNIX socket has at most 107 characters

PATH=$PATH:/usr/sbin:/sbin  # where Debian keeps the daemons; not on every user's path

say() { echo "local_cluster: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2; }

is_installed() {
    local program
    for program in munged slurmctld slurmd srun; do command -v "$program" >/dev/null || return 1; done
}

install_packages() {
    ! is_installed || { say "Slurm and munge are there"; return; }
    ((EUID == 0)) || die "not root; install them with: sudo apt-get install slurm-wlm munge"
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends slurm-wlm munge >&2
}

# The first of NODES + 1 ports without a listener; below those at which ranks meet (parallel/ranks/discover.py), which
# are below the kernel's ephemeral ones.
free_ports() {
    local base port
    while base=$((10000 + RANDOM % (10000 - NODES))); do
        for ((port = base; port <= base + NODES; port++)); do
            ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || continue 2
        done
        echo "$base"
        return
    done
}

# In slurm.conf:
#   bf_interval: a requeued job is started by the backfill scheduler, which looks every 30 s by default
#   cred_expire: a requeued job waits for it, by default two minutes; steps fail on a node that stalls longer
#   No*InAddrAny: listen on 127.0.0.1 instead of on every interface
#   KillWait: between SIGTERM and SIGKILL, and before srun gives a node up that does not answer; by default 30 s
#   SlurmdTimeout: a node that does not answer so long is DOWN, and its jobs are requeued; by default 300 s
#   FirstJobId: ranks meet at a port made of the job's number, so two clusters must not share numbers
#   proctrack, task, config_overrides: a container has no cgroups, and maybe fewer cores than declared
configure() {
    local port=$1 user
    user=$(id -un)
    mkdir -p "$dir"/{log,munge,run,spool,state}
    (umask 077 && head -c 128 /dev/urandom >"$dir/munge/key")
    cat >"$dir/slurm.conf" <<CONF
ClusterName=local$port
SlurmctldHost=$(uname -n | cut -d. -f1)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge/socket,cred_expire=20
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
FirstJobId=$((port * 100))
StateSaveLocation=$dir/state
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdPidFile=$dir/run/%n.pid
SlurmdLogFile=$dir/log/%n.log
SlurmdSpoolDir=$dir/spool/%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,bf_interval=2
MpiDefault=none
ReturnToService=2
JobRequeue=1
KillWait=5
SlurmdTimeout=15
NodeName=DEFAULT CPUs=$CPUS_PER_NODE RealMemory=$MEMORY_MIB State=UNKNOWN
NodeName=n[1-$NODES] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[$((port + 1))-$((port + NODES))]
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
}

# munged's --force: it dislikes directories that not everybody may enter, or below one that all may write to.
start_daemons() {
    local n
    munged --force --key-file="$dir/munge/key" --seed-file="$dir/munge/seed" --socket="$dir/munge/socket" \
        --pid-file="$dir/run/munged.pid" --log-file="$dir/log/munged.log"
    slurmctld -f "$dir/slurm.conf"
    for ((n = 1; n <= NODES; n++)); do slurmd -f "$dir/slurm.conf" -N "n$n"; done
}

wait_until_idle() {
    local deadline=$((SECONDS + UP_DEADLINE_S))
    until [[ $(timeout 5 sinfo --noheader --Node --format=%t 2>/dev/null | grep -cx idle) == "$NODES" ]]; do
        ((SECONDS < deadline)) || die "not all of $NODES nodes are idle after $UP_DEADLINE_S s"
        sleep 0.1
    done
}

up() {
    is_installed || die "Slurm is not installed; as root: $0 install"
    [[ -n $dir ]] || { dir=$(mktemp -d -t slurm.XXXXXX) && touch "$dir/temporary"; }
    (umask 077 && mkdir -p "$dir")
    dir=$(realpath "$dir")
    ((${#dir} <= LONGEST_DIR)) || die "--dir is too long for sockets: ${#dir} of $LONGEST_DIR characters"
    [[ $dir != *[[:space:]]* ]] || die "--dir '$dir': slurm.conf cannot write a path with a space"
    [[ -z $(find "$dir" -mindepth 1 -maxdepth 1 ! -name log ! -name temporary) ]] ||
        die "--dir $dir is not empty; is a cluster up in it?"
    export SLURM_CONF=$dir/slurm.conf
    exec {lock}<"$(command -v slurmctld)"
    flock "$lock"  # one starts at a time, or two could find the same ports free
    trap 'tail -n 15 "$dir"/log/* >&2 || true; remove_all || true; say "could not start"' EXIT
    configure "$(free_ports)"
    start_daemons >>"$dir/log/start.log" 2>&1 </dev/null {lock}<&-
    wait_until_idle
    trap - EXIT
    print_env
}

# The processes of this cluster: all have its SLURM_CONF, and so may the user's shell and this script.
ours() {
    local proc
    for proc in /proc/[0-9]*; do
        grep -qzxF "SLURM_CONF=$dir/slurm.conf" "$proc/environ" 2>/dev/null || continue
        grep -qxE 'munged|slurm.*|srun|salloc' "$proc/comm" || grep -qz '^SLURM_JOB_ID=' "$proc/environ" ||
            continue
        echo "${proc#/proc/}"
    done 2>/dev/null  # a process may end while we look
}

# Let Slurm kill the tasks that it knows of: one with an emptied environment is none of `ours`.
end_jobs() {
    local deadline=$((SECONDS + 3))
    timeout 5 scancel --signal=KILL --full --user="$(id -un)" 2>/dev/null || true
    until [[ -z $(timeout 5 squeue --noheader --states=RUNNING 2>/dev/null) ]] || ((SECONDS >= deadline)); do
        sleep 0.1
    done
}

# SIGKILL, for the state of the daemons goes with them, and a stubborn job does not hold us up.
remove_all() {
    local deadline=$((SECONDS + DOWN_DEADLINE_S)) pids
    while pids=$(ours) && [[ -n $pids ]]; do
        ((SECONDS < deadline)) || { say "still there: ${pids//$'\n'/ }"; return 1; }
        # shellcheck disable=SC2086  # a list; and again and again, for one may just have started another
        kill -s KILL $pids 2>/dev/null || true
        sleep 0.1
    done
    rm -rf "$dir"/{munge,run,spool,state,slurm.conf}
    [[ ! -e $dir/temporary ]] || rm -rf "$dir"
}

down() {
    [[ -z ${SLURM_JOB_ID:-} ]] || die "this is a job of the cluster; leave it first"
    find_cluster
    end_jobs
    remove_all
}

status() {
    find_cluster
    timeout 10 sinfo --Node --long && timeout 10 squeue
}

print_env() { printf 'export SLURM_CONF=%q\n' "$dir/slurm.conf"; }

find_cluster() {
    [[ -n $dir || -z ${SLURM_CONF:-} ]] || dir=$(dirname "$SLURM_CONF")
    [[ -n $dir ]] || die "which cluster? give --dir DIR, or eval what env printed"
    dir=$(realpath "$dir")
    [[ -e $dir/munge/key ]] || die "no local cluster in $dir"
    export SLURM_CONF=$dir/slurm.conf
}

dir=
command=${1:-}
[[ $# -le 1 ]] || { [[ $# == 3 && $2 == --dir ]] || usage; dir=$3; }
case $command in
    install) install_packages ;;
    up | down | status) "$command" ;;
    env) find_cluster; print_env ;;
    *) usage ;;
esac
