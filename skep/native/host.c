/*
 * A host directory's files as the export sees them: looked up, told apart and listed.
 *
 * A file is told by FIELDS numbers, out[FIELDS]:
 *
 *	mode nlink uid gid rdev size blksize blocks	as struct stat has them
 *	atime mtime ctime btime				each seconds, nanoseconds
 *	dev ino						where it is
 *	path vers					its qid: path[8] vers[4]
 *
 * path comes from the device and the file handle that the file system would give an NFS server: the inode
 * number and the generation that tells its successive owners apart, whatever type the file is of and without
 * opening it. A handle of one word (ext2, ext3, ext4) is mixed by a bijection: no two files of one such
 * file system share a path. Where there are no handles the inode number and the birth time stand for one.
 * vers comes from what any change of the content moves: mtime, ctime and size.
 *
 * Errors come back as -errno. Sources: openat2(2), statx(2), open_by_handle_at(2), getdents(2).
 */

enum { FIELDS = 20 };
enum { MODE, NLINK, UID, GID, RDEV, SIZE, BLKSIZE, BLOCKS, ATIME, MTIME = 10, CTIME = 12, BTIME = 14, DEV = 16, INO, PATH, VERS };

enum { FD_SYMLINKS_NO = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_EMPTY_PATH };

struct entry {                  /* what getdents64 gives */
	uint64_t ino;
	int64_t off;
	uint16_t reclen;
	uint8_t type;
	char name[];
};

/* What replaces it: path[8] vers[4] mode[4] length[2] name[length]. It is never the longer of the two. */
enum { RECORD = 18 };

static uint64_t
mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9;
	x ^= x >> 27;
	x *= 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static uint64_t
device(const struct statx *s)
{
	return makedev(s->stx_dev_major, s->stx_dev_minor);
}

