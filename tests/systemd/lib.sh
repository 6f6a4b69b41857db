# shellcheck shell=bash
# What the cases stand on: a fresh installation, a receiver, events, ordinary users, waiting for facts.

readonly SPOOL=/var/spool/koala-agent STATE=/var/lib/koala-agent RUNTIME=/run/koala-agent ETC=/etc/koala-agent
readonly DROP_INS=/etc/systemd/system/koala-agent.service.d
readonly ADDRESS=127.0.0.1:8790 # of the receiver
readonly WAIT=60 # s; far above what any fact here takes on two busy cores

# Ordinary users: two producers, one who may read the outbox, one of no group.
readonly PRODUCER=koala-test-ana OTHER_PRODUCER=koala-test-bob READER=koala-test-eve STRANGER=koala-test-tom

fail() {
    echo "$*"
    exit 1
}

# eventually SECONDS FACT COMMAND... - wait until the command succeeds; fail with the fact when it does not.
eventually() {
    local end=$((SECONDS + $1)) fact=$2
    shift 2
    until "$@" > /dev/null 2>&1; do
        ((SECONDS < end)) || fail "not in time: $fact"
        sleep 0.1
    done
}

as() { # as USER COMMAND...
    local user=$1
    shift
    (cd / && exec setpriv --reuid="$user" --regid="$(id -g "$user")" --init-groups --reset-env -- "$@")
}

# exits STATUS COMMAND... - the command ends with that status.
exits() {
    local want=$1 got=0 out
    shift
    out=$("$@" 2>&1) || got=$?
    [[ $got == "$want" ]] || fail "exit $got instead of $want: $* ($out)"
}

# at_terminal COMMAND [QUESTION ANSWER]... - run the shell's command at a terminal, and type each answer when its question
# is there; print what the terminal has shown. Its status is the command's.
at_terminal() {
    timeout $WAIT python3 - "$@" << 'EOF_PY'
import os, pty, sys
command, *talk = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    os.execvp("bash", ["bash", "-c", command])
shown, answered = b"", 0
def more():
    global shown
    try:
        piece = os.read(terminal, 4096)
    except OSError: # the command has ended
        piece = b""
    shown += piece
    return piece
for question, answer in zip(talk[::2], talk[1::2]):
    while shown.find(question.encode(), answered) < 0:
        if not more():
            sys.exit(f"it does not ask {question!r}: {shown.decode()}")
    answered = shown.find(question.encode(), answered) + len(question)
    os.write(terminal, answer.encode() + b"\n")
while more():
    pass
print(shown.decode(), end="")
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
EOF_PY
}

json() { # json EXPRESSION < DOCUMENT - the Python expression over the document d
    python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"
}

status() { koala-agent status --json | json "$1"; }
status_is() { [[ $(status "$1") == "$2" ]]; }
shown() { systemctl show --property="$1" --value koala-agent; }
shown_is() { [[ $(shown "$1") == "$2" ]]; }
status_text_has() { shown StatusText | grep -i -- "$1" > /dev/null; }

# mark TEXT - put a line into the journal and print its cursor. Not --after-cursor from just any line: with a
# filter, that swallows the first line that matches.
mark() {
    echo "$1" | systemd-cat --identifier=koala-test
    journalctl --sync
    journalctl --identifier=koala-test --lines=1 --show-cursor --quiet --output=cat | sed -n 's/^-- cursor: //p'
}
journal() { # journal PRIORITY - the service's lines of this case, systemd's own about it too
    journalctl --sync
    journalctl --unit=koala-agent --cursor="$CURSOR" --output=cat --quiet --priority="$1"
}
# Not grep -q: it would end the pipe early, and pipefail take that for a failure.
journal_has() { journal debug | grep -- "$1" > /dev/null; }

# freeze PID THREAD - stop the threads of that name, and no others, until the process ends.
freeze() {
    python3 - "$@" << 'EOF' > /tmp/koala-test-frozen &
import ctypes, os, sys
pid, name = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
frozen = []
for tid in map(int, os.listdir(f"/proc/{pid}/task")):
    with open(f"/proc/{pid}/task/{tid}/comm") as comm:
        if comm.read().strip() != name:
            continue
    PTRACE_ATTACH, WALL = 16, 0x40000000
    if libc.ptrace(PTRACE_ATTACH, tid, 0, 0) != 0:
        sys.exit(f"ptrace: {os.strerror(ctypes.get_errno())}")
    os.waitpid(tid, WALL)
    frozen.append(tid)
print("frozen", *frozen, flush=True)
for tid in frozen:
    os.waitpid(tid, WALL)
EOF
    eventually $WAIT "the thread $2 is frozen" grep 'frozen [0-9]' /tmp/koala-test-frozen
}

