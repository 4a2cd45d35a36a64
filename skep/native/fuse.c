/*
 * libfuse3's low-level API for one event loop: every request becomes an ask_t and one call of
 * fuse_asked, and is answered later by a fuse_answer_ or fuse_reply_ function; an interrupt becomes
 * fuse_interrupted. fuse_asked must not answer before it returns. Nothing here blocks or keeps state.
 *
 * Source: fuse_lowlevel.h of libfuse 3.14.
 */

enum { NS = 1000000000 };

static void *
owner_of(fuse_req_t req)
{
	return ((host_t *)fuse_req_userdata(req))->owner;
}

static ask_t
make(int op, fuse_req_t req, fuse_ino_t node)
{
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	return (ask_t){ .op = op, .req = req, .node = node, .uid = ctx->uid, .gid = ctx->gid, .pid = ctx->pid };
}

static void
on_interrupt(fuse_req_t req, void *data)
{
	(void)data;
	fuse_interrupted(owner_of(req), req);
}

/* After fuse_asked, for an interrupt that came before its request is told at once. */
static void
put(ask_t *a)
{
	fuse_asked(owner_of(a->req), a);
	fuse_req_interrupt_func(a->req, on_interrupt, NULL);
}

static void
put_open(ask_t *a, const struct fuse_file_info *fi)
{
	if (fi != NULL) {
		a->fh = fi->fh;
		a->owner = fi->lock_owner;
	}
	put(a);
}

static void
on_init(void *data, struct fuse_conn_info *conn)
{
	host_t *host = data;

	conn->max_write = conn->max_read = host->unit;
	conn->max_background = 4096;	/* blocked reads must not keep others waiting */
	conn->congestion_threshold = 4096;
	conn->want |= conn->capable & FUSE_CAP_ATOMIC_O_TRUNC;
	conn->want &= ~(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
}

static void
on_forget(fuse_req_t req, fuse_ino_t node, uint64_t count)
{
	ask_t a = { .op = ASK_FORGET, .node = node, .size = count };

	fuse_asked(owner_of(req), &a);
	fuse_reply_none(req);
}

static void
on_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	for (size_t i = 0; i < count; i++) {
		ask_t a = { .op = ASK_FORGET, .node = forgets[i].ino, .size = forgets[i].nlookup };

		fuse_asked(owner_of(req), &a);
	}
	fuse_reply_none(req);
}

static void
on_lookup(fuse_req_t req, fuse_ino_t node, const char *name)
{
	ask_t a = make(ASK_LOOKUP, req, node);

	a.name = name;
	put(&a);
}

static void
on_getattr(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_GETATTR, req, node);

	put_open(&a, fi);
}

static void
on_setattr(fuse_req_t req, fuse_ino_t node, struct stat *st, int valid, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_SETATTR, req, node);

	a.valid = (uint32_t)valid;
	a.mode = st->st_mode;
	a.uid = st->st_uid;
	a.gid = st->st_gid;
	a.size = (uint64_t)st->st_size;
	a.atime_ns = (int64_t)st->st_atim.tv_sec * NS + st->st_atim.tv_nsec;
	a.mtime_ns = (int64_t)st->st_mtim.tv_sec * NS + st->st_mtim.tv_nsec;
	put_open(&a, fi);
}

static void
on_readlink(fuse_req_t req, fuse_ino_t node)
{
	ask_t a = make(ASK_READLINK, req, node);

	put(&a);
}

static void
on_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	ask_t a = make(ASK_MKNOD, req, parent);

	a.name = name;
	a.mode = mode;
	a.rdev = (uint32_t)rdev;
	put(&a);
}

static void
on_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	ask_t a = make(ASK_MKDIR, req, parent);

	a.name = name;
	a.mode = mode;
	put(&a);
}

static void
on_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	ask_t a = make(ASK_UNLINK, req, parent);

	a.name = name;
	put(&a);
}

static void
on_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	ask_t a = make(ASK_RMDIR, req, parent);

	a.name = name;
	put(&a);
}

static void
on_symlink(fuse_req_t req, const char *target, fuse_ino_t parent, const char *name)
{
	ask_t a = make(ASK_SYMLINK, req, parent);

	a.name = name;
	a.other_name = target;
	put(&a);
}

static void
on_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
	  unsigned int flags)
{
	ask_t a = make(ASK_RENAME, req, parent);

	a.name = name;
	a.other = newparent;
	a.other_name = newname;
	a.flags = flags;
	put(&a);
}

static void
on_link(fuse_req_t req, fuse_ino_t node, fuse_ino_t newparent, const char *newname)
{
	ask_t a = make(ASK_LINK, req, node);

	a.other = newparent;
	a.name = newname;
	put(&a);
}

