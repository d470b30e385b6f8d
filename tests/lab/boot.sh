#!/bin/bash
# Runs systemd as PID 1 on a layer of its own over the image: boot.sh IMAGE FOLDER
set -euo pipefail
image=$1 folder=$2 root=$2/root
mount --make-rprivate /
mkdir -p "$folder"/{root,upper,work}
mount -t overlay overlay -o "lowerdir=$image,upperdir=$folder/upper,workdir=$folder/work" "$root"
cd "$root"
mount -t proc proc proc
# Of the kernel's settings it may change its network's, which are its own.
mount --bind proc/sys/net proc/sys/net
mount --rbind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs -o mode=1777 tmpfs dev/shm
# Nodes of its own: what it changes of them is not the host's.
for each in null:3 zero:5 full:7 random:8 urandom:9; do
    mknod -m 666 "dev/${each%:*}" c 1 "${each#*:}"
done
mknod -m 666 dev/tty c 5 0
mknod -m 600 dev/console c 1 3
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
# In a container cloud-init knows an instance by this file; read-only, networkd does without udev.
mount -t tmpfs -o mode=755 tmpfs sys
mkdir sys/hypervisor
echo ec2e1916-9099-7caf-fd21-012345abcdef > sys/hypervisor/uuid
for each in block bus class dev devices firmware fs kernel module power; do
    [ -d "/sys/$each" ] || continue
    mkdir "sys/$each"
    mount --bind -o ro "/sys/$each" "sys/$each"
    mount -o remount,bind,ro "sys/$each"
done
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -o remount,ro sys
mkdir -p .outside
pivot_root . .outside
umount -l /.outside
exec env -i container=lab /lib/systemd/systemd
