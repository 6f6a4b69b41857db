#!/usr/bin/env bash
# image.sh IMAGE - try an image that packaging/oci made, as a container runtime would run it: its own root, which cannot be
# written, and in it only volumes, as its own user and process 1. Run as root; a failure ends it.
#
# No runtime is needed, so that it can run where none can be had; what a runtime adds is a network of its own.
set -euo pipefail

image=$(readlink -e -- "${1:?image.sh IMAGE}")
work=$(mktemp -d) && chmod 755 "$work"
root=$work/root spool=$work/spool state=$work/state
trap '{ kill -KILL $(jobs -p) || true; wait; rm -rf "$work"; } 2> /dev/null' EXIT
fail() { echo "FAIL $*" >&2; exit 1; }
ok() { echo "ok $*"; }

# unpack - check each blob by its digest, unpack the layer, print the configuration's user, entry and command
unpack() {
    mkdir "$work/layout" "$root"
    tar -xf "$image" -C "$work/layout"
    python3 - "$work/layout" "$root" << 'EOF'
import hashlib, json, subprocess, sys
layout, root = sys.argv[1:]
def blob(descriptor):
    kind, digest = descriptor["digest"].split(":")
    data = open(f"{layout}/blobs/{kind}/{digest}", "rb").read()
    assert len(data) == descriptor["size"] and hashlib.sha256(data).hexdigest() == digest, descriptor
    return data
assert json.load(open(f"{layout}/oci-layout"))["imageLayoutVersion"] == "1.0.0"
[manifest] = json.load(open(f"{layout}/index.json"))["manifests"]
manifest = json.loads(blob(manifest))
image = json.loads(blob(manifest["config"]))
[layer] = manifest["layers"]
tar = subprocess.run(["gzip", "-d"], input=blob(layer), stdout=subprocess.PIPE, check=True).stdout
assert image["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(tar).hexdigest()]
subprocess.run(["tar", "-xp", "--numeric-owner", "-C", root], input=tar, check=True)
config = image["config"]
assert config["StopSignal"] == "SIGTERM" and len(config["Volumes"]) == 2
print(config["User"], *config["Entrypoint"] + config["Cmd"])
EOF
}

variables=() # of the container

# container COMMAND - replace this shell by the command as process 1 of a container
container() {
    exec env -i "${variables[@]}" unshare --mount --pid --fork --kill-child bash -euc '
        root=$1 spool=$2 state=$3 user=$4; shift 4
        mount --bind "$root" "$root"
        mount -o remount,bind,ro "$root"
        mount -t proc proc "$root/proc"
        mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
        mount -t tmpfs -o "uid=${user%:*},mode=755" tmpfs "$root/run/koala-agent"
        mount --bind "$spool" "$root/var/spool/koala-agent"
        mount --bind "$state" "$root/var/lib/koala-agent"
        export PATH=/usr/bin
        exec /usr/sbin/chroot --userspec="$user" "$root" "$@"' \
        container "$root" "$spool" "$state" "$user" "$@"
}
# inside COMMAND - run a command in the container that runs
inside() { nsenter --target "$agent" --mount --pid chroot --userspec="$user" "$root" "$@"; }

eventually() { # eventually FACT COMMAND - wait until it succeeds
    local fact=$1 n
    shift
    for ((n = 0; n < 300; n++)); do
        if "$@" 2> /dev/null; then ok "$fact"; return; fi
        sleep 0.2
    done
    fail "$fact: $(cat "$work/log")"
}
delivered() { [[ $(inside koala-agent status --json) == *'"delivered": '$1,* ]]; }

# start - run the image's command in the background; `agent` is its process
start() {
    (container "${command[@]}") > "$work/log" 2>&1 &
    runtime=$!
    eventually "it runs" grep --quiet notice=started "$work/log"
    agent=$(< "/proc/$runtime/task/$runtime/children")
    agent=${agent% }
}
stop() {
    kill -TERM "$agent"
    wait "$runtime" || fail "it ended with $?: $(cat "$work/log")"
    grep --quiet notice=stopping "$work/log"
}

read -r user entry < <(unpack)
read -r -a command <<< "$entry"
[[ $user == 65532:65532 && ${command[*]} == "/usr/bin/koala-agent run --config /etc/koala-agent/config.toml" ]] || fail "$user $entry"
mkdir "$root/proc"
# A runtime gives a new volume the owner and the mode that its folder has in the image.
cp -a "$root/var/spool/koala-agent" "$spool"
cp -a "$root/var/lib/koala-agent" "$state"
ok "the image is whole"

(container koala-agent demo) > "$work/log" 2>&1 || fail "demo: $(cat "$work/log")"
ok "the demo runs"

"$root/usr/bin/koala-agent" receiver --listen 127.0.0.1:0 > "$work/receiver" &
until grep --quiet http:// "$work/receiver"; do sleep 0.1; done
address=$(grep -o 'http://[0-9.:]*' "$work/receiver" | head -n 1)
variables=("KOALA_AGENT_KOALA__ENDPOINT=$address" KOALA_AGENT_KOALA__PUBLIC_KEY=pk_1)
start
# A program of another user, in the group that may add files.
chroot --userspec=12345:65532 / sh -euc 'umask 027
    echo "{\"type\":\"track\",\"event\":\"Signed Up\",\"messageId\":\"m-1\",\"properties\":{\"email\":\"ana@acme.dev\"}}" > "$1/.m-1"
    mv "$1/.m-1" "$1/m-1.json"' sh "$spool"
eventually "a file of another user is delivered" delivered 1
stop
ok "SIGTERM to process 1 stops it in order"
start
eventually "another container goes on from the volume" delivered 1
stop
