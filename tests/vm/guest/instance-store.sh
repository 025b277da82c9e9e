#!/bin/bash
# Stands in for the hardware of an instance of Amazon EC2: its own NVMe disks, which are known by their model. QEMU's have a model that
# cannot be chosen, so the kernel's NVMe target serves them to the machine itself. What they hold lies in files on a disk that the
# host keeps (or empties, as when an instance is stopped and started).
set -euo pipefail
readonly DRAWER=/run/hypervisor
modprobe -a virtio_blk nvmet nvmet-tcp nvme-tcp
mountpoint -q /sys/kernel/config || mount -t configfs none /sys/kernel/config
mkdir -p "$DRAWER"
# Names for it are udev's, and may come much later than the disk.
until disk=$(grep -lx hypervisor /sys/block/vd*/serial); do sleep 0.1; done
mount "/dev/$(basename "$(dirname "$disk")")" "$DRAWER"
ip link set lo up
cd /sys/kernel/config/nvmet
mkdir ports/1
echo tcp >ports/1/addr_trtype
echo ipv4 >ports/1/addr_adrfam
echo 127.0.0.1 >ports/1/addr_traddr
echo 4420 >ports/1/addr_trsvcid
for file in "$DRAWER"/store*; do
    name=$(basename "$file")
    subsystem=subsystems/nqn.test:$name
    mkdir "$subsystem"
    echo 1 >"$subsystem/attr_allow_any_host"
    echo 'Amazon EC2 NVMe Instance Storage' >"$subsystem/attr_model"
    echo "AWS${name^^}" >"$subsystem/attr_serial"
    mkdir "$subsystem/namespaces/1"
    echo -n "$file" >"$subsystem/namespaces/1/device_path"
    echo 1 >"$subsystem/namespaces/1/enable"
    ln -s "/sys/kernel/config/nvmet/$subsystem" "ports/1/subsystems/nqn.test:$name"
    echo "transport=tcp,traddr=127.0.0.1,trsvcid=4420,nqn=nqn.test:$name" >/dev/nvme-fabrics
done