# --- events

event() { # event ID [EMAIL]
    printf '{"type":"track","event":"Signed Up","messageId":"%s","properties":{"email":"%s"}}\n' "$1" "${2:-ana@acme.dev}"
}

drop() { # drop USER ID... - the README's recipe for a shell
    local user=$1 id
    shift
    for id; do
        # shellcheck disable=SC2016
        event "$id" | as "$user" env SPOOL=$SPOOL sh -c \
            't=$(mktemp "$SPOOL/.XXXXXX") && cat >"$t" && chmod 640 "$t" && mv "$t" "$SPOOL/$(date +%s%N)-$$.json"'
    done
}

received() { curl --silent --fail "http://$ADDRESS/receiver/events" | json '"\n".join(sorted(e["message_id"] for e in d))'; }
received_exactly() { [[ $(received) == "$(printf '%s\n' "$@" | sort)" ]]; }
arrive() { eventually $WAIT "exactly $* at the receiver" received_exactly "$@"; }

# --- the machine

receiver() { # receiver [OPTION...] - a local Koala, its options beside --listen
    systemctl stop koala-test-receiver 2> /dev/null || true
    systemd-run --quiet --collect --unit=koala-test-receiver --description="receiver of the tests" \
        koala-agent receiver --listen $ADDRESS "$@"
    eventually $WAIT "the receiver answers" curl --silent --fail "http://$ADDRESS/receiver/events"
}

key() { install -m 600 /dev/stdin $ETC/public-key <<< "$1"; }

config() { # config ENDPOINT [LINE...] - the configuration: the endpoint, then the lines; a machine's disk may be almost full
    local endpoint=$1
    shift
    printf '%s\n' 'outbox.min_free = 0' '[koala]' "endpoint = \"$endpoint\"" "$@" | install -m 644 /dev/stdin $ETC/config.toml
}

drop_in() { # drop_in LINE... - lines for [Service]
    mkdir -p $DROP_INS
    printf '%s\n' '[Service]' "$@" > $DROP_INS/test.conf
    systemctl daemon-reload
}

start() { systemctl start koala-agent; }

# fresh - as after the installation, stopped, with a configuration and a key.
fresh() {
    local user
    systemctl stop koala-agent koala-test-receiver koala-test-second koala-test-manager 2> /dev/null || true
    systemctl stop 'koala-agent@*' 2> /dev/null || true
    systemctl reset-failed koala-agent 'koala-agent@*' 2> /dev/null || true
    if [[ -d $DROP_INS ]]; then
        rm -r $DROP_INS
        systemctl daemon-reload
    fi
    rm -rf {$STATE,$RUNTIME,$SPOOL}{,-*} $ETC/*public-key $ETC/*.toml /var/lib/koala-test-user
    systemd-tmpfiles --create koala-agent.conf
    for user in $PRODUCER $OTHER_PRODUCER; do usermod --groups koala-drop $user; done
    usermod --groups koala-agent $READER
    usermod --groups '' $STRANGER
    config "http://$ADDRESS"
    key pk_test
}

make_users() {
    local user
    for user in $PRODUCER $OTHER_PRODUCER $READER $STRANGER; do
        id $user > /dev/null 2>&1 || useradd --no-create-home --home-dir /nonexistent $user
    done
}

# uninstall - what install.sh and the cases left, the system users aside.
uninstall() {
    local user
    fresh > /dev/null 2>&1 || true
    for user in $PRODUCER $OTHER_PRODUCER $READER $STRANGER; do userdel $user 2> /dev/null || true; done
    rm -rf {$STATE,$RUNTIME,$SPOOL}{,-*} $ETC /usr/bin/koala-agent \
        /usr/lib/systemd/{system,user}/koala-agent{,@}.service /usr/lib/{sysusers,tmpfiles}.d/koala-agent.conf
    systemctl daemon-reload
}
