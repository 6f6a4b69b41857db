# shellcheck shell=bash
# Setting up: `init`, and several instances beside each other.

readonly OTHER_ADDRESS=127.0.0.1:8792 # of another receiver

# As the package leaves it: no key, and every setting a comment. A machine's disk may be almost full.
as_installed() {
    rm $ETC/public-key
    # shellcheck disable=SC2154 # run.sh sets it
    sed 's/^#min_free = .*/min_free = 0/' "$here/../../packaging/config.toml" | install -m 644 /dev/stdin $ETC/config.toml
}

case_init_at_a_terminal_makes_the_service_deliver() {
    local key=pk_5ecret_0f_the_tests before shown
    as_installed
    before=$(< $ETC/config.toml)
    receiver --key $key
    start
    drop $PRODUCER one
    shown=$(at_terminal 'koala-agent init' 'Address of the receiver [https://api2.getkoala.com]: ' "http://$ADDRESS" \
        'Public key (not shown): ' $key) || fail "$shown"
    grep 'accepts the key' <<< "$shown" > /dev/null || fail "$shown"
    grep 'systemctl restart koala-agent' <<< "$shown" > /dev/null || fail "$shown"
    if grep $key <<< "$shown"; then fail "the key is shown"; fi
    [[ $(stat -c '%U:%G %a' $ETC/config.toml) == "root:root 644" ]] || fail "$(stat $ETC/config.toml)"
    [[ $(stat -c '%U:%G %a' $ETC/public-key) == "koala-agent:root 400" ]] || fail "$(stat $ETC/public-key)"
    [[ $(diff <(echo "$before") $ETC/config.toml | grep '^>') == "> endpoint = \"http://$ADDRESS\"" ]] || fail "other lines"
    systemctl restart koala-agent
    arrive one
    exits 0 koala-agent check --producer $PRODUCER
    if journal debug | grep $key; then fail "the key is in the journal"; fi
    exits 1 koala-agent init --endpoint "http://$ADDRESS" <<< pk_wrong # refused, and kept
    exits 0 koala-agent init <<< $key
    exits 64 koala-agent init --endpoint nonsense <<< $key
    exits 77 as $STRANGER koala-agent init --endpoint "http://$ADDRESS" <<< $key
}

case_without_credentials_as_before_systemd_247_the_service_reads_the_key_that_init_wrote() {
    as_installed
    drop_in LoadCredential= SetCredential=
    receiver --key pk_test
    start
    drop $PRODUCER one
    exits 0 koala-agent init --endpoint "http://$ADDRESS" <<< pk_test
    systemctl reload koala-agent
    arrive one
}

instance_shown_is() { [[ $(systemctl show --property="$2" --value "koala-agent@$1") == "$3" ]]; }
other_received() { curl --silent --fail "http://$OTHER_ADDRESS/receiver/events" | json 'len(d), d[0]["message_id"]'; }
other_received_is() { [[ $(other_received) == "(1, '$1')" ]]; }

case_instances_beside_the_service_deliver_each_its_own() {
    local name said
    receiver --key pk_test
    systemd-run --quiet --collect --unit=koala-test-second koala-agent receiver --listen $OTHER_ADDRESS --key pk_shop
    eventually $WAIT "the other receiver answers" curl --silent --fail "http://$OTHER_ADDRESS/receiver/events"
    exits 0 koala-agent --instance shop init --endpoint "http://$OTHER_ADDRESS" <<< pk_shop
    exits 0 koala-agent --instance news init --endpoint "http://$ADDRESS" <<< pk_test
    for name in shop news; do sed -i '1i outbox.min_free = 0' $ETC/$name.toml; done
    start
    systemctl start koala-agent@shop koala-agent@news
    for name in shop news; do
        [[ $(getfacl --omit-header --absolute-names $SPOOL-$name{,/rejected,/.removing}) == \
            "$(getfacl --omit-header --absolute-names $SPOOL{,/rejected,/.removing})" ]] || fail "$(getfacl $SPOOL-$name)"
        [[ $(stat -c '%U:%G %a' $SPOOL-$name) == "$(stat -c '%U:%G %a' $SPOOL)" ]] || fail "$(stat $SPOOL-$name)"
        event $name | as $PRODUCER koala-agent --instance $name send --wait=60s
    done
    event own | as $PRODUCER koala-agent send --wait=60s
    arrive news own
    other_received_is shop || fail "$(other_received)"
    exits 0 koala-agent --instance shop check --producer $PRODUCER
    systemctl reload koala-agent@shop
    exits 75 as koala-agent koala-agent --instance shop run # by hand, beside the service

    # Each is by itself, and its remedies name its own unit.
    systemctl stop koala-agent@shop
    koala-agent --instance shop status | grep 'systemctl start koala-agent@shop' > /dev/null ||
        fail "$(koala-agent --instance shop status)"
    active_is koala-agent@news && active_is koala-agent || fail "another one stopped"
    rm -r $SPOOL-shop
    said=$(koala-agent --instance shop check --offline) && fail "no fault: $said"
    grep 'create the spool folder: systemctl restart koala-agent@shop' <<< "$said" > /dev/null || fail "$said"
    systemctl restart koala-agent@shop
    event again | as $PRODUCER koala-agent --instance shop send --wait=60s
}

active_is() { [[ $(systemctl is-active "$1") == active ]]; }

case_an_instance_without_a_configuration_ends_and_says_what_writes_it() {
    if systemctl start koala-agent@none; then fail "it started"; fi
    instance_shown_is none ExecMainStatus 78 || fail "exit $(systemctl show koala-agent@none)"
    instance_shown_is none ActiveState failed || fail "it is tried again"
    journalctl --unit=koala-agent@none --output=cat --quiet | grep "$ETC/none.toml, named by --instance, does not exist" > /dev/null ||
        fail "the journal does not say so"
    if systemctl start koala-agent@config; then fail "it started"; fi
    instance_shown_is config ExecMainStatus 64 || fail "exit $(systemctl show koala-agent@config)"
}

case_check_says_that_the_service_does_not_see_the_proxy_of_a_shell() {
    local said
    config https://koala.invalid
    start
    said=$(HTTPS_PROXY=http://127.0.0.1:9 koala-agent check) && fail "no fault: $said"
    grep 'HTTPS_PROXY is set here, so this command uses it; the service does not see it' <<< "$said" > /dev/null || fail "$said"
    grep "name the proxy in $ETC/config.toml: koala.proxy" <<< "$said" > /dev/null || fail "$said"
    said=$(koala-agent check) && fail "no fault: $said"
    grep '^ok    proxy          none$' <<< "$said" > /dev/null || fail "$said"
}
