/*
 * The floor: what a 9P server costs that does nothing. It answers 9P2000, 9P2000.u and 9P2000.L on a Unix
 * socket from a table of ready replies, checks nothing, keeps no fids, stores no written byte. One thread,
 * epoll, one sendmsg for all replies to the requests that one recv brought.
 *
 *	floor SOCKET
 */

#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

enum { Tlopen = 12, Tgetattr = 24, Tversion = 100, Tattach = 104, Twalk = 110, Topen = 112, Tread = 116, Twrite = 118, Tclunk = 120, Tstat = 124 };
enum { IN_MAX = 2 << 20, OUT_MAX = 1 << 20, IOV_MAX_ = 512, MSIZE_MAX = 512 * 1024, SMALL = 4096 };

struct conn { int fd; size_t from, to; uint8_t *in; };

/* One at a time is served, so one set of replies is enough. */
static uint8_t out[OUT_MAX];
static struct iovec iov[IOV_MAX_];
static size_t nout;
static int niov;

static uint8_t payload[MSIZE_MAX];
/* The size of each ready reply; its bytes are zero beyond the header, which the client does not mind. */
static const uint16_t reply_size[256] = {
	[Tlopen] = 7 + 17, [Tgetattr] = 160, [Tattach] = 7 + 13, [Topen] = 7 + 17,
	[Tclunk] = 7, [Tstat] = 7 + 2 + 49,
};

static uint32_t get4(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return le32toh(v); }
static void put4(uint8_t *p, uint32_t v) { v = htole32(v); memcpy(p, &v, 4); }

static void
add(void *p, size_t n)
{
	if (niov > 0 && (uint8_t *)iov[niov - 1].iov_base + iov[niov - 1].iov_len == p)
		iov[niov - 1].iov_len += n;
	else
		iov[niov++] = (struct iovec){ p, n };
}

static void
flush(int fd)
{
	struct msghdr m = { .msg_iov = iov, .msg_iovlen = niov };
	ssize_t n;

	while (m.msg_iovlen > 0 && (n = sendmsg(fd, &m, MSG_NOSIGNAL)) >= 0) {
		for (; m.msg_iovlen > 0 && (size_t)n >= m.msg_iov->iov_len; m.msg_iov++, m.msg_iovlen--)
			n -= m.msg_iov->iov_len;
		if (m.msg_iovlen > 0) {
			m.msg_iov->iov_base = (uint8_t *)m.msg_iov->iov_base + n;
			m.msg_iov->iov_len -= n;
		}
	}
	niov = nout = 0;
}

static uint8_t *
reply(const uint8_t *t, size_t size, size_t tail)
{
	uint8_t *r = out + nout;

	put4(r, size + tail);
	r[4] = t[4] + 1;
	memcpy(r + 5, t + 5, 2);
	add(r, size);
	nout += size;
	return r;
}

static void
answer(const uint8_t *t)
{
	uint32_t n;

	switch (t[4]) {
	case Tread:
		n = get4(t + 19);
		put4(reply(t, 11, n) + 7, n);
		add(payload, n);
		break;
	case Twrite:
		memcpy(reply(t, 11, 0) + 7, t + 19, 4);
		break;
	case Twalk:
		memcpy(reply(t, 9 + 13 * t[15], 0) + 7, t + 15, 2);
		break;
	case Tversion:
		n = get4(t + 7) < MSIZE_MAX ? get4(t + 7) : MSIZE_MAX;
		memcpy(reply(t, get4(t), 0) + 7, t + 7, get4(t) - 7);
		put4(out + nout - get4(t) + 7, n);
		break;
	default:
		reply(t, reply_size[t[4]], 0);
	}
}

static void
make_room(struct conn *c)
{
	memmove(c->in, c->in + c->from, c->to - c->from);
	c->to -= c->from;
	c->from = 0;
}

static int
serve(struct conn *c)
{
	ssize_t n;

	if (c->from == c->to)
		c->from = c->to = 0;
	if (c->to > IN_MAX - MSIZE_MAX)
		make_room(c);
	if ((n = recv(c->fd, c->in + c->to, IN_MAX - c->to, 0)) <= 0)
		return -1;
	c->to += n;
	while (c->to - c->from >= 7 && c->to - c->from >= get4(c->in + c->from)) {
		answer(c->in + c->from);
		c->from += get4(c->in + c->from);
		if (niov >= IOV_MAX_ - 2 || nout > OUT_MAX - SMALL)
			flush(c->fd);
	}
	flush(c->fd);
	return 0;
}

static void
hang_up(struct conn *c)
{
	close(c->fd);
	free(c->in);
	free(c);
}

static int
listen_on(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);

	strncpy(a.sun_path, path, sizeof a.sun_path - 1);
	return bind(fd, (struct sockaddr *)&a, sizeof a) < 0 || listen(fd, 1024) < 0 ? -1 : fd;
}

static void
welcome(int poll, int listener)
{
	struct conn *c = calloc(1, sizeof *c);
	struct epoll_event ev = { .events = EPOLLIN, .data.ptr = c };

	c->in = malloc(IN_MAX);
	c->fd = accept(listener, NULL, NULL);
	epoll_ctl(poll, EPOLL_CTL_ADD, c->fd, &ev);
}

int
main(int argc, char **argv)
{
	struct epoll_event ev[64], listening = { .events = EPOLLIN };
	int i, n, listener, poll = epoll_create1(0);

	if (argc != 2 || (listener = listen_on(argv[1])) < 0) {
		perror("floor SOCKET");
		return 1;
	}
	epoll_ctl(poll, EPOLL_CTL_ADD, listener, &listening);
	for (;;)
		for (n = epoll_wait(poll, ev, 64, -1), i = 0; i < n; i++)
			if (ev[i].data.ptr == NULL)
				welcome(poll, listener);
			else if (serve(ev[i].data.ptr) < 0)
				hang_up(ev[i].data.ptr);
}
