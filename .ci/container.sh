# Boots a Debian with systemd as PID 1 in a container, for the scripts that source this file.

cannot() { printf 'This machine cannot run .ci/%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }
step() { printf '\n=== %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

# Checks that this is root and that the programs are installed: of the container, and these arguments (PROGRAM:PACKAGE).
require() {
    local need
    [ "$(id -u)" -eq 0 ] || cannot 'it is not run by root.'
    for need in mmdebstrap ip:iproute2 unshare:util-linux nsenter:util-linux setpriv:util-linux \
        turnutils_uclient:coturn "$@"; do
        command -v "${need%%:*}" >/dev/null || cannot "${need%%:*} is missing. Run \`apt-get install ${need##*:}\`."
    done
}

work=                               # a directory that is deleted at the end
root=                               # the file system of the container
outside=turnserver-ci-$$            # the network namespace of the clients
groups=                             # the tree of control groups
directory=/opt                      # where the commands of docs/install.md run
launcher=                           # the process outside of the container that is its PID 1's parent
init=                               # PID 1 of the container, as seen from outside

clean() {
    local result=$?
    if [ -n "$launcher" ]; then
        [ "$result" -eq 0 ] || [ -z "$init" ] || journal -n 20 || true
        kill -KILL "$launcher" 2>/dev/null || true
    fi
    wait_for_end
    ip netns pids "$outside" 2>/dev/null | xargs -r kill || true
    ip netns delete "$outside" 2>/dev/null || true
    if mountpoint -q "$groups"; then
        # The last processes of the container may still end.
        wait_for 10 remove_groups || true
        umount "$groups"
    fi
    rm -rf --one-file-system "$work"
}

remove_groups() { [ ! -d "$groups/$outside" ] || find "$groups/$outside" -depth -type d -exec rmdir {} +; }
# The shell would report the signal that ends the container.
wait_for_end() { { [ -z "$launcher" ] || wait "$launcher"; } 2>/dev/null || true; }

# Repeats a command until it succeeds, at most for this number of seconds.
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# Prepares this machine for containers, until the script ends.
prepare_host() {
    work=$(mktemp -d)
    groups=$work/cgroup
    trap clean EXIT
    mkdir "$groups"
    mount -t cgroup2 cgroup2 "$groups" || cannot 'it has no cgroup2.'
    mkdir "$groups/$outside" || cannot 'its cgroups are read-only.'
    unshare --mount --pid --uts --ipc --net --cgroup --fork true || cannot 'it does not permit new namespaces.'
    ip netns add "$outside"
    ip -n "$outside" link set lo up
}

# Makes the file system of a Debian with systemd and these further packages, separated by commas.
debian() {
    root=$work/$1
    mmdebstrap --quiet --variant=minbase --include="systemd,systemd-sysv,dbus,iproute2,procps,$2" "$1" "$root"
    # The container has no console.
    ln -s /dev/null "$root/etc/systemd/system/console-getty.service"
    : >"$root/etc/machine-id"
    printf '[Match]\nName=eth0\n[Network]\nAddress=192.0.2.2/24\nGateway=192.0.2.1\n' \
        >"$root/etc/systemd/network/eth0.network"
    # Without /proc, systemctl warns.
    chroot "$root" systemctl --quiet enable systemd-networkd 2>/dev/null
}

# What PID 1 of a container needs (https://systemd.io/CONTAINER_INTERFACE). The kernel's settings stay read-only.
boot_script=$(cat <<'BOOT'
set -e
root=$1
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc" -o nosuid,nodev,noexec
mount --bind "$root/proc/sys" "$root/proc/sys"
mount --bind "$root/proc/sys/net" "$root/proc/sys/net"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs sysfs "$root/sys" -o ro,nosuid,nodev,noexec
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup" -o nosuid,nodev,noexec
mount -t tmpfs tmpfs "$root/dev" -o mode=755,nosuid
for device in null zero full random urandom tty; do
    touch "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts devpts "$root/dev/pts" -o newinstance,ptmxmode=0666,mode=620,gid=5
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
touch "$root/dev/console"
for directory in dev/shm run tmp; do
    mount -t tmpfs tmpfs "$root/$directory" -o mode=1777,nosuid,nodev
done
chmod 755 "$root/run"
cd "$root"
pivot_root . mnt
umount -l /mnt
# systemd mounts the credentials of a service in a namespace of its own.
mount --make-rshared /
exec env -i container=container-other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    setpriv --bounding-set=-sys_module,-sys_time,-syslog,-sys_rawio --inh-caps=-all /sbin/init
BOOT
)

# Boots the container, without a network.
boot() {
    bash -c 'echo $$ >"$1/cgroup.procs"; exec unshare --mount --pid --uts --ipc --net --cgroup --fork --kill-child \
        bash -c "$3" bash "$2"' bash "$groups/$outside" "$root" "$boot_script" >"$work/console" 2>&1 </dev/null &
    launcher=$!
    wait_for 20 is_systemd || fail "systemd does not start: $(cat "$work/console")"
    wait_for 60 in_container systemctl is-active -q multi-user.target || fail 'the container does not boot'
}
is_systemd() {
    init=$(pgrep -P "$launcher") && [ "$(cat "/proc/$init/comm")" = systemd ]
}
in_container() {
    nsenter -t "$init" -m -p -u -i -n -C env -i HOME=/root LANG=C.UTF-8 SYSTEMD_PAGER= \
        PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
connect() {
    ip -n "$outside" link add name host0 type veth peer name eth0 netns "$init"
    ip -n "$outside" address add 192.0.2.1/24 dev host0
    ip -n "$outside" link set host0 up
    wait_for 20 has_address || fail 'the container gets no address'
}
has_address() { in_container ip address show eth0 | grep -q 192.0.2.2/24; }

power_off() {
    in_container systemctl poweroff || true
    wait_for_end
    launcher=
}

shell() { in_container bash -ec "$1"; }
property() { in_container systemctl show -P "$1" turnserver; }
is_active() { [ "$(property ActiveState)" = active ]; }
journal() { in_container journalctl -u turnserver -o cat "$@"; }
# Whether the service has been restarted since it had this process.
has_other_process() { is_active && [ "$(property MainPID)" != "$1" ]; }
edit() { shell "sed -i '$1' /etc/turnserver/turnserver.toml"; }
# Two relayed addresses exchange packets.
call() {
    local secret
    secret=$(cat "$root/etc/turnserver/secrets")
    ip netns exec "$outside" timeout 60 turnutils_uclient "$@" -y -c -W "$secret" -u me -n 5 -l 200 192.0.2.2 \
        >"$work/output" 2>&1 || fail "turnutils_uclient $*: $(cat "$work/output")"
    grep -q 'Total lost packets 0 ' "$work/output" || fail "packets are lost: $(cat "$work/output")"
}

# Prints the one code block in a section of docs/install.md that contains this text.
block() {
    SECTION="## $1" TEXT=$2 awk '
        /^## / { inside = $0 == ENVIRON["SECTION"] }
        /^ *```/ {
            if (open) { if (index(code, ENVIRON["TEXT"])) { printf "%s", code; found++ } open = 0 }
            else { open = 1; code = "" }
            next
        }
        inside && open { sub(/^   /, ""); code = code $0 "\n" }
        END { exit found != 1 }
    ' docs/install.md || fail "docs/install.md, $1: not exactly one block contains: $2"
}
# Runs such a block in the container, in $directory.
follow() {
    local commands
    commands=$(block "$1" "$2")
    printf '%s\n' "$commands"
    in_container bash -ec "cd $directory; $commands" >"$work/output" 2>&1 || fail "$(cat "$work/output")"
}
