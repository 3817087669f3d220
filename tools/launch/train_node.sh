#!/usr/bin/env bash
# One node's share of train.slurm, which starts it on every node: stages the data, then runs a rank on each GPU.
set -euo pipefail
launch=$(dirname "$0")
train=$1 val=$2
shift 2
if [ "${STAGE_TO-}" != none ]; then
  train=$("$launch/stage_lmdb.sh" "$train")
  val=$("$launch/stage_lmdb.sh" "$val")
fi
# Says why a connection failed, and nothing else. That a failed collective ends its process is torch's default
# (TORCH_NCCL_ASYNC_ERROR_HANDLING=3, docs.pytorch.org/docs/stable/torch_nccl_environment_variables.html), and a hanging one is
# ended by --train.timeout before torch's own time-out.
export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
# exec, so that Slurm's signals reach run_ranks.py.
exec "${PYTHON:-python3}" "$launch/run_ranks.py" --nnodes "$NODES" --node-rank "$SLURM_NODEID" \
  --nproc-per-node "${RANKS_PER_NODE:-gpu}" --master-addr "$MASTER_ADDR" --master-port "$MASTER_PORT" \
  -m fastirv2.train --train "$train" --val "$val" "$@"
