#!/bin/busybox sh
# Finds the root file system: the cloud kernel has its disk driver as a module.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b modprobe virtio_pci
$b modprobe virtio_blk
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 500 ]; do
	$b usleep 10000
	tries=$((tries + 1))
done
if ! $b mount -t ext4 /dev/vda /newroot; then
	echo "no root file system on /dev/vda"
	$b poweroff -f
fi
$b mount --move /dev /newroot/dev
$b umount /proc
exec $b switch_root /newroot /init
