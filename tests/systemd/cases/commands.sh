# shellcheck shell=bash
# Who may run which command.

pending() { # a running agent that holds the event "one", for which nobody listens
    start
    drop $PRODUCER one
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
}

# From the published file: strangers cannot read the outbox.
stranger_sees_one() { [[ $(as $STRANGER koala-agent status --json | json 'd["outbox"]["pending"]') == 1 ]]; }

case_anyone_may_map_ask_for_the_status_run_the_demo_and_a_receiver() {
    local receiver
    pending
    event one | as $STRANGER koala-agent map > /dev/null
    eventually $WAIT "a stranger's status counts the event" stranger_sees_one
    exits 0 as $STRANGER koala-agent status --check
    as $STRANGER koala-agent metrics | grep -x 'koala_agent_pending{destination="koala"} 1'
    systemctl stop koala-agent
    stranger_sees_one || fail "a stranger's status does not count while the agent is down"
    exits 2 as $STRANGER koala-agent status --check
    as $STRANGER koala-agent metrics | grep -x 'koala_agent_pending{destination="koala"} 1'
    exits 0 as $STRANGER timeout 120 koala-agent demo
    as $STRANGER timeout 120 koala-agent receiver --listen 127.0.0.1:8791 &
    receiver=$!
    eventually $WAIT "a stranger's receiver answers" curl --silent --fail http://127.0.0.1:8791/receiver/events
    kill $receiver
}

metrics_count_one() { systemctl start koala-agent-metrics.service && grep -x 'koala_agent_pending{destination="koala"} 1' "$1"; }

case_the_timer_of_the_manual_writes_metrics_for_the_textfile_collector() {
    local prom=/var/lib/prometheus/node-exporter/koala-agent.prom unit line
    pending
    koala-agent man monitoring | sed -n '/^# .etc.systemd/,/^\.Ed/{/^\.Ed/d;s/\\-/-/g;s/\\e$/\\/;p}' |
        while IFS= read -r line; do
            if [[ $line == '# /etc/systemd/system/'* ]]; then unit=${line#\# }; else printf '%s\n' "$line" >> "$unit"; fi
        done
    mkdir -p "${prom%/*}"
    systemd-analyze verify koala-agent-metrics.timer
    systemctl daemon-reload
    systemctl start koala-agent-metrics.timer
    eventually $WAIT "the file counts the event" metrics_count_one $prom
    [[ $(stat -c '%a' $prom) == 644 ]]
    rm $prom
    eventually 120 "the timer has written the file again" test -s $prom
    systemctl stop koala-agent-metrics.timer
    rm /etc/systemd/system/koala-agent-metrics.{service,timer}
    systemctl daemon-reload
}

case_the_group_koala_drop_may_send() {
    receiver --key pk_test
    start
    event sent | as $PRODUCER koala-agent send --wait=60s
    arrive sent
}

case_the_group_koala_agent_may_list_and_show_with_the_agent_up_or_down() {
    local user
    pending
    exits 0 as $READER koala-agent list
    exits 0 as $READER koala-agent show one
    for user in $STRANGER $PRODUCER; do
        exits 77 as $user koala-agent list
        exits 77 as $user koala-agent show one
    done
    systemctl stop koala-agent
    exits 0 as $READER koala-agent list
    [[ $(as $READER koala-agent list --json | json 'd["message_id"]') == one ]] || fail "list does not show the event"
    as $READER koala-agent show one | grep one > /dev/null
}

case_the_group_koala_agent_may_read_the_views() {
    command -v sqlite3 > /dev/null || return 0
    pending
    [[ $(as $READER sqlite3 -readonly $STATE/outbox.db 'SELECT message_id FROM outbox_events') == one ]]
}

case_only_root_and_the_service_user_may_retry_discard_and_check() {
    local user
    pending
    for user in $STRANGER $PRODUCER $READER; do
        exits 77 as $user koala-agent retry one
        exits 77 as $user koala-agent discard one
        exits 77 as $user koala-agent retry --rejected broken.json
        exits 77 as $user koala-agent check
    done
    exits 0 as koala-agent koala-agent retry --state failed
    exits 0 koala-agent retry --state failed
    exits 0 as koala-agent koala-agent discard one
    eventually $WAIT "the event is discarded" status_is 'd["outbox"]["discarded"]' 1
    receiver --key pk_test
    exits 0 koala-agent check
    drop $PRODUCER two
    arrive two
}

case_rejected_files_may_be_read_by_the_group_koala_agent_and_put_back_by_the_service_user() {
    local user
    start
    # shellcheck disable=SC2016
    as $PRODUCER sh -c 'umask 077; echo "{]" > "$0/broken.json"' $SPOOL
    printf '%s\n' '{]' | as $PRODUCER tee $SPOOL/line.ndjson > /dev/null
    eventually $WAIT "both are rejected" status_is 'd["spool"]["rejected_files"]' 2
    [[ $(stat -c '%U:%G %a' $SPOOL/rejected) == "koala-agent:koala-agent 750" ]] || fail "$(stat $SPOOL/rejected)"
    [[ $(stat -c '%U' $SPOOL/.removing) == koala-agent ]] || fail "$(stat $SPOOL/.removing)"
    [[ $(stat -c '%a' $SPOOL/.removing) == *700 ]] || fail "$(stat $SPOOL/.removing)"
    exits 0 as $READER koala-agent list --rejected
    as $READER sh -c "cat $SPOOL/rejected/*" > /dev/null
    as $READER grep -q not_json $SPOOL/rejected/broken.json.why
    if as $READER rm -f $SPOOL/rejected/broken.json; then fail "a reader removed it"; fi
    if as $READER ls $SPOOL; then fail "a reader lists the spool"; fi
    for user in $PRODUCER $STRANGER; do
        exits 77 as $user koala-agent list --rejected
        if as $user cat $SPOOL/rejected/broken.json; then fail "$user reads what was rejected"; fi
    done
    exits 0 as koala-agent koala-agent retry --rejected broken.json
    eventually $WAIT "it is rejected again" status_is 'd["spool"]["rejected_files"]' 2
}

# Runs the line that a refusal of `koala-agent ARGS...` offers, with sudo played by setpriv.
run_the_line_offered() {
    local said line user=root
    said=$(as $STRANGER koala-agent "$@" 2>&1 < /dev/null) && fail "it was no refusal: $*"
    line=$(grep -oE 'sudo [^`"'\'']+' <<< "$said" | head -n 1) || fail "no line is offered: $said"
    line=${line#sudo }
    if [[ $line == -u\ * ]]; then read -r _ user line <<< "$line"; fi
    # shellcheck disable=SC2086
    event offered | as $user $line > /dev/null || fail "the line does not work: $line"
}

case_a_refusal_offers_a_line_that_works() {
    pending
    run_the_line_offered list
    run_the_line_offered show one
    run_the_line_offered retry one
    run_the_line_offered discard one
    run_the_line_offered send
}
