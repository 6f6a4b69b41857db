# shellcheck shell=bash
# The unit: what systemd says of it, how it starts, reloads and stops.

case_systemd_analyze_verify_has_nothing_to_say() {
    local said
    said=$(systemd-analyze verify koala-agent.service koala-agent@shop.service 2>&1)
    [[ -z $said ]] || fail "$said"
    said=$(XDG_RUNTIME_DIR=/run systemd-analyze --user verify /usr/lib/systemd/user/koala-agent.service 2>&1)
    [[ -z $said ]] || fail "$said"
}

case_the_exposure_is_at_most_1_5() {
    systemd-analyze security --offline=yes --threshold=15 /usr/lib/systemd/system/koala-agent.service | tail -n 1
    systemd-analyze security --offline=yes --threshold=15 /usr/lib/systemd/system/koala-agent@.service | tail -n 1
}

case_it_starts_as_it_was_installed() {
    rm $ETC/public-key
    # shellcheck disable=SC2154 # run.sh sets it
    install -m 644 "$here/../../packaging/config.toml" $ETC/config.toml
    start
    status_is 'd["agent"]["running"]' True || fail "$(koala-agent status)"
}

case_ready_means_that_events_are_taken() {
    receiver --key pk_test
    [[ ! -e $RUNTIME/status.json ]] || fail "a status before the first start"
    start
    status_is 'd["agent"]["running"], d["intake"]["state"]' "(True, 'open')" || fail "$(koala-agent status)"
    drop $PRODUCER one
    arrive one
}

case_without_a_network_and_a_key_it_starts_and_stores() {
    rm $ETC/public-key
    drop_in PrivateNetwork=yes
    start
    eventually $WAIT "STATUS= says that there is no key" status_text_has 'key'
    drop $PRODUCER one
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    eventually $WAIT "the reason is no_key" status_is 'd["destination"]["reason"]["code"]' no_key
    eventually $WAIT "STATUS= says what waits" status_text_has '1 pending'
}

case_the_key_comes_as_a_credential_and_shows_nowhere() {
    local key=pk_5ecret_0f_the_tests pid
    rm $ETC/public-key
    receiver --key $key
    start
    drop $PRODUCER one
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    key $key
    [[ $(stat -c '%U:%G %a' $ETC/public-key) == "root:root 600" ]]
    systemctl restart koala-agent
    arrive one
    pid=$(shown MainPID)
    if journal debug | grep $key; then fail "the key is in the journal"; fi
    if koala-agent status --json | grep $key; then fail "the key is in the status"; fi
    if tr '\0' '\n' < "/proc/$pid/cmdline" | grep $key; then fail "the key is in the command line"; fi
    if tr '\0' '\n' < "/proc/$pid/environ" | grep $key; then fail "the key is in the environment"; fi
    if grep -raq $key $STATE $RUNTIME; then fail "the key is in the state"; fi
}

case_an_outbox_held_by_another_agent_is_waited_for() {
    start
    systemctl stop koala-agent
    systemd-run --quiet --collect --unit=koala-test-second --uid=koala-agent --property=Type=notify \
        --property=LoadCredential=koala-public-key:$ETC/public-key koala-agent run
    systemctl start --no-block koala-agent
    eventually $WAIT "a start that ends with 75" shown_is ExecMainStatus 75
    eventually $WAIT "a second attempt" restarts_at_least 1
    if journal_has 'Started koala-agent' && [[ $(journal debug | grep -c 'Started koala-agent') != 1 ]]; then
        fail "it was ready without the outbox"
    fi
    journal err | grep "$(systemctl show --property=MainPID --value koala-test-second)" > /dev/null ||
        fail "the journal does not name the holder: $(journal err)"
    systemctl stop koala-test-second
    eventually $WAIT "the service is active" shown_is ActiveState active
    exits 75 as koala-agent koala-agent run # by hand, beside the service
    shown_is ActiveState active
}

restarts_at_least() { (($(shown NRestarts) >= $1)); }

case_a_missing_spool_is_named_with_the_fix_and_events_are_taken_when_it_is_there() {
    rm -r $SPOOL
    systemctl start --no-block koala-agent
    eventually $WAIT "the journal names the spool" journal_has "no spool folder $SPOOL"
    journal err | grep "create the spool folder" > /dev/null || fail "no fix, or no error: $(journal err)"
    systemd-tmpfiles --create koala-agent.conf
    eventually $WAIT "the service is active" shown_is ActiveState active
}

case_a_spool_that_cannot_be_written_is_named_with_the_fix() {
    chown root $SPOOL
    if start; then fail "it started"; fi
    shown_is ExecMainStatus 77 || fail "exit $(shown ExecMainStatus)"
    shown_is ActiveState failed || fail "it is $(shown ActiveState)"
    journal err | grep "$SPOOL.*owner must be" > /dev/null || fail "no fix, or no error: $(journal err)"
    systemd-tmpfiles --create koala-agent.conf
    start
}

case_a_bad_configuration_ends_it_until_somebody_fixes_it() {
    config "http://$ADDRESS" 'endpiont = "http://127.0.0.1"'
    if start; then fail "it started"; fi
    shown_is ExecMainStatus 78 || fail "exit $(shown ExecMainStatus)"
    shown_is ActiveState failed || fail "it is $(shown ActiveState)"
    shown_is NRestarts 0 || fail "$(shown NRestarts) restarts"
    journal_has endpiont || fail "the journal does not name the key"
    config "http://$ADDRESS"
    start
}

case_a_bad_configuration_fails_a_reload_and_leaves_the_old_one_in_force() {
    local pid
    receiver --key pk_test
    start
    pid=$(shown MainPID)
    config "http://$ADDRESS" 'endpiont = "http://127.0.0.1"'
    if systemctl reload koala-agent; then fail "the reload did not fail"; fi
    eventually $WAIT "the journal names the key" journal_has endpiont
    eventually $WAIT "the file is not in force" status_is 'd["config_in_force"]' False
    kill -HUP "$pid" # without the check
    eventually $WAIT "the agent refuses it too" journal_has 'the old one stays in force'
    drop $PRODUCER one
    arrive one
    shown_is MainPID "$pid" || fail "it was restarted"
}

case_a_reload_takes_a_good_configuration() {
    config http://127.0.0.1:9 # nobody listens there
    receiver --key pk_test
    start
    drop $PRODUCER one
    eventually $WAIT "a reason for the event's waiting" status_is 'd["destination"]["reason"]["code"]' connect
    config "http://$ADDRESS"
    systemctl reload koala-agent
    arrive one
}

case_it_stops_in_time_while_the_receiver_hangs() {
    local ids begun
    mapfile -t ids < <(seq -f 'stop-%g' 20)
    receiver --key pk_test --latency 60s
    start
    drop $PRODUCER "${ids[@]}"
    eventually $WAIT "20 events pending" status_is 'd["outbox"]["pending"]' 20
    begun=$SECONDS
    systemctl stop koala-agent
    ((SECONDS - begun <= 11)) || fail "it took $((SECONDS - begun)) s"
    shown_is Result success || fail "the result is $(shown Result)"
    status_is 'd["agent"]["running"], d["outbox"]["pending"]' '(False, 20)' || fail "$(koala-agent status)"
    as $STRANGER koala-agent status | grep -E '[0-9]{2}:[0-9]{2}' > /dev/null || fail "no word of since when"
}
