/*
 * The load generator: a 9P client that only asks, counts and looks at the clock.
 *
 * load.py hands over sockets that are connected, attached (fid 0 is the root) and, where the operation
 * needs it, have FID_FILE open. Each connection keeps `depth` requests outstanding, one per slot; the tag is the
 * slot's number. Requests are laid out once and sent again and again: one sendmsg answers one recv, and
 * the payload of an Rread is skipped where it lies. Layouts are the manual's (intro(5), and diod's
 * protocol.md for 9P2000.L): size[4] type[1] tag[2] and then
 *
 *	Tread    fid[4] offset[8] count[4]               Rread    count[4] data[count]
 *	Twrite   fid[4] offset[8] count[4] data[count]   Rwrite   count[4]
 *	Tstat    fid[4]                                  Rstat    n[2] stat[n]
 *	Tgetattr fid[4] request_mask[8]                  Rgetattr valid[8] qid[13] ...
 *	Twalk    fid[4] newfid[4] nwname[2] nwname*(s)   Rwalk    nwqid[2] nwqid*(qid[13])
 *	Tclunk   fid[4]                                  Rclunk
 *	                                                 Rerror   ename[s]
 *	                                                 Rlerror  ecode[4]
 *
 * The sockets block, with a timeout of `stall` nanoseconds both ways. One connection waits in recv, more in
 * epoll: a generator that polls for a single socket would count its own system calls.
 */

enum { Rlerror = 7, Tgetattr = 24, Rerror = 107, Twalk = 110, Tread = 116, Twrite = 118, Tclunk = 120, Tstat = 124 };

enum {
	HEADER = 7,             /* size[4] type[1] tag[2] */
	HEAD_MAX = 256,         /* bytes of a reply that are looked at; all but an Rread fit or need no more */
	IN_MAX = 256 * 1024,    /* bytes one recv may bring: a batch of small replies, half of a big one */
	READY_MAX = 256,        /* connections taken from one epoll_wait */
	LINE_EXTRA = 24,        /* room for a serial number in a ctl line */
	FID_FILE = 1,
	FID_WALKED = 16         /* slot n walks to fid 16 + n */
};

typedef struct {
	uint64_t sent_ns;
	uint32_t size;          /* of the request now in the slot's frame */
	int type;               /* of the request now in the slot's frame */
	int failed;
} slot_t;

typedef struct {
	int fd;
	slot_t *slot;
	uint8_t *frame;         /* frame[depth][stride] */
	struct iovec *iov;      /* the requests to go out together, neighbours joined */
	int niov;
	uint8_t *in;
	size_t have;
	size_t skip;            /* bytes of the current reply still to pass; 0: between replies */
	int slot_now;           /* whose reply is passing */
} conn_t;

typedef struct {
	load_t *l;
	conn_t *conn;
	size_t stride;
	uint64_t now_ns, end_ns;
	uint64_t hist[BUCKETS];
	int outstanding;
	int stopping;
} run_t;

static uint64_t
clock_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * UINT64_C(1000000000) + t.tv_nsec;
}

static uint32_t get2(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return le16toh(v); }
static uint32_t get4(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return le32toh(v); }
static void put2(uint8_t *p, uint16_t v) { v = htole16(v); memcpy(p, &v, 2); }
static void put4(uint8_t *p, uint32_t v) { v = htole32(v); memcpy(p, &v, 4); }
static void put8(uint8_t *p, uint64_t v) { v = htole64(v); memcpy(p, &v, 8); }

/* Latency buckets: exact below 32 ns, then 32 to each doubling, so within 3 percent. */
static int
bucket(uint64_t ns)
{
	int shift = ns < 32 ? 0 : 58 - __builtin_clzll(ns);

	return shift * 32 + (int)(ns >> shift);
}

static uint64_t
bucket_ns(int b)
{
	int shift = b < 64 ? 0 : b / 32 - 1;

	return (uint64_t)(b - shift * 32) << shift;
}

static uint64_t
percentile(const uint64_t *hist, double share)
{
	uint64_t total = 0, seen = 0;
	int b;

	for (b = 0; b < BUCKETS; b++)
		total += hist[b];
	for (b = 0; b < BUCKETS; b++) {
		seen += hist[b];
		if (seen > 0 && seen >= total * share)
			return bucket_ns(b);
	}
	return 0;
}

