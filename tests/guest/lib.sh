# The verbs a guest script may use beside busybox's own and /bin/probe.
#
#   begin NAME                               open a section; what follows is its output
#   end STATUS                               close it, with the status to report
#   section NAME COMMAND...                  both around one command
#   mount9p VERSION PORT DIRECTORY [OPTIONS] mount the host's loopback port over 9P; later options win
#   wait_blocked PID                         wait until the process sleeps in a 9P read; fails if it ends first
#
# A marker is "\n" RS nonce verb arguments uptime "\n". The newline before it belongs to the marker, so that
# output without a final newline stays as it was; the nonce is new in each boot, so that no output imitates it.

HOST=10.0.2.2
read -r NONCE </nonce

mark() {
    read -r mark_uptime mark_idle </proc/uptime
    printf '\n\036%s %s %s\n' "$NONCE" "$*" "$mark_uptime"
}

begin() { mark begin "$1"; }

end() { mark end "$1"; }

section() {
    begin "$1"
    shift
    "$@"
    end $?
}

mount9p() {
    mkdir -p "$3" &&
    mount -t 9p -o "trans=tcp,port=$2,version=$1,msize=524288,uname=root,access=any${4:+,$4}" "$HOST" "$3"
}

# Opening the file goes through 9P calls of its own, so the system call must be the read itself:
# 0 read, 17 pread64, 40 sendfile (busybox's cat).
wait_blocked() {
    while [ -d "/proc/$1" ]; do
        case $(cat "/proc/$1/stat") in *') Z '*) return 1 ;; esac
        case $(cat "/proc/$1/syscall" "/proc/$1/wchan" | tr '\n' ' ') in
            '0 '*' p9_'* | '17 '*' p9_'* | '40 '*' p9_'*) return 0 ;;
        esac
        usleep 10000
    done
    return 1
}
