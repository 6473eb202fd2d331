#!/bin/sh
# The guest's first process. Nothing here is to be clever: what is tried is in /payload/suites.sh.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=0755 run /run
mount -t tmpfs tmp /tmp
mkdir -p /run/lock
ln -sf /proc/self/fd /dev/fd

# cgroup v2 and nothing else, every controller handed down.
mount -t cgroup2 -o nsdelegate cgroup /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done

ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
# zram, dm-crypt and loop are left to those who need them.
for module in overlay bridge veth ipvlan; do
	modprobe "$module"
done

say() {
	echo "$*" >/dev/ttyS1
}

mount -t ext4 -o ro /dev/vdb /payload
mount -t ext4 /dev/vdc /scratch
read -r up rest </proc/uptime
say "DORMOUSE-VM-UP $up"
. /payload/suites.sh
say DORMOUSE-VM-END
sync
poweroff -f
