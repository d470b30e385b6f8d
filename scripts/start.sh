#!/bin/bash
# Sets the instance up; then it comes into service, or is replaced if anything here failed.
set -euo pipefail
export AWS_DEFAULT_REGION=@region@
instance=$(cat /var/lib/cloud/data/instance-id)
finish() {
    aws autoscaling complete-lifecycle-action --auto-scaling-group-name @group@ \
        --lifecycle-hook-name @hook@ --instance-id "$instance" --lifecycle-action-result "$1"
}
trap '[ $? = 0 ] || finish ABANDON' EXIT

@script@
# For some seconds AWS may know of no such action; if it never does, the hook's default decides.
for _ in {1..30}; do finish CONTINUE && break; sleep 5; done
