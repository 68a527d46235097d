# The steps of .ci/systemd that follow "Socket activation" in docs/install.md, for that script to source.

socket_unit=/etc/systemd/system/turnserver.socket
drop_in=/etc/systemd/system/turnserver.service.d/override.conf

# Searches what the running process has written to the journal, which may get it later.
process_logs() {
    wait_for 20 process_journal_has 'event="ready"' || fail "it is not ready: $(journal -n 20)"
    process_journal_has "$@"
}
process_journal_has() { process_journal "${@:2}" | grep -c -- "$1" >/dev/null; }
process_journal() { in_container journalctl -q -o cat "_PID=$(property MainPID)" "$@"; }
edit_sockets() { shell "sed -i '$1' $socket_unit"; }
use_sockets() { follow 'Socket activation' 'stop turnserver.socket'; }
# Prints the sockets that listen, with their inodes.
sockets() { in_container ss -Hlntue | grep -oE '^(udp|tcp) .*:(3478|443) |ino:[0-9]+' | sort; }
refuses() { ! outside_bash 'exec 3<>/dev/tcp/192.0.2.2/$0' "$1" 2>/dev/null; }
outside_bash() { ip netns exec "$outside" timeout 30 bash -c "$@"; }
# Sends one Binding request, without a retransmission, and checks the response.
responds() {
    [ "$(outside_bash 'exec 3<>"/dev/$0" && printf "\0\1\0\0\x21\x12\xa4\x42abcdefghijkl" >&3 && head -c 2 <&3 |
        od -An -tx1' "$1")" = ' 01 01' ]
}

gets_sockets_in_place_of_a_capability() {
    local status
    edit 's/^workers = .*/workers = 2/'
    follow 'Socket activation' systemd/turnserver.socket
    mkdir -p "$root${drop_in%/*}"
    block 'Socket activation' Sockets= >"$root$drop_in"
    follow 'Socket activation' 'enable turnserver.socket'
    ! process_logs 'event="socket-' -p warning || fail "$(journal -p warning -n 5)"
    [ "$(process_journal | grep -c 'event="socket-passed"')" -eq 6 ] || fail "it does not use six sockets: $(journal -n 20)"
    status=$(in_container cat "/proc/$(property MainPID)/status")
    for kind in CapInh CapPrm CapEff CapBnd CapAmb; do
        grep -q "^$kind:.0000000000000000$" <<<"$status" || fail "it has capabilities: $status"
    done
    shell 'systemd-analyze security --threshold=15 turnserver' | tail -n 1
    ! shell 'systemd-analyze security --threshold=14 turnserver' >/dev/null || fail 'the exposure is not that of the document'
    shell "systemd-analyze verify $socket_unit"
    calls
}
calls() {
    call
    call -t
    call -t -S -p 443
}

starts_with_the_first_client() {
    for client in 'responds udp/192.0.2.2/3478' 'responds tcp/192.0.2.2/3478' 'call -t -S -p 443'; do
        shell 'systemctl stop turnserver' 2>/dev/null
        ! is_active && [ "$(property MainPID)" = 0 ] || fail 'it has not stopped'
        [ "$(sockets | grep -c ^tcp):$(sockets | grep -c ^udp)" = 4:2 ] || fail "systemd does not listen: $(sockets)"
        $client || fail "$client gets no response: $(journal -n 10)"
        # Its response may be faster than the notification of systemd.
        wait_for 10 is_active || fail "$client does not start it"
    done
}

loses_no_client_that_waits() {
    local process clients=() client
    process=$(property MainPID)
    shell "kill -STOP $process"
    for _ in {1..10}; do
        responds tcp/192.0.2.2/3478 &
        clients+=($!)
    done
    wait_for 10 ten_wait || fail "the clients do not wait: $(in_container ss -lnt)"
    shell "kill -KILL $process"
    for client in "${clients[@]}"; do
        wait "$client" || fail "a client has waited in vain: $(journal -n 20)"
    done
    has_other_process "$process" || fail 'the process is the same'
}
ten_wait() { [ "$(in_container ss -Hlnt 'sport = :3478' | awk '{ waiting += $2 } END { print waiting }')" -eq 10 ]; }

refuses_no_client_during_a_restart() {
    # systemd forgets the starts of the preceding steps, which would count towards StartLimitBurst=.
    shell 'systemctl reset-failed turnserver'
    # shellcheck disable=SC2016
    ip netns exec "$outside" bash -c 'while [ ! -e "$0/stop" ]; do
        if exec 3<>/dev/tcp/192.0.2.2/3478; then echo accepted $EPOCHREALTIME; exec 3>&-; else echo refused $EPOCHREALTIME; fi
        sleep 0.01
    done' "$work" >"$work/connections" 2>/dev/null &
    local client=$!
    for _ in 1 2 3; do
        follow Operate 'systemctl restart turnserver'
    done
    touch "$work/stop"
    wait "$client"
    rm "$work/stop"
    ! grep -q refused "$work/connections" || fail "$(sort "$work/connections" | uniq -c)"
    [ "$(grep -c accepted "$work/connections")" -ge 20 ] || fail "only few connections: $(cat "$work/connections")"
}

keeps_its_sockets_over_a_reload() {
    local before process
    shell 'systemctl reset-failed turnserver'
    before=$(sockets)
    edit 's/^drain-deadline = .*/drain-deadline = "2s"/'
    shell 'systemctl reload turnserver'
    [ "$(sockets)" = "$before" ] || fail "other sockets: $(diff <(sockets) <(echo "$before"))"
    edit 's|^tls = .*:443.*|tls = []|'
    shell 'systemctl reload turnserver'
    refuses 443 || fail 'the listener is open'
    call -t
    # systemd finds a socket that does not listen.
    process=$(property MainPID)
    shell "kill -KILL $process"
    wait_for 20 has_other_process "$process" || fail "it does not come back: $(journal -n 10)"
    refuses 443 || fail 'the listener is open'
    edit '/^\[listen\]/,/^\[relay\]/ s|^tls = .*|tls = ["[::]:443"]|'
    shell 'systemctl reload turnserver'
    calls
    ! shell 'systemctl --failed --no-legend' | grep turnserver || fail 'a unit has failed'
}

passes_sockets_from_boot() {
    in_container systemctl reboot || true
    wait_for_end
    boot
    is_active || fail "it does not start at boot: $(journal -n 20)"
    connect
    calls
}

shares_its_ports_with_a_web_site() {
    edit 's|^tls = .*:443.*|tls = []|; s|^listen = \[\]|listen = ["[::]:80"]|'
    shell "printf '[[front]]\nlisten = \"[::]:443\"\nweb = \"127.0.0.1:8443\"\n' >>/etc/turnserver/turnserver.toml"
    # One line for each.
    edit_sockets '0,/:443$/ { s/:443$/:80/ }'
    use_sockets
    shell 'openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=web.example.org \
        -keyout /run/web.key -out /run/web.pem 2>/dev/null
        systemd-run --quiet --unit=web openssl s_server -accept 127.0.0.1:8443 -www -cert /run/web.pem -key /run/web.key'
    wait_for 10 has_subject web.example.org web.example.org || fail "no web site: $(journal -n 10)"
    has_subject turn.example.org turn.example.org || fail 'the front has not the certificate of the relay'
    shell 'curl -sSk https://127.0.0.1/' | grep -c s_server >/dev/null || fail 'no page of the web site'
    shell 'systemctl stop turnserver' 2>/dev/null
    [ "$(shell 'curl -sS http://127.0.0.1/healthz')" = ok ] || fail 'no HTTP'
    call -t -p 443
    ! process_logs 'event="socket-' -p warning || fail "$(journal -p warning -n 5)"
}
has_subject() {
    shell "openssl s_client -connect 127.0.0.1:443 -servername $1 </dev/null 2>/dev/null" | grep -c "subject=CN = $2" >/dev/null
}

names_sockets_that_do_not_fit() {
    edit_sockets '/^ListenStream=.*:80$/ a ListenStream=[::]:5349'
    # One UDP line of two is left.
    edit_sockets '0,/^ListenDatagram/ { /^ListenDatagram/ d }'
    use_sockets
    process_logs 'event="socket-unused".*:5349' -p err || fail "$(journal -n 20)"
    process_logs 'only 1 of 2 workers.*event="socket-missing"' -p warning || fail "$(journal -n 20)"
    refuses 5349 || fail 'a socket without a listener accepts'
    doctor_says 'warning.*turnserver.socket.*no listener of the configuration has: \[::\]:5349'
    call
    edit_sockets '/:5349$/ d; s/^ListenDatagram=.*/&\n&\n&/'
    ! shell "$(block 'Socket activation' 'stop turnserver.socket')" 2>/dev/null || fail 'it starts with a socket too many'
    wait_for 10 logs 'passed 3 sockets with this address, but there are only 2 workers' || fail "$(journal -n 20)"
    edit_sockets '0,/^ListenDatagram/ { /^ListenDatagram/ d }'
    use_sockets
    call
}
doctor_says() {
    shell 'CREDENTIALS_DIRECTORY=/etc/turnserver turnserver doctor --config /etc/turnserver/turnserver.toml' \
        >"$work/output" 2>&1 || true
    grep -q "$1" "$work/output" || fail "the doctor does not say $1: $(cat "$work/output")"
}

binds_the_other_listeners_itself() {
    edit 's|^tcp = .*|tcp = ["[::]:3478", "[::]:444"]|'
    ! shell 'systemctl reload turnserver' 2>/dev/null || fail 'it opens port 444'
    is_active || fail 'it has not continued'
    ! shell 'systemctl restart turnserver' 2>/dev/null || fail 'it starts with port 444'
    wait_for 10 logs 'cannot listen on .*:444: ports below 1024 require CAP_NET_BIND_SERVICE' || fail "$(journal -n 20)"
    edit 's|^tcp = .*|tcp = ["[::]:3478", "[::]:3479"]|'
    wait_for 20 shell 'systemctl restart turnserver' || fail "it does not start: $(journal -n 20)"
    call -t -p 3479
}

gets_its_capability_again() {
    rm "$root$drop_in"
    follow 'Socket activation' 'disable --now turnserver.socket'
    [ ! -e "$root$socket_unit" ] || fail "$socket_unit is left"
    ! process_logs 'event="socket-passed"' || fail 'it still gets sockets'
    grep -q '^CapEff:.0000000000000400$' < <(in_container cat "/proc/$(property MainPID)/status") || fail 'no capability'
    call
    call -t -p 443
}
