# Makes the surroundings of one node and becomes its containerd. Runs in the node's network namespace.
# NODE is its name, FOLDER its files, GROUPS_IN its control groups, CONTROLLERS how their hierarchies are mounted.
set -eu
for group in $GROUPS_IN; do
    echo $$ >"$group/cgroup.procs"
done
exec unshare --mount --uts --cgroup sh -euc '
mount --make-rprivate /
# BPF file systems of the machine would live on in here when they are gone out there.
while read -r _ point kind _; do
    [ "$kind" != bpf ] || umount "$point"
done </proc/mounts
# What a node writes stays in its own folder, under the names that every node uses.
mount --bind "$FOLDER/log" /var/log
mount -t overlay overlay -o "lowerdir=/etc,upperdir=$FOLDER/etc,workdir=$FOLDER/etc.work" /etc
# A DaemonSet may put a CNI plugin beside those of the machine.
mount -t overlay overlay -o "lowerdir=/usr/lib/cni,upperdir=$FOLDER/cni,workdir=$FOLDER/cni.work" /usr/lib/cni
mount -t tmpfs tmpfs /run
mkdir -p /run/netns /run/lock
# Last of the folders: it hides where FOLDER is.
mount --bind "$FOLDER/lib" /var/lib
# Of the network namespace and the control groups that this node is in.
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /sys/fs/cgroup
for controller in $CONTROLLERS; do
    folder=/sys/fs/cgroup/${controller#name=}
    mkdir "$folder"
    case $controller in
        name=*) mount -t cgroup -o "none,$controller" cgroup "$folder" ;;
        *) mount -t cgroup -o "$controller" cgroup "$folder" ;;
    esac
done
mkdir /sys/fs/cgroup/unified
mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified
mount -t bpf bpf /sys/fs/bpf
hostname "$NODE"
exec containerd --config /etc/containerd/config.toml
'
