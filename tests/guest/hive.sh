# What a person does with a mounted hive. $PORT, $VERSION, $TOPIC (a worker serves it), $IDLE_TOPIC (nobody
# does) and /root/blob are set by the test.
n=/mnt

section mount mount9p "$VERSION" "$PORT" $n
section list ls -lR $n
section version cat $n/version
section usage cat $n/jobs/ctl
section absent cat $n/jobs/absent/state
begin refused
echo nonsense >$n/jobs/ctl
end $?

section stage cp /root/blob $n/artifacts/stage/blob
begin seal
echo seal name=blob >$n/artifacts/ctl
end $?
begin fetch
hash=$(cat $n/artifacts/by-name/blob) && cp "$n/artifacts/$hash/data" /tmp/blob && sha256sum /tmp/blob
end $?

begin submit
echo "submit topic=$TOPIC input=artifact:blob key=guest-$VERSION" >$n/jobs/ctl
end $?
begin id
id=$(cat "$n/jobs/by-key/guest-$VERSION") && echo "$id"
end $?
section wait cat "$n/jobs/$id/wait"
section result cat "$n/jobs/$id/result"

begin interrupt
echo "submit topic=$IDLE_TOPIC input=x key=idle-$VERSION" >$n/jobs/ctl &&
    idle=$(cat "$n/jobs/by-key/idle-$VERSION") || exit
probe default-int cat "$n/jobs/$idle/wait" &
wait_blocked $! && kill -INT $! && wait $!
end $?
section still-queued cat "$n/jobs/$idle/state"
begin cancel-while-waiting
probe default-int cat "$n/jobs/$idle/wait" &
wait_blocked $! && echo cancel >"$n/jobs/$idle/ctl" && wait $!
end $?
begin follow
probe follow $n/events@0 1 | head -n 1
end $?
section umount umount $n
