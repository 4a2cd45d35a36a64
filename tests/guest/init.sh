#!/bin/busybox sh
# Process 1 of the guest: brings up the network, runs /script.sh on the second serial port, powers off.
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done
ip link set lo up
ip addr add 10.0.2.15/24 dev eth0
ip link set eth0 up

# Raw, so that the host reads the bytes that the script wrote, newlines included.
stty raw -echo </dev/ttyS1
exec </dev/null >/dev/ttyS1 2>&1

# What the kernel said while it booted is on the console; from here on dmesg holds what the script caused.
dmesg -c >/dev/null

cd /root
# A shell of its own: a script that exits or is killed still leaves process 1 to report and power off.
. /lib.sh
mark script-begin
sh -c '. /lib.sh; . /script.sh' script
mark script-end $?
begin dmesg
dmesg -r
end $?
mark powered-off
poweroff -f
