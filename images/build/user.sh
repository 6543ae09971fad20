#!/bin/sh
# user.sh: the account 10001:10001 that all of Refit's images run as (helm/refit gives the same to its pods).
#
# Written by hand: useradd would put the day of the build into /etc/shadow.
set -eu
echo 'refit:x:10001:10001:Refit:/tmp:/usr/sbin/nologin' >>/etc/passwd
echo 'refit:x:10001:' >>/etc/group
mkdir -p /workspace /models /inbox
chown 10001:10001 /workspace /models /inbox
