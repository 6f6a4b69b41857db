#!/usr/bin/env bash
# packages.sh DEB [TAR] [RPM] - install, upgrade, remove and purge the packages under this machine's systemd. Run as root,
# in the folder that holds README.md, whose commands are run.
#
# The machine must be a throw-away one: the cases wipe the agent's state. Unlike those of run.sh they stand on each other,
# as the days of an installation do, and the first that fails ends them.
set -uo pipefail
export LC_ALL=C.UTF-8 SYSTEMD_PAGER= DEBIAN_FRONTEND=noninteractive

here=$(dirname -- "$(readlink -f -- "$0")")
deb= tarball= rpm=
for file; do
    path=$(readlink -e -- "$file") || exit 1
    case $path in
        *.deb) deb=$path ;;
        *.tar.gz) tarball=$path ;;
        *.rpm) rpm=$path ;;
    esac
done
[[ -n $deb ]] || { echo "usage: packages.sh DEB [TAR] [RPM]" >&2; exit 64; }
# shellcheck source=lib.sh
. "$here/lib.sh"

if [[ -e /usr/bin/koala-agent || -e $STATE || -e $SPOOL ]]; then
    echo "koala-agent is installed on this machine: these cases would wipe its state" >&2
    exit 1
fi
log=$(mktemp)
work=$(mktemp -d) && chmod 755 "$work"
trap 'rm -rf "$log" "$work"' EXIT
passed=0 begun=$SECONDS

step() { # step FACT - run the function of that name; a failure ends the run
    (
        set -eE
        trap 'echo "${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND" >&2' ERR
        "$1"
    ) > "$log" 2>&1 < /dev/null
    # shellcheck disable=SC2181 # in a condition, set -e would not hold inside
    if (($? != 0)); then
        echo "FAIL $1:"
        tail -n 25 "$log" | tr -d '\0' | sed 's/^/    /'
        journalctl --unit=koala-agent --lines=15 --quiet --output=short-precise | sed 's/^/    /'
        echo "$passed passed, 1 failed"
        exit 1
    fi
    passed=$((passed + 1))
    echo "ok $1"
    sed -n 's/^note: /   /p' "$log"
}

note() { echo "note: $*"; }

# readme_line SECTION TEXT - that line of the README's section
readme_line() {
    local line
    line=$(sed -n "/^## $1/,/^## /{/^[^#]*$2/p}" README.md)
    [[ -n $line && $line != *$'\n'* ]] || fail "not one line of the README has: $2"
    echo "$line"
}

# readme SECTION TEXT... - run those lines of the README's section; apt asks nobody
readme() {
    local title=$1 text line
    shift
    for text; do
        line=$(readme_line "$title" "$text")
        note "$line"
        bash -c "${line/#apt /apt-get --yes --quiet }"
    done
}

