#!/bin/bash
# Tells on the second serial line how the machine is, once cloud-init and the agent have come to an end, and switches it off.
exec </dev/ttyS1 >/dev/ttyS1 2>&1
# A line that is no terminal passes everything on as it is.
stty raw -echo

section() { # section NAME COMMAND...
    echo "== $1"
    shift
    "$@"
    echo "== exit status $?"
}
look() { [ ! -e "$1" ] || sha256sum "$1"; }

section wait batch-agent wait task
# It reports after the task, and then ends; unless it was never to do more than prepare the node.
until systemctl show --property ActiveState --value batch-agent.service | grep -Eqx 'inactive|failed'; do sleep 0.5; done
section cloud-init cloud-init status --long
section failed systemctl --failed --plain --no-legend
section service systemctl show --property Result --property ExecMainStatus --property NRestarts batch-agent.service
section targets systemctl is-active batch-node-mounts.target batch-node-ready.target
section kernel uname -r
section story batch-agent status --json
section status batch-agent status
section timing batch-agent status --timing
section disks nvme-setup status
section mdstat cat /proc/mdstat
section mounts cat /proc/mounts
section kept look /data/work/all
section fuse-oss fuse-oss status
section end true
systemctl --no-block poweroff