static void
on_open(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_OPEN, req, node);

	a.flags = (uint32_t)fi->flags;
	put(&a);
}

static void
on_read(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_READ, req, node);

	a.size = size;
	a.offset = (uint64_t)offset;
	put_open(&a, fi);
}

static void
on_write(fuse_req_t req, fuse_ino_t node, const char *data, size_t size, off_t offset,
	 struct fuse_file_info *fi)
{
	ask_t a = make(ASK_WRITE, req, node);

	a.data = data;
	a.size = size;
	a.offset = (uint64_t)offset;
	put_open(&a, fi);
}

static void
on_flush(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_FLUSH, req, node);

	put_open(&a, fi);
}

static void
on_release(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_RELEASE, req, node);

	put_open(&a, fi);
}

static void
on_fsync(fuse_req_t req, fuse_ino_t node, int datasync, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_FSYNC, req, node);

	a.flags = (uint32_t)datasync;
	put_open(&a, fi);
}

static void
on_opendir(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_OPENDIR, req, node);

	a.flags = (uint32_t)fi->flags;
	put(&a);
}

static void
on_readdir(fuse_req_t req, fuse_ino_t node, size_t size, off_t offset, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_READDIR, req, node);

	a.size = size;
	a.offset = (uint64_t)offset;
	put_open(&a, fi);
}

static void
on_releasedir(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_RELEASEDIR, req, node);

	put_open(&a, fi);
}

static void
on_statfs(fuse_req_t req, fuse_ino_t node)
{
	ask_t a = make(ASK_STATFS, req, node);

	put(&a);
}

static void
on_setxattr(fuse_req_t req, fuse_ino_t node, const char *name, const char *value, size_t size, int flags)
{
	ask_t a = make(ASK_SETXATTR, req, node);

	a.name = name;
	a.data = value;
	a.size = size;
	a.flags = (uint32_t)flags;
	put(&a);
}

static void
on_getxattr(fuse_req_t req, fuse_ino_t node, const char *name, size_t size)
{
	ask_t a = make(ASK_GETXATTR, req, node);

	a.name = name;
	a.size = size;
	put(&a);
}

static void
on_listxattr(fuse_req_t req, fuse_ino_t node, size_t size)
{
	ask_t a = make(ASK_LISTXATTR, req, node);

	a.size = size;
	put(&a);
}

static void
on_removexattr(fuse_req_t req, fuse_ino_t node, const char *name)
{
	ask_t a = make(ASK_REMOVEXATTR, req, node);

	a.name = name;
	put(&a);
}

static void
on_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	ask_t a = make(ASK_CREATE, req, parent);

	a.name = name;
	a.mode = mode;
	a.flags = (uint32_t)fi->flags;
	put(&a);
}

static void
put_lock(ask_t *a, const struct fuse_file_info *fi, const struct flock *lock)
{
	a->lock_type = (uint32_t)lock->l_type;
	a->start = (uint64_t)lock->l_start;
	a->length = (uint64_t)lock->l_len;
	put_open(a, fi);
}

static void
on_getlk(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi, struct flock *lock)
{
	ask_t a = make(ASK_GETLK, req, node);

	put_lock(&a, fi, lock);
}

static void
on_setlk(fuse_req_t req, fuse_ino_t node, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
	ask_t a = make(ASK_SETLK, req, node);

	a.flags = (uint32_t)sleep;
	put_lock(&a, fi, lock);
}

/* What is missing here answers ENOSYS once, and the kernel asks no more: access, poll, ioctl, lseek,
 * fallocate, copy_file_range (cp then reads and writes), flock (kept among this machine's processes). */
static const struct fuse_lowlevel_ops operations = {
	.init = on_init,
	.lookup = on_lookup,
	.forget = on_forget,
	.forget_multi = on_forget_multi,
	.getattr = on_getattr,
	.setattr = on_setattr,
	.readlink = on_readlink,
	.mknod = on_mknod,
	.mkdir = on_mkdir,
	.unlink = on_unlink,
	.rmdir = on_rmdir,
	.symlink = on_symlink,
	.rename = on_rename,
	.link = on_link,
	.open = on_open,
	.read = on_read,
	.write = on_write,
	.flush = on_flush,
	.release = on_release,
	.fsync = on_fsync,
	.opendir = on_opendir,
	.readdir = on_readdir,
	.releasedir = on_releasedir,
	.statfs = on_statfs,
	.setxattr = on_setxattr,
	.getxattr = on_getxattr,
	.listxattr = on_listxattr,
	.removexattr = on_removexattr,
	.create = on_create,
	.getlk = on_getlk,
	.setlk = on_setlk,
};

