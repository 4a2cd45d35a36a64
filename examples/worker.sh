#!/bin/sh
# A worker in POSIX shell, with nothing but a mounted hive and what every system has: cat, printf, sed, sleep.
#
#     skep mount --way fuse --uname w7 unix:var/hive/worker.sock n/worker &
#     SKEP_MOUNT=n/worker sh examples/worker.sh
#
# It does what the conformance kit asks for, one job at a time; put your own topics into work(). A job is one
# program, started with exec, so that it can be stopped by its process id.
set -u
hive=${SKEP_MOUNT:-n/worker}
pool=${SKEP_POOL:-default}
here=$(mktemp -d) || exit 1
stopping=
trap 'stopping=1' TERM INT

# What is done for each topic. What it prints is the result, what it complains the error; $text is the input as
# JSON has it, escapes and all, and so must be the result; $sha is the artifact's hash.
work() {
    case $topic in
    kit.echo) exec printf '%s' "$text" ;;
    kit.fail) echo "$text" >&2; exit 1 ;;
    kit.slow) exec sleep "$text" ;;
    kit.artifact)
        cat "$hive/artifacts/$sha/data" >"$here/copy" &&
            cat "$here/copy" >"$hive/artifacts/stage/copy" &&
            echo "seal name=copy job=$job" >"$hive/artifacts/ctl" ;;
    *) echo "no such topic here: $topic" >&2; exit 1 ;;
    esac
}

# Says a line to the job's ctl until the hive takes it; fails when the hive is there and refuses it.
say() {
    while ! printf '%s\n' "$1" >"$hive/jobs/$job/ctl"; do
        if cat "$hive/version" >"$here/version"; then
            printf '%s\n' "$1" >"$hive/jobs/$job/ctl"
            return
        fi
        sleep 1
    done
} 2>/dev/null

# Stops the work: the job was cancelled, or is another's.
stop() {
    : >"$here/lost"
    kill "$doing"
} 2>/dev/null

# Tells the hive that this node is there, as long as it is: three missed ones make it suspect.
beat() {
    while kill -0 "$$"; do
        node=$(sed -n 's/^node //p' "$hive/whoami") && echo '{"capacity":1}' >"$hive/nodes/$node/heartbeat"
        sleep 5
    done
} 2>/dev/null

renew() {
    while sleep "$third" && kill -0 "$$"; do
        say "renew fence=$fence" || { stop; return; }
    done
}

watch() {
    until cat "$hive/jobs/$job/wait" >"$here/ended" 2>/dev/null && [ -s "$here/ended" ]; do
        sleep 1
    done
    stop
}

# The fields of the lease, a JSON line. Those before labels are found from the front, the others from the
# back: what somebody wrote into a label or an input cannot be taken for them, for its quotes are escaped.
understand() {
    job=${lease#*\"job\":\"} job=${job%%\"*}
    topic=${lease#*\"topic\":\"} topic=${topic%%\"*}
    fence=${lease#*\"fence\":} fence=${fence%%[!0-9]*}
    third=${lease##*\"lease\":\"} third=${third%%\"*}
    case $third in
    *[0-9]s) third=$((${third%s} / 3)) ;;
    *m) third=$((${third%m} * 20)) ;;
    *) third=20 ;;
    esac
    [ "$third" -gt 0 ] || third=0.5
    sha=
    case $lease in *\"artifact\":\"sha256:*) sha=${lease##*\"artifact\":\"sha256:} sha=${sha%%\"*} ;; esac
    text=
    case $lease in *\"input\":\"*)
        # Up to the first quote that no backslash is before.
        text=$(printf '%s' "${lease##*\"input\":\"}" |
            sed 's/\\\\/\\-/g; s/\\"/\\+/g; s/".*//; s/\\+/\\"/g; s/\\-/\\\\/g') ;;
    esac
}

# One job, from its lease to its end.
do_job() {
    understand
    rm -f "$here/lost"
    say "start fence=$fence" || return
    work >"$here/result" 2>"$here/error" &
    doing=$!
    renew &
    renewing=$!
    watch &
    watching=$!
    before=$stopping
    wait "$doing"
    status=$?
    if [ "$before" != "$stopping" ]; then
        # The signal ended the wait, not the work.
        wait "$doing"
        status=$?
    fi
    kill "$renewing" "$watching" 2>/dev/null
    [ -e "$here/lost" ] && return
    if [ "$status" -eq 0 ]; then
        say "{\"verb\":\"ack\",\"fence\":$fence,\"result\":\"$(cat "$here/result")\"}"
    else
        why=$(head -n 1 "$here/error" | tr -d '\000-\037"\\')
        say "{\"verb\":\"nack\",\"fence\":$fence,\"error\":\"exit status $status: $why\"}"
    fi
}

beat &
beating=$!
trap 'kill "$beating"; rm -rf "$here"' EXIT
while [ -z "$stopping" ]; do
    cat "$hive/pools/$pool/next" >"$here/lease" 2>/dev/null &
    reading=$!
    wait "$reading"
    if [ -n "$stopping" ]; then
        kill "$reading" 2>/dev/null
        wait "$reading"
    fi
    if [ -s "$here/lease" ]; then
        lease=$(cat "$here/lease")
        do_job
    elif [ -z "$stopping" ]; then
        sleep 1 # the hive is away, or gives this node no work now
    fi
done
exit 0
