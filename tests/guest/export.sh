# What a person does with a mounted directory. $PORT, $VERSION, $OPTIONS and $FAR_BLOCKS are set by the test.
dotl() { [ "$VERSION" = 9p2000.L ]; }
n=/mnt

# Their names alone: ls asks for each file's attributes as well, and has done so once.
names() { (cd "$1" && printf '%s\n' *); }

section mount mount9p "$VERSION" "$PORT" $n "$OPTIONS"
section list ls -lR $n
section cat cat $n/greeting
section statfs stat -f -c 'namelen %l' $n

begin create
echo made in the guest >$n/made && echo and more >>$n/made && cat $n/made
end $?
section create-exclusively sh -c "set -C; echo again >$n/made"
begin append
probe append $n/made 'one ' && probe append $n/made two && tail -c 7 $n/made
end $?
section mkdir mkdir -p $n/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z
section deep-write sh -c "echo bottom >$n/a/b/c/d/e/f/g/h/i/j/k/l/m/n/o/p/q/r/s/t/u/v/w/x/y/z/leaf"
section deep-find find $n/a -name leaf
section rename mv $n/made $n/renamed
begin rename-over
echo newer >$n/newer && mv -f $n/newer $n/greeting-copy && cat $n/greeting-copy
end $?
section rename-folder mv $n/folder $n/moved
section rename-across mv $n/moved/leaf $n/a/b/leaf
begin symlink
ln -s renamed $n/pointer && readlink $n/pointer && head -n 1 $n/pointer
end $?
begin dangling
ln -s nowhere $n/dangling && cat $n/dangling
end $?
begin link
ln $n/renamed $n/second && stat -c %h $n/renamed
end $?
begin chmod
chmod 640 $n/renamed && stat -c %a $n/renamed
end $?
begin chown
chown 12:34 $n/renamed && stat -c %u:%g $n/renamed
end $?
begin truncate
truncate -s 4 $n/renamed && cat $n/renamed && truncate -s 6 $n/renamed && wc -c <$n/renamed
end $?
begin touch
touch -d '2001-02-03 04:05:06' $n/renamed && stat -c %Y $n/renamed
end $?
section unlinked-while-open probe unlinked $n/ghost
begin unlink
rm $n/second && stat -c %h $n/renamed
end $?
section fsync probe fsync $n/synced durable
section mmap probe mmap $n/greeting
begin fifo
mkfifo $n/fifo && stat -c %F $n/fifo
end $?
begin odd-names
mkdir $n/odd-names && cd $n/odd-names && touch 'a b' 'grüße' "it's" -- -dash "$(head -c 255 /dev/zero | tr '\0' x)" && ls
end $?
cd /root

section many names $n/many
begin remove-tree
mkdir -p $n/doomed/p/q/r && touch $n/doomed/1 $n/doomed/p/2 $n/doomed/p/q/3 && rm -r $n/doomed
end $?

# What must fail, and how.
section absent cat $n/absent
section mkdir-again mkdir $n/a
section rmdir-full rmdir $n/a
section not-a-folder ls $n/greeting/x
section name-too-long touch "$n/$(head -c 256 /dev/zero | tr '\0' x)"
section escape cat $n/../../../../../../../mnt/greeting
section escape-link cat $n/outside

if dotl; then
    begin xattr
    probe setxattr $n/renamed user.colour yellow && probe listxattr $n/renamed &&
        probe getxattr $n/renamed user.colour
    end $?
    section xattr-host probe getxattr $n/labelled user.label
    begin xattr-removed
    probe removexattr $n/renamed user.colour && probe getxattr $n/renamed user.colour
    end $?
    section lock-free probe trylock $n/renamed
    section lock-in-guest probe lock $n/renamed probe trylock $n/renamed
    section lock-held-by-host probe trylock $n/locked
fi

section copy-in cp $n/blob /tmp/blob
section hash sha256sum /tmp/blob
section copy-out cp /tmp/blob $n/blob-copy
section remote-hash sh -c "dd if=$n/blob-copy bs=1M 2>/dev/null | sha256sum"

begin interrupt
probe default-int dd if=$n/greeting bs=1048576 skip="$FAR_BLOCKS" count=1 &
wait_blocked $! && kill -INT $! && wait $!
end $?
section after-interrupt cat $n/greeting
section umount umount $n

# Other mounts of the same tree: the page cache's write-back, the smallest messages, a fid for each user.
section cached-mount mount9p "$VERSION" "$PORT" $n "$OPTIONS,cache=loose"
section cached-list ls $n
section cached-write cp /tmp/blob $n/blob-cached
section cached-read sha256sum $n/blob
section cached-umount umount $n
section small-mount mount9p "$VERSION" "$PORT" $n "$OPTIONS,msize=4096"
section small-list names $n/many
section small-write sh -c "head -c 1000000 /tmp/blob >$n/blob-small"
section small-read sh -c "head -c 1000000 $n/blob | cmp - $n/blob-small"
section small-umount umount $n
section users-mount mount9p "$VERSION" "$PORT" $n "$OPTIONS,access=user"
section users-write sh -c "echo by root >$n/by-root"
section users-umount umount $n
