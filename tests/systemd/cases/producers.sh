# shellcheck shell=bash
# Producers: ordinary users of the group koala-drop, each with a way of their own of writing a file.

case_what_a_producer_drops_arrives_however_it_was_written() {
    receiver --key pk_test
    start
    drop $PRODUCER recipe
    event installed > /tmp/koala-test-event
    as $PRODUCER install -m 640 /tmp/koala-test-event $SPOOL/installed.json
    rm /tmp/koala-test-event
    # shellcheck disable=SC2016
    event redirected | as $PRODUCER sh -c 'umask 077; cat > "$0"' $SPOOL/redirected.json
    event opened | as $PRODUCER python3 -c '
import os, sys
os.umask(0o077)
with open(sys.argv[1], "w") as file:
    file.write(sys.stdin.read())' $SPOOL/opened.json
    event sent | as $PRODUCER koala-agent send
    # shellcheck disable=SC2016
    event umasked | as $PRODUCER sh -c 'umask 077; koala-agent send'
    arrive recipe installed redirected opened sent umasked
}

case_a_private_file_is_left_reported_and_taken_after_chmod() {
    config "http://$ADDRESS" '[spool]' 'scan_interval = "2s"'
    receiver --key pk_test
    start
    # shellcheck disable=SC2016
    event private | as $PRODUCER sh -c 't=$(mktemp "$0/.XXXXXX") && cat >"$t" && mv "$t" "$0/private.json"' $SPOOL
    eventually $WAIT "the file is counted as unreadable" status_is 'd["spool"]["unreadable_files"]' 1
    eventually $WAIT "the journal names the file and the fix" journal_has 'private.json.*chmod g+r'
    journal debug | grep private.json | grep $PRODUCER > /dev/null || fail "the journal does not name the owner"
    [[ -e $SPOOL/private.json ]] || fail "the file is gone"
    as $PRODUCER chmod g+r $SPOOL/private.json
    arrive private
    eventually $WAIT "no file is unreadable" status_is 'd["spool"]["unreadable_files"]' 0
}

case_a_user_outside_the_group_cannot_drop() {
    local user
    start
    for user in $STRANGER $READER; do
        if as $user touch $SPOOL/stranger.json; then fail "$user wrote into the spool"; fi
        exits 77 as $user koala-agent send < <(event stranger)
    done
}

case_producers_neither_see_nor_touch_each_others_files() {
    event private | as $PRODUCER tee $SPOOL/private.json > /dev/null # the agent is down: it stays there
    if as $OTHER_PRODUCER ls $SPOOL; then fail "the spool can be listed"; fi
    if as $OTHER_PRODUCER cat $SPOOL/private.json; then fail "the file can be read"; fi
    if as $OTHER_PRODUCER sh -c "echo x >> $SPOOL/private.json"; then fail "the file can be written"; fi
    if as $OTHER_PRODUCER rm -f $SPOOL/private.json; then fail "the file can be removed"; fi
    if as $OTHER_PRODUCER mv $SPOOL/private.json $SPOOL/mine.json; then fail "the file can be renamed"; fi
    if as $OTHER_PRODUCER ls $SPOOL/rejected; then fail "rejected/ can be listed"; fi
    as koala-agent cat $SPOOL/private.json > /dev/null
}