/* The run is over: what was said first stays. */
static int
fail(run_t *r, const char *text)
{
	if (r->l->error[0] == 0)
		snprintf(r->l->error, sizeof r->l->error, "%s", text);
	r->l->errors++;
	return -1;
}

static int
fail_io(run_t *r, const char *verb)
{
	char text[64];

	if (errno == EAGAIN || errno == EWOULDBLOCK) {
		r->l->stalled = 1;
		return -1;
	}
	snprintf(text, sizeof text, "%s: %s", verb, strerror(errno));
	r->l->error_errno = errno;
	return fail(r, text);
}

/* Requests. Each lays its message into the slot's frame and gives its size. */

static uint32_t
lay_fid(uint8_t *p, uint32_t fid)
{
	put4(p + 7, fid);
	return 11;
}

static uint32_t
lay_getattr(uint8_t *p)
{
	put4(p + 7, FID_FILE);
	put8(p + 11, 0x7ff);    /* P9_GETATTR_BASIC, what the kernel's client asks for */
	return 19;
}

static uint32_t
lay_io(uint8_t *p, uint32_t count)
{
	put4(p + 7, FID_FILE);
	put8(p + 11, 0);
	put4(p + 19, count);
	return 23;
}

static uint32_t
lay_walk(uint8_t *p, const load_t *l, int slot)
{
	put4(p + 7, 0);
	put4(p + 11, FID_WALKED + slot);
	memcpy(p + 15, l->body, l->nbody);    /* nwname[2] nwname*(s) */
	return 15 + l->nbody;
}

static uint32_t
lay_line(uint8_t *p, load_t *l)
{
	uint8_t *q = p + 23;

	memcpy(q, l->body, l->nbody);
	q += l->nbody;
	q += sprintf((char *)q, "%llu", (unsigned long long)l->serial++);
	memcpy(q, l->tail, l->ntail);
	q += l->ntail;
	lay_io(p, q - (p + 23));
	return q - p;
}

static uint32_t
lay(run_t *r, uint8_t *p, int type, int slot)
{
	load_t *l = r->l;

	switch (type) {
	case Tread: return lay_io(p, l->count);
	case Twrite: return l->op == LOAD_CTL ? lay_line(p, l) : lay_io(p, l->count) + l->count;
	case Tgetattr: return lay_getattr(p);
	case Twalk: return lay_walk(p, l, slot);
	case Tclunk: return lay_fid(p, FID_WALKED + slot);
	default: return lay_fid(p, FID_FILE);
	}
}

static void
prepare(run_t *r, conn_t *c, int slot, int type)
{
	uint8_t *p = c->frame + slot * r->stride;
	slot_t *s = &c->slot[slot];

	s->type = type;
	s->size = lay(r, p, type, slot);
	put4(p, s->size);
	p[4] = type;
	put2(p + 5, slot);
}

static void
queue(run_t *r, conn_t *c, int slot)
{
	uint8_t *p = c->frame + slot * r->stride;
	struct iovec *last = c->niov > 0 ? &c->iov[c->niov - 1] : NULL;
	slot_t *s = &c->slot[slot];

	if (s->type != Tclunk)    /* a walk and its clunk are one operation */
		s->sent_ns = r->now_ns;
	r->outstanding++;
	if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == p)
		last->iov_len += s->size;
	else
		c->iov[c->niov++] = (struct iovec){ p, s->size };
}

static void
advance(struct msghdr *m, size_t n)
{
	while (m->msg_iovlen > 0 && n >= m->msg_iov->iov_len) {
		n -= m->msg_iov->iov_len;
		m->msg_iov++;
		m->msg_iovlen--;
	}
	if (m->msg_iovlen > 0) {
		m->msg_iov->iov_base = (uint8_t *)m->msg_iov->iov_base + n;
		m->msg_iov->iov_len -= n;
	}
}

static int
flush(run_t *r, conn_t *c)
{
	struct msghdr m = { .msg_iov = c->iov, .msg_iovlen = c->niov };
	ssize_t n;

	c->niov = 0;
	while (m.msg_iovlen > 0) {
		n = sendmsg(c->fd, &m, MSG_NOSIGNAL);
		if (n >= 0)
			advance(&m, n);
		else if (errno != EINTR)
			return fail_io(r, "send");
	}
	return 0;
}

