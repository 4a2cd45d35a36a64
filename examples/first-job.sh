#!/bin/sh
# A first job, as a person would run it: reading and writing files of a mounted hive, nothing else.
#
#     examples/first-job.sh [MOUNT]
#
# Copies this project's own source archive into the hive, has a worker hash it, and compares the result with
# what sha256sum says here. The exit status tells whether they agree.
set -eu

hive=${1:-n/hive}
cd "$(dirname "$0")/.."
if [ ! -e "$hive/version" ]; then
    echo "first-job: $hive is no mounted hive; skep up mounts one at n/hive" >&2
    exit 3
fi

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
if git rev-parse --verify -q HEAD >/dev/null 2>&1; then
    git archive --format=tar -o "$archive" HEAD
else
    tar -cf "$archive" skep
fi
expected=$(sha256sum "$archive")
expected=${expected%% *}
key=source-$(echo "$expected" | cut -c 1-12)

# Shows a command, then runs it.
type_() {
    printf '$ %s\n' "$1"
    eval "$1"
}

type_ "cp $archive $hive/artifacts/stage/source.tar"
type_ "echo seal name=source.tar > $hive/artifacts/ctl"
type_ "cat $hive/artifacts/by-name/source.tar"
type_ "echo submit topic=sha256 input=artifact:source.tar key=$key > $hive/jobs/ctl"
type_ "cat $hive/jobs/by-key/$key"
job=$(cat "$hive/jobs/by-key/$key")
type_ "cat $hive/jobs/$job/wait"
type_ "cat $hive/jobs/$job/result"
printf '$ sha256sum %s\n%s\n' "$archive" "$expected"

if [ "$(cat "$hive/jobs/$job/result")" != "$expected" ]; then
    echo "first-job: the worker's result is not what sha256sum says" >&2
    cat "$hive/jobs/$job/state" "$hive/jobs/$job/error" "$hive/jobs/$job/log" >&2
    exit 1
fi

cat <<END

The worker and sha256sum agree. To try next:
    ls -l $hive/jobs/$job
    cat $hive/jobs/$job/attempts
    echo 'submit topic=sha256 input=hello key=hello' > $hive/jobs/ctl; cat $hive/jobs/by-key/hello
    cat $hive/jobs/ctl                     # every ctl file tells its verbs
    cat $hive/events@0                     # every event so far, then those to come (^C)
    make down; make up                     # everything is still there
END
