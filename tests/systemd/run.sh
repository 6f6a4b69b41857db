#!/usr/bin/env bash
# run.sh BIN [CASE...] - install BIN and try the service under this machine's systemd. Run as root.
#
# The cases wipe the agent's state again and again, so a machine that has the agent already is refused;
# at the end it is uninstalled. Each case is a function `case_…` in cases/, named by the fact that it shows.
set -uo pipefail
export LC_ALL=C.UTF-8 SYSTEMD_PAGER=

here=$(dirname -- "$(readlink -f -- "$0")")
bin=${1:?usage: run.sh BIN [CASE...]}
shift
# shellcheck source=lib.sh
. "$here/lib.sh"
for file in "$here"/cases/*.sh; do
    # shellcheck source=/dev/null
    . "$file"
done

if [[ -e /usr/bin/koala-agent || -e $STATE || -e $SPOOL ]]; then
    echo "koala-agent is installed on this machine: these cases would wipe its state" >&2
    exit 1
fi
trap uninstall EXIT
log=$(mktemp)
{ "$here/install.sh" "$bin" && make_users; } || exit 1

if (($#)); then cases=("$@"); else mapfile -t cases < <(sed -n 's/^case_\([a-z0-9_]*\)() {.*/\1/p' "$here"/cases/*.sh); fi

passed=0 failed=0
for name in "${cases[@]}"; do
    fresh > "$log" 2>&1
    CURSOR=$(mark "$name")
    (
        set -eE
        trap 'echo "${BASH_SOURCE[0]##*/}:$LINENO: $BASH_COMMAND" >&2' ERR
        "case_$name"
    ) > "$log" 2>&1 < /dev/null
    # shellcheck disable=SC2181 # in a condition, set -e would not hold inside
    if (($? == 0)); then
        passed=$((passed + 1))
        echo "ok $name"
    else
        failed=$((failed + 1))
        echo "FAIL $name: $(tail -n 3 "$log" | tr -d '\0' | tr '\n' ' ')"
        journalctl --unit=koala-agent --cursor="$CURSOR" --lines=15 --quiet --output=short-precise | sed 's/^/    /'
    fi
done
rm -f "$log"
echo "$passed passed, $failed failed"
((failed == 0))
