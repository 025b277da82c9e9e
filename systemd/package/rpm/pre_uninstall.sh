# $1 is 0 for a removal, 1 for an upgrade.
if [ "$1" -eq 0 ] && command -v systemctl >/dev/null; then
    if [ -d /run/systemd/system ]; then
        systemctl stop batch-agent.service batch-node-ready.service batch-node-mounts.service fuse-oss.service nvme-setup-trim.timer || :
    fi
    systemctl --no-reload disable batch-agent.service || :
fi
