# shellcheck shell=bash
# Signals, hangs and the sandbox, which end the agent or must not, and its lines in the journal.

restarted() { [[ $(shown MainPID) != "$1" && $(shown MainPID) != 0 && $(shown ActiveState) == active ]]; }

case_after_sigkill_it_is_restarted_and_nothing_is_lost() {
    local before after pid
    mapfile -t before < <(seq -f 'before-%g' 20)
    mapfile -t after < <(seq -f 'after-%g' 20)
    start
    pid=$(shown MainPID)
    drop $PRODUCER "${before[@]}"
    kill -KILL "$pid"
    drop $PRODUCER "${after[@]}"
    eventually $WAIT "a new main process" restarted "$pid"
    receiver --key pk_test
    arrive "${before[@]}" "${after[@]}"
    status_is 'd["outbox"]["delivered"], d["outbox"]["pending"]' '(40, 0)' || fail "$(koala-agent status)"
}

case_a_hang_is_ended_by_the_watchdog() {
    local pid
    drop_in WatchdogSec=3 TimeoutAbortSec=3
    receiver --key pk_test
    start
    pid=$(shown MainPID)
    kill -STOP "$pid"
    eventually $WAIT "a new main process" restarted "$pid"
    journal_has 'Watchdog timeout' || fail "the journal has no watchdog timeout"
    drop $PRODUCER one
    arrive one
}

case_a_deleted_spool_is_created_again_by_the_command_that_status_prints() {
    local remedy
    receiver --key pk_test
    start
    drop $PRODUCER one
    arrive one
    rm -r $SPOOL
    eventually $WAIT "the spool is missed" status_is 'd["intake"]["state"]' blocked
    remedy=$(koala-agent status | sed -n 's/^  - create the spool folder: //p')
    bash -ec "${remedy:?$(koala-agent status)}"
    drop $PRODUCER two
    arrive one two

    systemctl stop koala-agent
    rm -r $SPOOL
    if systemctl start koala-agent; then fail "it starts without a spool"; fi
    koala-agent status | grep 'there is no spool folder' || fail "$(koala-agent status)"
    systemd-tmpfiles --create
    drop $PRODUCER three
    arrive one two three
    status_is 'd["outbox"]["incident"], d["intake"]["state"]' "(None, 'open')" || fail "$(koala-agent status)"
}

# One hung loop is enough, though the rest of the agent runs.
hung_loop_is_ended() { # hung_loop_is_ended THREAD
    local pid
    drop_in WatchdogSec=6 TimeoutAbortSec=3
    receiver --key pk_test
    start
    pid=$(shown MainPID)
    freeze "$pid" "$1"
    eventually $WAIT "a new main process" restarted "$pid"
    journal_has 'Watchdog timeout' || fail "the journal has no watchdog timeout"
    if journal_has 'core-dump\|dumped core'; then fail "it left a core"; fi
    drop $PRODUCER one
    arrive one
}

case_a_hung_intake_is_ended_by_the_watchdog() {
    hung_loop_is_ended intake
    journal_has 'no sign of life: intake' || fail "the journal does not name the loop"
}

case_a_hung_outbox_is_ended_by_the_watchdog() {
    hung_loop_is_ended outbox
    journal_has 'no sign of life: .*outbox' || fail "the journal does not name the loop"
}

case_a_hung_courier_is_ended_by_the_watchdog() { hung_loop_is_ended koala-agent; }

pinged_since() { (($(shown WatchdogTimestampMonotonic) > $1)); }

case_an_idle_agent_is_no_hang() {
    local pid since
    drop_in WatchdogSec=6
    start
    pid=$(shown MainPID)
    since=$(shown WatchdogTimestampMonotonic)
    eventually $WAIT "pings for more than two periods" pinged_since $((since + 13000000))
    shown_is MainPID "$pid" || fail "it was restarted"
}

case_no_core_is_dumped_and_no_privilege_is_held_but_to_lease_files() {
    local pid
    start
    pid=$(shown MainPID)
    grep -E '^Max core file size +0 +0 ' "/proc/$pid/limits" > /dev/null || fail "$(grep core "/proc/$pid/limits")"
    grep -E '^Uid:(\s+'"$(id -u koala-agent)"'){4}$' "/proc/$pid/status" > /dev/null || fail "another user"
    # CAP_LEASE (bit 28) alone: it gives no access to anything, but tells whether another user's file is open.
    for set in CapEff CapPrm CapBnd CapAmb; do
        grep -E "^$set:\s+0*10000000\$" "/proc/$pid/status" > /dev/null || fail "$(grep $set "/proc/$pid/status")"
    done
    grep -E '^NoNewPrivs:\s+1$' "/proc/$pid/status" > /dev/null || fail "it could gain privileges"
}