/* Replies. */

static void
refuse(run_t *r, slot_t *s, const uint8_t *p, uint32_t size)
{
	load_t *l = r->l;
	uint32_t n;

	s->failed = 1;
	if (l->errors++ > 0)
		return;
	if (p[4] == Rlerror && size >= 11) {
		l->error_errno = get4(p + 7);
		snprintf(l->error, sizeof l->error, "Rlerror %d: %s", l->error_errno, strerror(l->error_errno));
	} else if (p[4] == Rerror && size >= 9) {
		n = get2(p + 7);
		if (n > HEAD_MAX - 9)
			n = HEAD_MAX - 9;
		snprintf(l->error, sizeof l->error, "Rerror: %.*s", (int)n, (const char *)p + 9);
	} else
		snprintf(l->error, sizeof l->error, "short or foreign reply: type %d, size %u, to type %d", p[4], size, s->type);
}

/* Did the reply do what was asked, whole? A short read or a walk that stopped half-way did not. */
static int
complete(run_t *r, slot_t *s, const uint8_t *p, uint32_t size)
{
	load_t *l = r->l;

	if (p[4] != s->type + 1)
		return 0;
	switch (s->type) {
	case Tread: return size >= 11 && get4(p + 7) == l->count && size == 11 + l->count;
	case Twrite: return size == 11 && get4(p + 7) == (l->op == LOAD_CTL ? s->size - 23 : l->count);
	case Twalk: return size >= 9 && get2(p + 7) == get2((const uint8_t *)l->body);
	case Tgetattr: return size == 160;
	case Tstat: return size > 41;
	default: return size == HEADER;
	}
}

static void
count(run_t *r, slot_t *s)
{
	load_t *l = r->l;

	l->ops++;
	if (l->op == LOAD_READ || l->op == LOAD_WRITE)
		l->bytes += l->count;
	r->hist[bucket(r->now_ns - s->sent_ns)]++;
}

/* A reply has passed whole: count it and put the slot's next request into the batch. */
static void
answered(run_t *r, conn_t *c, int slot)
{
	slot_t *s = &c->slot[slot];
	int walked = s->type == Twalk && !s->failed;

	r->outstanding--;
	if (!s->failed && !walked && !r->stopping)
		count(r, s);
	s->failed = 0;
	if (r->stopping)
		return;
	if (walked)
		prepare(r, c, slot, Tclunk);
	else if (s->type == Tclunk)
		prepare(r, c, slot, Twalk);
	else if (r->l->op == LOAD_CTL)
		prepare(r, c, slot, Twrite);
	queue(r, c, slot);
}

static int
begin(run_t *r, conn_t *c, const uint8_t *p, uint32_t size)
{
	uint32_t tag = get2(p + 5);

	if (size < HEADER || tag >= (uint32_t)r->l->depth)
		return fail(r, "a reply with a size or tag that nobody sent");
	c->skip = size;
	c->slot_now = tag;
	if (!complete(r, &c->slot[tag], p, size))
		refuse(r, &c->slot[tag], p, size);
	return 0;
}

static int
parse(run_t *r, conn_t *c)
{
	uint8_t *p = c->in, *end = c->in + c->have;
	size_t n;

	for (;;) {
		if (c->skip == 0) {
			if (end - p < HEADER)
				break;
			n = get4(p);
			if (end - p < (ptrdiff_t)(n < HEAD_MAX ? n : HEAD_MAX))
				break;
			if (begin(r, c, p, n) < 0)
				return -1;
		}
		n = c->skip < (size_t)(end - p) ? c->skip : (size_t)(end - p);
		p += n;
		c->skip -= n;
		if (c->skip > 0)
			break;
		answered(r, c, c->slot_now);
	}
	c->have = end - p;
	memmove(c->in, p, c->have);
	return 0;
}

static void
stop_when_due(run_t *r)
{
	if (r->stopping || r->now_ns < r->end_ns)
		return;
	r->stopping = 1;
	r->l->elapsed_ns = r->now_ns - (r->end_ns - r->l->duration_ns);
}

