#!/usr/bin/env bash
# Starts one node's part of a run. The same line on every node:
#
#   NODES=4 HEAD=node0:29500 recipes/launch/node.sh recipes/qwen2vl_7b.py --data-path FILE
#
# NODES      number of nodes
# HEAD       name and free port of the node where the ranks meet, one of the nodes
# PROCESSES  ranks of this node; by default one for each GPU
# RESTARTS   how often ranks, and this node's agent, are started again; 3 by default
# RUN_ID     tells runs apart that meet at the same place
#
# When a rank fails, the agents start all ranks again; when this node's agent ends, it is
# started again and joins the others. Each agent has RESTARTS of its own, so a run without
# hope is started (1 + RESTARTS) ** 2 times, 16 by default: agents that could not start ranks
# again would end a run that lost one rank after it had lost a node. Ranks go on from the last
# checkpoint, so at most the steps since then are done twice. All nodes need one file system
# and the same environment.
#
# SIGTERM is passed on, Ctrl-C reaches all anyway. The ranks save and end, within GRACE
# seconds (600 by default), and node.sh ends with 143, starting nothing again. The same line
# goes on from there.
set -uo pipefail
: "${NODES:?number of nodes}" "${HEAD:?name:port of the node where ranks meet}"
restarts=${RESTARTS:-3}
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=${GRACE:-600}
# An agent that shares its store says where ranks meet in its first round alone: one that
# joins later would wait for a minute, and then the agents that were well would end too.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

agent= is_asked=
stop() {
    is_asked=1
    [[ $agent ]] && kill -TERM "$agent" 2>/dev/null
}
trap stop TERM
trap is_asked=1 INT

# What is started in the background ignores Ctrl-C until it says otherwise, which torchrun
# does late. A trap is said at once, and replaced by the usual end where a program begins.
# Only in the moment before it is said, a Ctrl-C is lost.
start() {
    trap 'exit 130' INT
    # A rank that still imports torch when its agent dies would not know that it lost it.
    FASTSLOW_AGENT=$BASHPID@$(readlink /proc/self/ns/pid)
    export FASTSLOW_AGENT
    exec torchrun \
        --nnodes "$NODES" \
        --nproc-per-node "${PROCESSES:-gpu}" \
        --rdzv-backend c10d \
        --rdzv-endpoint "$HEAD" \
        --rdzv-id "${RUN_ID:-fastslow}" \
        --max-restarts "$restarts" \
        "$@"
}

for ((attempt = 0; attempt <= restarts; attempt++)); do
    start "$@" &
    agent=$!
    [[ $is_asked ]] && stop # it came before there was anybody to tell
    wait "$agent"
    code=$?
    while kill -0 "$agent" 2>/dev/null; do # a signal ends a wait, not the agent
        wait "$agent"
        code=$?
    done
    [[ $is_asked ]] && exit 143
    ((code == 0)) && exit 0
    echo "node.sh: torchrun ended with $code, attempt $((attempt + 1)) of $((restarts + 1))" >&2
    sleep 1
    [[ $is_asked ]] && exit 143
done
exit "$code"