/* A session that is not mounted yet; NULL: libfuse has said why on stderr. */
struct fuse_session *
fuse_start(int argc, char **argv, host_t *host)
{
	struct fuse_args args = FUSE_ARGS_INIT(argc, argv);

	return fuse_session_new(&args, &operations, sizeof operations, host);
}

/* Take one request from the kernel, whose descriptor does not block. 1: taken, 0: unmounted or
 * ended, else -errno: -EAGAIN when there is none. */
int
fuse_next(struct fuse_session *se, host_t *host)
{
	struct fuse_buf buf = { .mem = host->buffer };
	int got;

	if (fuse_session_exited(se))
		return 0;
	got = fuse_session_receive_buf(se, &buf);
	host->buffer = buf.mem;
	if (got > 0)
		fuse_session_process_buf(se, &buf);
	return got > 0 ? 1 : got;
}

/* Every request has been answered, or belongs to a mount that is gone. */
void
fuse_end(struct fuse_session *se, host_t *host)
{
	fuse_session_destroy(se);
	free(host->buffer);
	host->buffer = NULL;
}

static struct stat
stat_of(const attr_t *a)
{
	return (struct stat){
		.st_ino = a->ino,
		.st_mode = a->mode,
		.st_nlink = a->nlink,
		.st_uid = a->uid,
		.st_gid = a->gid,
		.st_rdev = a->rdev,
		.st_size = (off_t)a->size,
		.st_blksize = a->blksize,
		.st_blocks = (blkcnt_t)a->blocks,
		.st_atim = { a->atime_ns / NS, a->atime_ns % NS },
		.st_mtim = { a->mtime_ns / NS, a->mtime_ns % NS },
		.st_ctim = { a->ctime_ns / NS, a->ctime_ns % NS },
	};
}

static struct fuse_entry_param
entry_of(uint64_t node, const attr_t *a, double timeout)
{
	return (struct fuse_entry_param){
		.ino = node,
		.attr = stat_of(a),
		.attr_timeout = timeout,
		.entry_timeout = timeout,
	};
}

void
fuse_answer_entry(fuse_req_t req, uint64_t node, const attr_t *a, double timeout)
{
	struct fuse_entry_param e = entry_of(node, a, timeout);

	fuse_reply_entry(req, &e);
}

void
fuse_answer_attr(fuse_req_t req, const attr_t *a, double timeout)
{
	struct stat st = stat_of(a);

	fuse_reply_attr(req, &st, timeout);
}

void
fuse_answer_open(fuse_req_t req, uint64_t fh, int direct)
{
	struct fuse_file_info fi = { .fh = fh, .direct_io = direct };

	fuse_reply_open(req, &fi);
}

void
fuse_answer_create(fuse_req_t req, uint64_t node, const attr_t *a, double timeout, uint64_t fh, int direct)
{
	struct fuse_entry_param e = entry_of(node, a, timeout);
	struct fuse_file_info fi = { .fh = fh, .direct_io = direct };

	fuse_reply_create(req, &e, &fi);
}

/* Put one entry into buf[room]; how many bytes it takes, more than room when it was not put. */
size_t
fuse_put_dirent(char *buf, size_t room, const char *name, uint64_t ino, uint32_t mode, uint64_t next)
{
	struct stat st = { .st_ino = ino, .st_mode = mode };

	/* libfuse does not look at req: the layout is the same in every session. */
	return fuse_add_direntry(NULL, buf, room, name, &st, (off_t)next);
}

void
fuse_answer_statfs(fuse_req_t req, uint32_t bsize, uint64_t blocks, uint64_t bfree, uint64_t bavail,
		   uint64_t files, uint64_t ffree, uint64_t fsid, uint32_t namelen)
{
	struct statvfs st = {
		.f_bsize = bsize,
		.f_frsize = bsize,
		.f_blocks = blocks,
		.f_bfree = bfree,
		.f_bavail = bavail,
		.f_files = files,
		.f_ffree = ffree,
		.f_fsid = fsid,
		.f_namemax = namelen,
	};

	fuse_reply_statfs(req, &st);
}

void
fuse_answer_lock(fuse_req_t req, uint32_t type, uint64_t start, uint64_t length, uint32_t pid)
{
	struct flock lock = {
		.l_type = (short)type,
		.l_whence = SEEK_SET,
		.l_start = (off_t)start,
		.l_len = (off_t)length,
		.l_pid = (pid_t)pid,
	};

	fuse_reply_lock(req, &lock);
}
