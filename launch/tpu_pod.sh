#!/usr/bin/env bash
# A Cloud TPU pod slice: makes it if it is not there, installs kinject on all its hosts, and runs a config until done.
# Edit these two lines; everything else has a default. See docs/launch.md.
CONFIG=${CONFIG:-configs/paper/general_map_tuning.py}
WORKDIR=${WORKDIR:-/mnt/shared/runs/general} # a folder that every host sees: Filestore, or gcsfuse

set -euo pipefail
NAME=${NAME:-kinject}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
AGAIN=75 # kinject's exit code for "preempted: run me again"

if ! gcloud compute tpus tpu-vm describe "$NAME" --zone "$ZONE" >/dev/null 2>&1; then
  gcloud compute tpus tpu-vm create "$NAME" --zone "$ZONE" --accelerator-type "$TYPE" --version "$VERSION" --spot
fi

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$NAME" --zone "$ZONE" --worker=all --command "$1"
}

git archive --format=tar.gz --output /tmp/kinject.tar.gz HEAD
gcloud compute tpus tpu-vm scp /tmp/kinject.tar.gz "$NAME:kinject.tar.gz" --zone "$ZONE" --worker=all
on_all_hosts "mkdir -p kinject && tar xzf kinject.tar.gz -C kinject && pip install --quiet './kinject[tpu]'"

# All hosts end together, 75 where the run was asked to stop while they stay: each begins again by itself then.
on_all_hosts "
  cd kinject
  while :; do
    python3 -m kinject.train --distributed auto --config $(printf %q "$CONFIG") --workdir $(printf %q "$WORKDIR")
    code=\$?
    [ \$code -eq $AGAIN ] || exit \$code
  done"