case_no_system_call_is_refused() {
    local pid ids
    drop_in SystemCallErrorNumber= # a refused call kills with SIGSYS
    config http://localhost:8790 '[spool]' 'max_file_bytes = "64KiB"' 'incomplete_after = "1s"' 'settle = "1s"'
    start
    pid=$(shown MainPID)

    # every form of file, broken and oversized ones, while nobody answers
    drop $PRODUCER one
    event two | as $PRODUCER tee $SPOOL/two.ndjson > /dev/null
    event three | gzip | as $PRODUCER tee $SPOOL/three.json.gz > /dev/null
    echo '{"type":' | as $PRODUCER tee $SPOOL/broken.json > /dev/null
    event big "$(head -c 100000 /dev/zero | tr '\0' a)@acme.dev" | as $PRODUCER tee $SPOOL/big.json > /dev/null
    as $PRODUCER ln -s /etc/hostname $SPOOL/link.json
    as $PRODUCER mkfifo $SPOOL/fifo.json
    event four | as $PRODUCER koala-agent send
    eventually $WAIT "two files are rejected" status_is 'd["spool"]["rejected_files"]' 2
    eventually $WAIT "four events are taken" status_is 'd["outbox"]["pending"] + d["outbox"]["delivered"]' 4

    # the requests of commands to a running agent
    event given-up | as $PRODUCER koala-agent send
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 5
    koala-agent discard given-up
    koala-agent retry --state failed
    koala-agent retry --rejected broken.json
    eventually $WAIT "it is rejected again" status_is 'd["spool"]["rejected_files"]' 2

    systemctl reload koala-agent
    receiver --key pk_test --fail 0.3
    mapfile -t ids < <(seq -f 'more-%g' 20)
    drop $PRODUCER "${ids[@]}"
    arrive one two three four "${ids[@]}"
    systemctl stop koala-agent
    shown_is Result success || fail "the result is $(shown Result)"
    shown_is NRestarts 0 || fail "$(shown NRestarts) restarts"
    if journal debug | grep -E 'status=31/SYS|SIGSYS'; then fail "a system call was refused"; fi
}

case_the_journal_has_priorities_and_nothing_personal_and_no_line_a_request() {
    local ids n
    receiver --key pk_test --fail 0.2
    start
    mapfile -t ids < <(seq -f 'id-%g' 200)
    for n in "${ids[@]}"; do event "$n" "$n@acme.dev"; done | as $PRODUCER tee $SPOOL/many.ndjson > /dev/null
    arrive "${ids[@]}"
    echo '{"type":"track","event":"x","properties":{"email":"ana@acme.dev"},}' | as $PRODUCER tee $SPOOL/broken.ndjson > /dev/null
    eventually $WAIT "the broken file is rejected" status_is 'd["spool"]["rejected_files"]' 1
    systemctl stop koala-agent
    journalctl --sync
    # the agent's own lines
    journalctl --cursor="$CURSOR" --quiet --output=json _SYSTEMD_UNIT=koala-agent.service | python3 -c '
import json, re, sys
lines = [json.loads(line) for line in sys.stdin]
assert lines, "the agent said nothing"
assert len(lines) < 20, f"{len(lines)} lines for 200 requests"
assert all(isinstance(line["MESSAGE"], str) for line in lines), "a line is not text"
priorities = {line["PRIORITY"] for line in lines}
assert {"4", "6"} <= priorities, f"a rejected file is a warning and a start is not: {priorities}"
for line in lines:
    text = line["MESSAGE"]
    assert not re.match(r"<\d>", text), f"a priority that the journal did not take: {text}"
    assert not re.search(r"\d\d:\d\d:\d\d", text), f"a time of its own: {text}"
    assert "\x1b" not in text, f"colour: {text!r}"
    assert "@acme.dev" not in text, f"an email: {text}"
    assert "pk_test" not in text, f"the key: {text}"
' || fail "see above"
}

case_the_lines_of_the_page_find_notices_in_the_journal() {
    local lines failed requests
    lines=$(koala-agent man log | sed -n '/^\.Sh EXAMPLES/,$p' | sed -n '/^\.Bd/,/^\.Ed/{/^\./d; s/\\-/-/g; s/\\(aq/\x27/g; p}')
    [[ $(grep -c ^journalctl <<< "$lines") == 2 ]] || fail "other lines: $lines"
    receiver --key pk_test
    start
    # A reload is enough for another level.
    printf '%s\n' '[log]' 'level = "debug"' >> $ETC/config.toml
    systemctl reload koala-agent
    eventually $WAIT "the configuration is in force" journal_has notice=config_in_force
    drop $PRODUCER m-1
    echo '{"type":"track","messageId":"m-2","properties":{"email":"ana@acme.dev"}}' | as $PRODUCER tee $SPOOL/nameless.ndjson > /dev/null
    eventually $WAIT "an event fails" journal_has 'notice=event_failed code=invalid_field message_id=m-2'
    arrive m-1
    eventually $WAIT "the request has a line" journal_has 'notice=request path=/batch'
    # Cases before this one have journals too.
    failed=$(bash -euc "$(sed -n '1,/uniq/p' <<< "$lines")")
    grep -q 'code=invalid_field' <<< "$failed" || fail "failed: $failed"
    requests=$(bash -euc "$(grep request <<< "$lines")")
    [[ $requests == *ids=m-1 ]] || fail "requests: $requests"
    if journal info | grep notice=request > /dev/null; then fail "a request is more than a debug line"; fi
}
