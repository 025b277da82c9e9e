#!/bin/bash
# The task of the VM test: reads from NAS and object storage, computes on the NVMe volume, leaves its results in an output directory.
set -euo pipefail
echo "worker $BATCH_COMPUTE_WORKER_ID in $BATCH_COMPUTE_REGION, instance $BATCH_COMPUTE_DAG_INSTANCE_ID of $BATCH_COMPUTE_DAG_JOB_ID"
echo "a line of errors" >&2
sums() { (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum); }
sums /mnt/nas/reference >/home/output/nas.sums
sums /home/input >/home/output/mapped.sums
sums /mnt/input >/home/output/mounted.sums
mkdir /data/work
cat /mnt/nas/reference/* /mnt/input/*.bin >/data/work/all
sha256sum </data/work/all >/home/output/computed.sum
findmnt -nro FSTYPE,OPTIONS -T /data/work >/home/output/data.mount
lsblk -nro NAME,TYPE,MODEL,MOUNTPOINTS >/home/output/disks
mkdir /home/output/deep
cp /data/work/all "/home/output/deep/all in one"
date +%s >/mnt/nas/from-the-task
[ "$(cat /mnt/nas/from-the-bootstrap)" = ready ]
if touch /mnt/input/new 2>/dev/null; then echo "a read-only mount was written to" >&2; exit 3; fi
echo done