static int
serve(run_t *r, conn_t *c)
{
	ssize_t n;

	do
		n = recv(c->fd, c->in + c->have, IN_MAX - c->have, 0);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return fail_io(r, "recv");
	if (n == 0)
		return fail(r, "the server closed the connection");
	c->have += n;
	r->now_ns = clock_ns();
	if (parse(r, c) < 0)
		return -1;
	stop_when_due(r);
	return flush(r, c);
}

static int
wait_ready(run_t *r, int poll, struct epoll_event *ev)
{
	int n;

	do
		n = epoll_wait(poll, ev, READY_MAX, r->l->stall_ns / 1000000);
	while (n < 0 && errno == EINTR);
	if (n == 0)
		r->l->stalled = 1;
	return n;
}

static void
turn_many(run_t *r, int poll)
{
	struct epoll_event ev[READY_MAX];
	int i, n;

	while (r->outstanding > 0) {
		n = wait_ready(r, poll, ev);
		if (n <= 0)
			return;
		for (i = 0; i < n; i++)
			if (serve(r, ev[i].data.ptr) < 0)
				return;
	}
}

static void
turn(run_t *r)
{
	struct epoll_event ev = { .events = EPOLLIN };
	int i, poll;

	if (r->l->nconn == 1) {
		while (r->outstanding > 0 && serve(r, &r->conn[0]) == 0)
			;
		return;
	}
	poll = epoll_create1(EPOLL_CLOEXEC);
	for (i = 0; i < r->l->nconn; i++) {
		ev.data.ptr = &r->conn[i];
		epoll_ctl(poll, EPOLL_CTL_ADD, r->conn[i].fd, &ev);
	}
	turn_many(r, poll);
	close(poll);
}

static const int first_type[] = {
	[LOAD_READ] = Tread, [LOAD_WRITE] = Twrite, [LOAD_STAT] = Tstat,
	[LOAD_GETATTR] = Tgetattr, [LOAD_WALK] = Twalk, [LOAD_CTL] = Twrite,
};

static size_t
stride(const load_t *l)
{
	switch (l->op) {
	case LOAD_READ: return 23;
	case LOAD_WRITE: return 23 + l->count;
	case LOAD_STAT: return 11;
	case LOAD_GETATTR: return 19;
	case LOAD_WALK: return 15 + l->nbody;
	default: return 23 + l->nbody + l->ntail + LINE_EXTRA;
	}
}

static int
open_conn(run_t *r, conn_t *c, int fd)
{
	c->fd = fd;
	c->slot = calloc(r->l->depth, sizeof *c->slot);
	c->frame = calloc(r->l->depth, r->stride);
	c->iov = calloc(r->l->depth, sizeof *c->iov);
	c->in = malloc(IN_MAX);
	return c->slot && c->frame && c->iov && c->in ? 0 : -1;
}

static void
free_conn(conn_t *c)
{
	free(c->slot);
	free(c->frame);
	free(c->iov);
	free(c->in);
}

/* Every slot of the connection is filled and sent in one batch. */
static int
kick(run_t *r, conn_t *c)
{
	int slot;

	for (slot = 0; slot < r->l->depth; slot++) {
		prepare(r, c, slot, first_type[r->l->op]);
		queue(r, c, slot);
	}
	return flush(r, c);
}

static int
start(run_t *r)
{
	int i;

	for (i = 0; i < r->l->nconn; i++)
		if (open_conn(r, &r->conn[i], r->l->fds[i]) < 0)
			return fail(r, "out of memory");
	r->now_ns = clock_ns();
	r->end_ns = r->now_ns + r->l->duration_ns;
	for (i = 0; i < r->l->nconn; i++)
		if (kick(r, &r->conn[i]) < 0)
			return -1;
	return 0;
}

/* Ask for duration_ns, then wait for what is outstanding. Operations answered in time are counted. */
void
load_run(load_t *l)
{
	run_t r = { .l = l, .stride = stride(l) };
	int i;

	r.conn = calloc(l->nconn, sizeof *r.conn);
	if (r.conn == NULL) {
		fail(&r, "out of memory");
		return;
	}
	if (start(&r) == 0)
		turn(&r);
	l->p50_ns = percentile(r.hist, 0.50);
	l->p99_ns = percentile(r.hist, 0.99);
	for (i = 0; i < l->nconn; i++)
		free_conn(&r.conn[i]);
	free(r.conn);
}