# page SECTION - run the first block of that section of the installed koala-agent-operations(7); apt asks nobody
page() {
    local block
    block=$(gzip --decompress --stdout /usr/share/man/man7/koala-agent-operations.7.gz | sed -n "/^\.Sh $1\$/,/^\.Sh /p" |
        sed -n '/^\.Bd /,/^\.Ed/{/^\.Ed/q; /^\.Bd /d; s/\\-/-/g; s/\\e/\\/g; s/^apt /apt-get --yes --quiet /; p}')
    [[ -n $block ]] || fail "no block in $1"
    block=${block//$'\\\n '/}
    note "${block//$'\n'/; }"
    bash -euc "$block"
}

install_deb() { apt-get install --yes --quiet "$1"; }

# newer DEB VERSION - the path of the same package with a higher version
newer() {
    dpkg-deb --raw-extract "$1" "$work/newer"
    sed -i "s/^Version: .*/Version: $2/" "$work/newer/DEBIAN/control"
    dpkg-deb --root-owner-group -Znone --build "$work/newer" "$work/newer.deb" > /dev/null
    rm -r "$work/newer"
}

# flood PREFIX FILE - as the producer, drop a file with one event a millisecond until FILE is there, a minute at most; print how many, and seconds
flood() {
    as $PRODUCER python3 - "$SPOOL" "$1" "$2" << 'EOF'
import json, os, sys, time
spool, prefix, end = sys.argv[1:]
begun, count = time.monotonic(), 0
while not os.path.exists(end) and time.monotonic() - begun < 60:
    while count < (time.monotonic() - begun) * 1000:
        event = {"type": "track", "event": "Signed Up", "messageId": f"{prefix}-{count}",
                 "properties": {"email": f"person{count % 100}@acme.dev"}}
        aside = f"{spool}/.{prefix}-{count}"
        with open(aside, "w") as file:
            json.dump(event, file)
        os.chmod(aside, 0o640)
        os.rename(aside, f"{spool}/{prefix}-{count}.json")
        count += 1
    time.sleep(0.001)
print(count, round(time.monotonic() - begun, 1))
EOF
}

received_all() { # received_all PREFIX COUNT - the receiver holds each of PREFIX-0 to PREFIX-(COUNT-1) once
    curl --silent --fail "http://$ADDRESS/receiver/events" | python3 -c '
import collections, json, sys
prefix, count = sys.argv[1], int(sys.argv[2])
held = collections.Counter(e["message_id"] for e in json.load(sys.stdin) if e["message_id"].startswith(prefix + "-"))
sys.exit(held != collections.Counter(f"{prefix}-{n}" for n in range(count)))' "$1" "$2"
}

active() { [[ $(systemctl is-active koala-agent) == active ]]; }
remains() { find /etc /usr /var /run -xdev -name '*koala*' -not -path '/var/lib/dpkg/*' -not -path '/run/systemd/*' | sort; }

installing_starts_a_service_that_stores_and_says_that_there_is_no_key() {
    mkdir -p target/packages
    ln -s "$deb" target/packages/koala-agent_1_amd64.deb
    readme Install 'apt install'
    active
    systemctl is-enabled --quiet koala-agent
    usermod --append --groups koala-drop $PRODUCER
    drop $PRODUCER first
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    eventually $WAIT "the reason is no_key" status_is 'd["destination"]["reason"]["code"]' no_key
    eventually $WAIT "systemctl status says that there is no key" status_text_has 'key'
}

what_belongs_to_the_program_is_installed_with_it() {
    local file
    for file in man1/koala-agent.1 man5/koala-agent.toml.5 man7/koala-agent-{spool,mappings,guarantees,operations,monitoring,log,containers}.7; do
        gzip --test "/usr/share/man/$file.gz"
    done
    bash -n /usr/share/bash-completion/completions/koala-agent
    [[ -s /usr/share/koala-agent/prometheus/koala-agent.rules.yml ]]
    json 'd["uid"]' < /usr/share/koala-agent/grafana/koala-agent.json
    [[ -s /usr/share/zsh/vendor-completions/_koala-agent && -s /usr/share/fish/vendor_completions.d/koala-agent.fish ]]
    systemd-analyze verify koala-agent.service koala-agent@shop.service
    [[ $(dpkg-query --show --showformat='${Conffiles}' koala-agent) == *" /etc/koala-agent/config.toml "* ]]
    [[ $(stat -c '%U:%G %a' /etc/koala-agent/config.toml) == "root:root 644" ]]
}

set_up_by_init_it_delivers() {
    local line
    receiver --key YOUR_PUBLIC_KEY
    sed -i 's/^#min_free = .*/min_free = 0/' $ETC/config.toml # the machine's disk may be almost full
    line=$(readme_line Install 'koala-agent init')
    note "$line"
    at_terminal "$line" 'Address of the receiver' "http://$ADDRESS" 'Public key' YOUR_PUBLIC_KEY
    readme Install 'systemctl restart' 'koala-agent check'
    arrive first
    note "$((SECONDS - begun)) s from the package to the first delivered event"
}

an_instance_runs_beside_it() {
    koala-agent --instance shop init --endpoint "http://$ADDRESS" <<< YOUR_PUBLIC_KEY
    sed -i '1i outbox.min_free = 0' $ETC/shop.toml
    systemctl enable --now koala-agent@shop
    event shop | as $PRODUCER koala-agent --instance shop send --wait=60s
}

an_upgrade_under_load_loses_nothing_and_keeps_the_configuration() {
    local producer count seconds before instance
    newer "$deb" 99.0-1
    before=$(shown MainPID)
    instance=$(systemctl show --property=MainPID --value koala-agent@shop)
    flood upgrade "$work/enough" > "$work/count" &
    producer=$!
    sleep 1
    cp "$work/newer.deb" "$work/koala-agent_NEWER_amd64.deb"
    (cd "$work" && page UPGRADE)
    sleep 1
    touch "$work/enough"
    wait $producer
    read -r count seconds < "$work/count"
    [[ $(dpkg-query --show --showformat='${Version}' koala-agent) == 99.0-1 ]]
    active
    if shown_is MainPID "$before"; then fail "it was not restarted"; fi
    [[ $(systemctl is-active koala-agent@shop) == active ]]
    [[ $(systemctl show --property=MainPID --value koala-agent@shop) != "$instance" ]] || fail "the instance was not restarted"
    eventually $WAIT "each of $count events at the receiver, once" received_all upgrade "$count"
    grep -q "endpoint = \"http://$ADDRESS\"" $ETC/config.toml
    note "$count files in $seconds s, each delivered once"
}

a_backup_is_made_and_restored_as_the_page_says() {
    page BACKUP
    [[ -s /root/outbox.db && -s /root/public-key && -z $(find /root/outbox.db /root/public-key -perm /077) ]]
    page RESTORE
    active
    [[ $(stat -c '%U:%G %a' $STATE/outbox.db) == "koala-agent:koala-agent 640" ]]
    drop $PRODUCER restored-0
    eventually $WAIT "the event at the receiver" received_all restored 1
}

removing_stops_it_and_keeps_spool_outbox_configuration_and_key() {
    systemctl stop koala-test-receiver
    drop $PRODUCER waiting
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    readme Maintain 'apt remove'
    [[ ! -e /usr/bin/koala-agent && ! -e /usr/lib/systemd/system/koala-agent.service ]]
    if active; then fail "it still runs"; fi
    [[ $(systemctl is-active koala-agent@shop) == inactive ]]
    [[ -s $STATE-shop/outbox.db && -s $ETC/shop.toml && -s $ETC/shop.public-key ]]
    [[ -s $STATE/outbox.db && -s $ETC/config.toml && -s $ETC/public-key ]]
    drop $PRODUCER meanwhile
    [[ $(find $SPOOL -name '*.json' | wc -l) == 1 ]]
}

installed_again_it_goes_on() {
    install_deb "$deb"
    active
    systemctl is-enabled --quiet koala-agent
    [[ $(systemctl is-active koala-agent@shop) == active ]]
    eventually $WAIT "both are pending" status_is 'd["outbox"]["pending"]' 2
}

purging_keeps_what_was_never_delivered_and_says_so() {
    local said
    apt-get remove --yes --quiet koala-agent
    drop $PRODUCER unread
    said=$(readme Maintain 'apt purge' 2>&1)
    echo "$said"
    grep -q "rm -r $SPOOL $STATE $ETC" <<< "$said"
    [[ -s $STATE/outbox.db && -s $ETC/public-key && ! -e $ETC/config.toml ]]
    [[ $(find $SPOOL -name '*.json' | wc -l) == 1 ]]
    note "$(remains | tr '\n' ' ')"
}

purging_deletes_an_outbox_that_has_nothing_to_deliver() {
    install_deb "$deb"
    receiver --key YOUR_PUBLIC_KEY
    config "http://$ADDRESS"
    systemctl restart koala-agent
    arrive waiting meanwhile unread
    eventually $WAIT "nothing is pending" status_is 'd["outbox"]["pending"]' 0
    apt-get purge --yes --quiet koala-agent
    systemctl stop koala-test-receiver
    note "what remains: $(remains | tr '\n' ' ')"
    [[ -z $(remains) ]] || fail "$(remains)"
    id koala-agent # other files of this user may be kept somewhere
}

the_rpm_installs_upgrades_and_removes_the_service() {
    # The libraries of this machine are dpkg's, so rpm does not know of them.
    rpm --install --nodeps "$rpm"
    systemctl start koala-agent
    systemctl is-enabled --quiet koala-agent
    drop $PRODUCER packed
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    local before
    before=$(shown MainPID)
    echo '# edited' >> $ETC/config.toml
    rpm --upgrade --nodeps --replacepkgs "$rpm"
    active
    if shown_is MainPID "$before"; then fail "it was not restarted"; fi
    grep -q '^# edited' $ETC/config.toml
    rpm --erase --nodeps koala-agent
    if active; then fail "it still runs"; fi
    [[ ! -e /usr/bin/koala-agent && -s $STATE/outbox.db ]]
}

the_tarball_installs_the_service_by_the_lines_of_the_page_in_it() {
    local lines
    lines=$(tar -xzf "$tarball" --to-stdout usr/share/man/man1/koala-agent.1.gz | gzip --decompress |
        sed -n '/^tar /,/^\.Ed/{/^\.Ed/d; s/\\-/-/g; p}')
    note "${lines//$'\n'/; }"
    (cd "$(dirname -- "$tarball")" && bash -euc "$lines")
    drop $PRODUCER unpacked
    eventually $WAIT "the event is pending" status_is 'd["outbox"]["pending"]' 1
    systemctl disable --now koala-agent
    tar -tzf "$tarball" | grep -v '/$' | (cd / && xargs rm)
    rm -r $STATE $SPOOL $RUNTIME
}

make_users
rm -f /var/lib/man-db/auto-update # reading all pages of the machine takes longer than the rest
step installing_starts_a_service_that_stores_and_says_that_there_is_no_key
step what_belongs_to_the_program_is_installed_with_it
step set_up_by_init_it_delivers
step an_instance_runs_beside_it
step an_upgrade_under_load_loses_nothing_and_keeps_the_configuration
step a_backup_is_made_and_restored_as_the_page_says
step removing_stops_it_and_keeps_spool_outbox_configuration_and_key
step installed_again_it_goes_on
step purging_keeps_what_was_never_delivered_and_says_so
step purging_deletes_an_outbox_that_has_nothing_to_deliver
if [[ -n $tarball ]]; then step the_tarball_installs_the_service_by_the_lines_of_the_page_in_it; fi
if [[ -n $rpm ]]; then step the_rpm_installs_upgrades_and_removes_the_service; fi
echo "$passed passed, 0 failed"
