# $1 is 1 for a first installation, 2 for an upgrade. The same as the Debian package does.
systemd-tmpfiles --create batch-agent.conf >/dev/null 2>&1 || :
if [ "$1" -eq 1 ] && command -v systemctl >/dev/null; then
    systemctl --no-reload preset batch-agent.service || :
fi
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
    if [ "$1" -gt 1 ]; then
        if systemctl --quiet is-active fuse-oss.service; then
            systemctl reload fuse-oss.service || :
        fi
        systemctl --no-block try-restart batch-agent.service || :
    fi
fi
