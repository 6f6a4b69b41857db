# shellcheck shell=bash
# Faults within the unit's own sandbox, where a system call that is refused kills: what the suite of faults strikes
# outside of it (tests/faults) must not need more than the unit allows.

no_call_is_refused() { # its answer to a call outside the filter is SIGSYS, not an error
    drop_in SystemCallErrorNumber= "$@"
}

no_call_was_refused() {
    if journal debug | grep -E 'status=31/SYS|SIGSYS'; then fail "a system call was refused"; fi
}

case_irregular_files_are_left_alone_within_the_sandbox() {
    local ids
    no_call_is_refused
    config "http://$ADDRESS" '[spool]' 'scan_interval = "1s"' 'settle = "1s"' 'incomplete_after = "1s"'
    receiver --key pk_test
    start
    as $PRODUCER python3 - $SPOOL << 'EOF'
import os, socket, sys
os.chdir(sys.argv[1])
event = '{"type":"track","event":"x","messageId":"%s","properties":{"email":"zoo@acme.dev"}}'
os.symlink("/etc/shadow", "secret.json")
os.symlink("loop.json", "loop.json")
os.mkfifo("fifo.json")
socket.socket(socket.AF_UNIX).bind("socket.json")
os.mkdir("folder.json")
with open(".linked", "w") as file:
    file.write(event % "linked")
os.link(".linked", "linked.json")
with open("sparse.json", "w") as file:
    file.truncate(10 << 30)
for name in (b"line\nend.json", b"\x1b[31mescape.json", b"\xff\xfe.json"):
    with open(name, "w") as file:
        file.write(event % ("named-%d" % len(name)))
EOF
    mapfile -t ids < <(seq -f 'good-%g' 100)
    drop $PRODUCER "${ids[@]}"
    arrive "${ids[@]}" named-13 named-16 named-7
    eventually $WAIT "the sparse file is rejected" status_is 'd["spool"]["rejected_files"]' 1
    [[ -L $SPOOL/secret.json && -L $SPOOL/loop.json && -p $SPOOL/fifo.json && -S $SPOOL/socket.json &&
        -d $SPOOL/folder.json && -f $SPOOL/linked.json ]] || fail "an irregular file is gone: $(ls -la $SPOOL)"
    journal_has 'secret.json: left alone: it is a symbolic link' || fail "the journal does not name the link"
    if journal debug | grep -P '\x1b'; then fail "an escape is in the journal"; fi
    systemctl stop koala-agent
    shown_is Result success || fail "the result is $(shown Result)"
    no_call_was_refused
}

case_a_full_state_blocks_within_the_sandbox_and_opens_again() {
    no_call_is_refused
    config "http://$ADDRESS"
    receiver --key pk_test
    mkdir $STATE # else systemd makes it, at the start
    mount -t tmpfs -o size=4M,mode=0750,uid=koala-agent,gid=koala-agent tmpfs $STATE
    # shellcheck disable=SC2064
    trap "systemctl stop koala-agent; umount $STATE" EXIT
    start
    drop $PRODUCER before
    arrive before
    dd if=/dev/zero of=$STATE/filler bs=4k status=none || true
    drop $PRODUCER while-full
    eventually $WAIT "the intake is blocked" status_is 'd["intake"]["state"]' blocked
    koala-agent status --json | json 'd["intake"]["reason"]["code"]' | grep -xE 'min_free|disk_full' > /dev/null ||
        fail "$(koala-agent status)"
    rm $STATE/filler
    arrive before while-full
    eventually $WAIT "the intake is open" status_is 'd["intake"]["state"]' open
    shown_is NRestarts 0 || fail "$(shown NRestarts) restarts"
    no_call_was_refused
}

case_killed_under_load_again_and_again_it_loses_and_doubles_nothing() {
    local ids n pid
    no_call_is_refused RestartSec=100ms
    receiver --key pk_test --latency 5ms --fail 0.1
    start
    for n in 1 2 3 4 5; do
        mapfile -t ids < <(seq -f "load-$n-%g" 200)
        for id in "${ids[@]}"; do event "$id" "p$((RANDOM % 20))@acme.dev"; done |
            as $PRODUCER tee "$SPOOL/load-$n.ndjson" > /dev/null
        drop $PRODUCER "one-$n"
        pid=$(shown MainPID)
        sleep 0.$n
        kill -KILL "$pid"
        eventually $WAIT "a new main process" restarted "$pid"
    done
    # shellcheck disable=SC2046
    arrive $(for n in 1 2 3 4 5; do seq -f "load-$n-%g" 200; done) one-{1..5}
    eventually $WAIT "all are marked" status_is 'd["outbox"]["delivered"], d["outbox"]["pending"]' '(1005, 0)'
    no_call_was_refused
}

case_a_file_that_holds_no_key_is_reported_without_its_content_and_events_are_stored_meanwhile() {
    no_call_is_refused
    receiver --key pk_test
    key 'n0t a k3y'
    start
    drop $PRODUCER one
    eventually $WAIT "it is stored" status_is 'd["outbox"]["pending"], d["destination"]["reason"]["code"]' "(1, 'no_key')"
    journal warning | grep 'its character 4 is U+0020' > /dev/null || fail "the journal does not say so: $(journal warning)"
    if journal debug | grep 'k3y'; then fail "the content is in the journal"; fi
    key pk_test
    systemctl restart koala-agent
    arrive one
    no_call_was_refused
}

case_a_damaged_outbox_is_moved_aside_within_the_sandbox() {
    no_call_is_refused
    receiver --key pk_test
    start
    drop $PRODUCER before
    arrive before
    systemctl stop koala-agent
    dd if=/dev/urandom of=$STATE/outbox.db bs=4k count=1 conv=notrunc status=none
    rm -f $STATE/outbox.db-wal $STATE/outbox.db-shm
    start
    drop $PRODUCER after
    arrive after before
    no_call_was_refused
}
