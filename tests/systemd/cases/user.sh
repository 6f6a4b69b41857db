# shellcheck shell=bash
# The user unit, under the manager of a user of no group.

readonly RUNTIME_OF_USER=/run/koala-test-user HOME_OF_USER=/var/lib/koala-test-user

session() { # session COMMAND... - as the user, logged in
    as $STRANGER env XDG_RUNTIME_DIR=$RUNTIME_OF_USER HOME=$HOME_OF_USER "$@"
}

# The manager as a login starts it, without needing logind.
log_in() {
    systemd-run --quiet --collect --unit=koala-test-manager --uid=$STRANGER --property=Delegate=yes \
        --property=RuntimeDirectory=koala-test-user --property=StateDirectory=koala-test-user \
        --setenv=XDG_RUNTIME_DIR=$RUNTIME_OF_USER --setenv=HOME=$HOME_OF_USER /lib/systemd/systemd --user
    eventually $WAIT "the user's manager answers" session systemctl --user show
}

case_a_user_runs_an_agent_of_their_own() {
    local spool=$HOME_OF_USER/.local/state/koala-agent/spool
    receiver --key pk_test
    log_in
    session koala-agent --user init --endpoint "http://$ADDRESS" <<< pk_test
    [[ $(stat -c '%U %a' $HOME_OF_USER/.config/koala-agent/public-key) == "$STRANGER 600" ]] || fail "the key file is not the user's"
    session sed -i '1i outbox.min_free = 0' $HOME_OF_USER/.config/koala-agent/config.toml
    session systemctl --user enable --now koala-agent
    event one | session tee $spool/one.json > /dev/null
    arrive one
    [[ $(session koala-agent --user status --json | json 'd["agent"]["running"]') == True ]] || fail "status: not running"
    [[ ! -e $STATE/outbox.db ]] || fail "the system's state was touched"
    session systemctl --user stop koala-agent
    [[ $(session systemctl --user show --property=Result --value koala-agent) == success ]] || fail "it did not stop well"
}
