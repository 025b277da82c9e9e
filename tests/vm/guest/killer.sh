#!/bin/bash
# Kills the agent once in each phase of a boot, as soon as the node's own story says that the phase has begun. Not in the first one, which
# is over before anybody has read that. After eight starts within ten minutes the service manager has had enough.
set -u
readonly EVENTS=/var/lib/batch-agent/events/node/events.jsonl
seen=0
for phase in identity disks network-mounts object-mounts bootstrap task report; do
    until tail -n +$((seen + 1)) "$EVENTS" 2>/dev/null | grep -q "\"PhaseStarted\",\"subject\":\"$phase\""; do
        sleep 0.05
    done
    pid=$(systemctl show --property MainPID --value batch-agent.service)
    kill -KILL "$pid" || continue
    seen=$(wc -l <"$EVENTS")
    echo "killer: $phase: killed $pid"
done
