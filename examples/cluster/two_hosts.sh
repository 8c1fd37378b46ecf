#!/usr/bin/env bash
# Two "hosts" on one machine: network namespaces with addresses of their own, joined by one cable (a veth pair).
#
#   two_hosts.sh up                      make hosts a (10.77.0.1) and b (10.77.0.2)
#   two_hosts.sh torchrun RECIPE k=v...  train across both with torchrun, one process each
#   two_hosts.sh deepspeed RECIPE k=v... the same with DeepSpeed's launcher and a hostfile
#   two_hosts.sh cut | join              pull the cable, plug it in again
#   two_hosts.sh down                    remove the hosts
#
# Needs root (or CAP_NET_ADMIN). Run it from the repository; both hosts see the same files, as on a shared file system.
# NAME makes several pairs possible at a time.
set -euo pipefail
NAME=${NAME:-concord}
A=${NAME}-a B=${NAME}-b
PORT=${PORT:-29511}
PYTHON=${PYTHON:-.venv/bin/python}
BIN=$(dirname "$PYTHON")

on() { # on HOST COMMAND...: gloo must be told which interface leads to the other host
    local host=$1
    shift
    ip netns exec "$host" env GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 PATH="$PWD/$BIN:$BIN:$PATH" "$@"
}

both() { # both LAUNCHER...: start on both hosts, wait for both; the exit code of the first that failed
    local pids=() code=0
    trap 'kill "${pids[@]}" 2>/dev/null; wait' TERM INT
    for rank in 0 1; do
        "$1" "$rank" "${@:2}" &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do
        wait "$pid" || code=$((code ? code : $?))
    done
    return "$code"
}

with_torchrun() {
    local rank=$1 hosts=("$A" "$B")
    on "${hosts[$rank]}" "$PYTHON" -m torch.distributed.run --nnodes 2 --nproc-per-node 1 --node-rank "$rank" \
        --master-addr 10.77.0.1 --master-port "$PORT" -m launch.train "${@:2}"
}

with_deepspeed() { # --no_ssh: each host starts its own part; without it the first host starts all over ssh
    local rank=$1 hosts=("$A" "$B")
    on "${hosts[$rank]}" env DS_ACCELERATOR=cpu "$BIN/deepspeed" --hostfile "$HOSTFILE" --no_ssh --node_rank "$rank" \
        --master_addr 10.77.0.1 --master_port "$PORT" --num_nodes 2 --num_gpus 1 launch/train.py "${@:2}"
}

case ${1:-} in
up)
    ip netns add "$A"
    ip netns add "$B"
    ip link add eth0 netns "$A" type veth peer name eth0 netns "$B"
    for end in "$A 10.77.0.1" "$B 10.77.0.2"; do
        read -r host address <<<"$end"
        ip -n "$host" addr add "$address/24" dev eth0
        ip -n "$host" link set lo up
        ip -n "$host" link set eth0 up
    done
    ;;
torchrun)
    both with_torchrun "${@:2}"
    ;;
deepspeed)
    HOSTFILE=$(mktemp)
    export HOSTFILE
    printf '10.77.0.1 slots=1\n10.77.0.2 slots=1\n' >"$HOSTFILE"
    both with_deepspeed "${@:2}"
    ;;
cut) ip -n "$B" link set eth0 down ;;
join) ip -n "$B" link set eth0 up ;;
down)
    ip netns del "$A" 2>/dev/null || true
    ip netns del "$B" 2>/dev/null || true
    ;;
*)
    sed -n '2,12s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
