#!/usr/bin/env bash
# install.sh BIN - install BIN and the files of packaging/ as a package would. Run as root.
set -euo pipefail

bin=${1:?usage: install.sh BIN}
packaging=$(readlink -f -- "$(dirname -- "$0")/../../packaging")

install -m 755 -- "$bin" /usr/bin/koala-agent
install -D -m 644 "$packaging/systemd/koala-agent.service" /usr/lib/systemd/system/koala-agent.service
install -D -m 644 "$packaging/systemd/koala-agent@.service" /usr/lib/systemd/system/koala-agent@.service
install -D -m 644 "$packaging/systemd/user/koala-agent.service" /usr/lib/systemd/user/koala-agent.service
install -D -m 644 "$packaging/sysusers.d/koala-agent.conf" /usr/lib/sysusers.d/koala-agent.conf
install -D -m 644 "$packaging/tmpfiles.d/koala-agent.conf" /usr/lib/tmpfiles.d/koala-agent.conf
install -D -m 644 "$packaging/config.toml" /etc/koala-agent/config.toml

systemd-sysusers koala-agent.conf
systemd-tmpfiles --create koala-agent.conf
systemctl daemon-reload