static uint64_t
ns(const struct statx_timestamp *t)
{
	return (uint64_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

static uint32_t
version(const struct statx *s)
{
	uint64_t h;

	h = mix(ns(&s->stx_mtime));
	h = mix(h ^ ns(&s->stx_ctime));
	return mix(h ^ s->stx_size);
}

/* The qid path of the file that s tells of; 0 when it has gone meanwhile. */
static uint64_t
identity(int dir, const char *name, const struct statx *s)
{
	union {
		struct file_handle h;
		char room[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	} u;
	uint64_t h, word;
	unsigned at, n;
	int mount;

	h = mix(device(s) + 0x9e3779b97f4a7c15);
	u.h.handle_bytes = MAX_HANDLE_SZ;
	if (name_to_handle_at(dir, name, &u.h, &mount, *name ? 0 : AT_EMPTY_PATH) == 0) {
		h = mix(h ^ (uint32_t)u.h.handle_type);
		for (at = 0; at < u.h.handle_bytes; at += n) {
			n = u.h.handle_bytes - at < 8 ? u.h.handle_bytes - at : 8;
			word = 0;
			memcpy(&word, u.h.f_handle + at, n);
			h = mix(h ^ word);
		}
		return h;
	}
	if (errno == ENOENT)
		return 0;
	h = mix(h ^ s->stx_ino);
	return mix(h ^ ns(&s->stx_btime));
}

static void
tell(const struct statx *s, int64_t *out)
{
	out[MODE] = s->stx_mode;
	out[NLINK] = s->stx_nlink;
	out[UID] = s->stx_uid;
	out[GID] = s->stx_gid;
	out[RDEV] = makedev(s->stx_rdev_major, s->stx_rdev_minor);
	out[SIZE] = s->stx_size;
	out[BLKSIZE] = s->stx_blksize;
	out[BLOCKS] = s->stx_blocks;
	out[ATIME] = s->stx_atime.tv_sec;
	out[ATIME + 1] = s->stx_atime.tv_nsec;
	out[MTIME] = s->stx_mtime.tv_sec;
	out[MTIME + 1] = s->stx_mtime.tv_nsec;
	out[CTIME] = s->stx_ctime.tv_sec;
	out[CTIME + 1] = s->stx_ctime.tv_nsec;
	out[BTIME] = s->stx_btime.tv_sec;
	out[BTIME + 1] = s->stx_btime.tv_nsec;
	out[DEV] = device(s);
	out[INO] = s->stx_ino;
	out[VERS] = version(s);
}

/* Tell of the file that fd (O_PATH will do) is; its path only when asked, for it never changes. */
int
host_stat(int fd, int want_path, int64_t *out)
{
	struct statx s;

	if (statx(fd, "", FD_SYMLINKS_NO, STATX_BASIC_STATS | STATX_BTIME, &s) < 0)
		return -errno;
	tell(&s, out);
	out[PATH] = want_path ? identity(fd, "", &s) : 0;
	return 0;
}

/* A new O_PATH descriptor for the single element name in dir, a symbolic link itself; out tells of it. */
int
host_open(int dir, const char *name, int64_t *out)
{
	struct open_how how = {
		.flags = O_PATH | O_NOFOLLOW | O_CLOEXEC,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
	};
	int fd, error;

	/* For one element and O_NOFOLLOW, openat is as safe; some sandboxes answer openat2 with EPERM. */
	fd = syscall(SYS_openat2, dir, name, &how, sizeof how);
	if (fd < 0 && (errno == ENOSYS || errno == EPERM))
		fd = openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	error = host_stat(fd, 1, out);
	if (error < 0) {
		close(fd);
		return error;
	}
	return fd;
}

/* One entry's qid and mode. A name that may be listed but not looked up has only what the directory says. */
static int
identify(int dir, const struct entry *e, uint64_t *path, uint32_t *vers, uint32_t *mode)
{
	struct statx s;

	if (statx(dir, e->name, FD_SYMLINKS_NO, STATX_BASIC_STATS | STATX_BTIME, &s) < 0) {
		*path = mix(e->ino);
		*vers = 0;
		*mode = (uint32_t)e->type << 12;
		return errno != ENOENT;
	}
	*path = identity(dir, e->name, &s);
	*vers = version(&s);
	*mode = s.stx_mode;
	return *path != 0;
}

/* Go on reading the directory dir: records in buf[size], and their bytes; 0 at the end. Names that vanish
 * meanwhile, "." and ".." are left out, so a read may be all gone: *more tells the end. */
int
host_list(int dir, char *buf, unsigned size, int *more)
{
	struct entry *e;
	uint64_t path;
	uint32_t vers, mode;
	uint16_t length, reclen;
	char *in, *out, *end;
	long n;

	n = syscall(SYS_getdents64, dir, buf, size);
	if (n < 0 && errno == ENOENT)
		n = 0;          /* the directory itself was removed */
	if (n < 0)
		return -errno;
	*more = n > 0;
	out = buf;
	for (in = buf, end = buf + n; in < end; in += reclen) {
		e = (struct entry *)in;
		reclen = e->reclen;
		if (strcmp(e->name, ".") == 0 || strcmp(e->name, "..") == 0)
			continue;
		if (!identify(dir, e, &path, &vers, &mode))
			continue;
		length = strlen(e->name);
		memmove(out + RECORD, e->name, length);
		memcpy(out, &path, 8);
		memcpy(out + 8, &vers, 4);
		memcpy(out + 12, &mode, 4);
		memcpy(out + 16, &length, 2);
		out += RECORD + length;
	}
	return out - buf;
}

/* Rename unless newname exists. */
int
host_rename(int dir, const char *name, int newdir, const char *newname)
{
	return renameat2(dir, name, newdir, newname, RENAME_NOREPLACE) < 0 ? -errno : 0;
}

/* Set both times of the file that fd (O_PATH will do) is; nanoseconds may be UTIME_NOW or UTIME_OMIT. */
int
host_utime(int fd, int64_t asec, int64_t ansec, int64_t msec, int64_t mnsec)
{
	struct timespec times[2] = {{asec, ansec}, {msec, mnsec}};
	char place[32];

	snprintf(place, sizeof place, "/proc/self/fd/%d", fd);
	return utimensat(AT_FDCWD, place, times, 0) < 0 ? -errno : 0;
}
