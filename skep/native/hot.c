/*
 * The session's inner loop: frames whose answer is known without asking anybody.
 *
 * A table mirrors the session's fids. hot_run answers requests from the front of the input as long as it can
 * and stops at the first it cannot: one that is malformed, new, waited for, or another's work. What stops is
 * answered in Python (fs/session.py), so every answer here must be the one given there; a test compares them.
 *
 * Layouts (little-endian), size[4] type[1] tag[2] before each:
 *	Twalk fid[4] newfid[4] nwname[2] nwname*(wname[s])	Rwalk nwqid[2] nwqid*(qid[13])
 *	Tread fid[4] offset[8] count[4]				Rread count[4] data[count]
 *	Twrite fid[4] offset[8] count[4] data[count]		Rwrite count[4]
 *	Tclunk fid[4]		Rclunk				Tstat fid[4]	Rstat stat[n]
 *	Tgetattr fid[4] request_mask[8]				Rgetattr valid[8] qid[13] ...
 *
 * host.c, which is compiled before this file, has host_stat and host_open.
 */

enum { TSTAT = 124, TGETATTR = 24, TWALK = 110, TREAD = 116, TWRITE = 118, TCLUNK = 120 };
enum { PLAIN = 1, LINUX = 3 };
enum { HEAD_SIZE = 7, QID_SIZE = 13, GETATTR_SIZE = 160, READ_HEAD = 11, WRITE_HEAD = 23 };
enum { SHUT, BYTES, MEMORY, HOSTFILE };		/* what an open fid reads from */
enum { NAMES_MAX = 16, NAME_BYTES = 255, START = 16 };
enum { PROTOS_MAX = 65536 };			/* places remembered per session: bounds what a walker makes us keep */
enum { NOT_HERE = -1 };

struct fidrec {					/* one fid */
	uint32_t fid;
	uint8_t used;
	uint8_t ghost;				/* made here, unknown to Python yet */
	uint8_t kind;
	uint8_t how;				/* 1 reading, 2 writing */
	uint16_t held;				/* calls outstanding on it */
	int32_t proto;				/* its place, or NOT_HERE */
	int32_t parent;				/* of a ghost on the host: the fid walked from */
	int fd;					/* HOSTFILE */
	int node;				/* its O_PATH descriptor on the host, or NOT_HERE; a ghost owns it */
	uint64_t path;				/* its qid's, on the host */
	const uint8_t *data;
	uint64_t length;
	struct hot_memory *memory;
	char *name;				/* of a ghost on the host */
};

struct proto {					/* a place in the tree that many fids may stand for */
	uint8_t *reply;				/* the whole Rgetattr or Rstat, its tag to be filled in */
	uint32_t length;
	uint64_t epoch;				/* when that was true */
};

struct dent {					/* a name known to lead from one place to another */
	int32_t parent;
	int32_t child;
	uint64_t epoch;
	uint8_t qid[QID_SIZE];
	uint8_t length;
	char name[NAME_BYTES];
};

struct hot {
	uint32_t msize;
	int dialect;
	uint32_t fids_max;
	uint64_t calls, walks;			/* how many may be answered before Python is asked again */
	uint32_t size, count, ghosts;
	struct fidrec *fids;
	struct proto *protos;
	uint32_t nprotos, protos_size;
	struct dent **dents;			/* open addressing, a power of two */
	uint32_t ndents, dents_size;
	uint8_t *tags;				/* a bit for each tag outstanding; NULL: none ever was */
};

uint64_t hot_epoch;				/* moves whenever a file told as steady has changed */

static uint16_t
get16(const uint8_t *p)
{
	return p[0] | p[1] << 8;
}

static uint32_t
get32(const uint8_t *p)
{
	uint32_t v;

	memcpy(&v, p, 4);
	return v;
}

static uint64_t
get64(const uint8_t *p)
{
	uint64_t v;

	memcpy(&v, p, 8);
	return v;
}

static void
put32(uint8_t *p, uint32_t v)
{
	memcpy(p, &v, 4);
}

static void
put64(uint8_t *p, uint64_t v)
{
	memcpy(p, &v, 8);
}

static void
head(uint8_t *out, uint32_t size, uint8_t type, const uint8_t *in)
{
	put32(out, size);
	out[4] = type;
	out[5] = in[5];
	out[6] = in[6];
}

/* The table of fids. */

static uint32_t
slot_of(uint32_t fid, uint32_t size)
{
	return fid * 2654435761u & (size - 1);
}

static struct fidrec *
find(struct hot *h, uint32_t fid)
{
	uint32_t i;

	for(i = slot_of(fid, h->size); h->fids[i].used; i = (i + 1) & (h->size - 1))
		if(h->fids[i].fid == fid)
			return &h->fids[i];
	return NULL;
}

static int
grow(struct hot *h)
{
	struct fidrec *old = h->fids, *e;
	uint32_t i, j, n = h->size;

	h->fids = calloc(n * 2, sizeof *old);
	if(h->fids == NULL){
		h->fids = old;
		return -1;
	}
	h->size = n * 2;
	for(i = 0; i < n; i++){
		e = &old[i];
		if(!e->used)
			continue;
		for(j = slot_of(e->fid, h->size); h->fids[j].used; j = (j + 1) & (h->size - 1))
			;
		h->fids[j] = *e;
	}
	free(old);
	return 0;
}

static struct fidrec *
put(struct hot *h, uint32_t fid)
{
	uint32_t i;

	if(h->count * 4 >= h->size * 3 && grow(h) < 0)
		return NULL;
	for(i = slot_of(fid, h->size); h->fids[i].used; i = (i + 1) & (h->size - 1))
		;
	memset(&h->fids[i], 0, sizeof h->fids[i]);
	h->fids[i].fid = fid;
	h->fids[i].used = 1;
	h->fids[i].proto = h->fids[i].node = h->fids[i].fd = h->fids[i].parent = NOT_HERE;
	h->count++;
	return &h->fids[i];
}

static void
forget(struct hot *h, struct fidrec *e)
{
	uint32_t i = e - h->fids, j = i, k;

	if(e->ghost){
		h->ghosts--;
		if(e->node >= 0)
			close(e->node);
		free(e->name);
	}
	h->count--;
	for(;;){				/* close the gap: linear probing without tombstones */
		h->fids[i].used = 0;
		do{
			j = (j + 1) & (h->size - 1);
			if(!h->fids[j].used)
				return;
			k = slot_of(h->fids[j].fid, h->size);
		}while(i <= j ? (i < k && k <= j) : (i < k || k <= j));
		h->fids[i] = h->fids[j];
		i = j;
	}
}

/* The names that are known. */

static uint32_t
hash_name(int32_t parent, const uint8_t *name, uint32_t n)
{
	uint32_t h = 2166136261u ^ (uint32_t)parent * 2654435761u, i;

	for(i = 0; i < n; i++)
		h = (h ^ name[i]) * 16777619u;
	return h ^ h >> 15;
}

static struct dent **
dent_slot(struct hot *h, int32_t parent, const uint8_t *name, uint32_t n)
{
	uint32_t i = hash_name(parent, name, n) & (h->dents_size - 1);
	struct dent *d;

	while((d = h->dents[i]) != NULL){
		if(d->parent == parent && d->length == n && memcmp(d->name, name, n) == 0)
			break;
		i = (i + 1) & (h->dents_size - 1);
	}
	return &h->dents[i];
}

static struct dent *
lookup(struct hot *h, int32_t parent, const uint8_t *name, uint32_t n)
{
	struct dent *d;

	if(parent < 0 || h->ndents == 0 || n > NAME_BYTES)
		return NULL;
	d = *dent_slot(h, parent, name, n);
	return d != NULL && d->epoch == hot_epoch ? d : NULL;
}

static int
grow_dents(struct hot *h)
{
	struct dent **old = h->dents;
	uint32_t i, n = h->dents_size;

	h->dents_size = n ? n * 2 : START;
	h->dents = calloc(h->dents_size, sizeof *h->dents);
	if(h->dents == NULL){
		h->dents = old;
		h->dents_size = n;
		return -1;
	}
	for(i = 0; i < n; i++)
		if(old[i] != NULL)
			*dent_slot(h, old[i]->parent, (uint8_t *)old[i]->name, old[i]->length) = old[i];
	free(old);
	return 0;
}

/* The messages. Each gives the length of its answer, 0: not here. `room` is what the answer may take. */

static int
busy(struct hot *h, uint16_t tag)
{
	return h->tags != NULL && h->tags[tag >> 3] >> (tag & 7) & 1;
}

static struct fidrec *
idle(struct hot *h, uint32_t fid)
{
	struct fidrec *e = find(h, fid);

	return e != NULL && !e->held ? e : NULL;
}

static void
host_qid(uint8_t *out, const int64_t *told, uint64_t path)
{
	uint32_t format = told[MODE] & S_IFMT;

	out[0] = format == S_IFDIR ? 0x80 : format == S_IFLNK ? 0x02 : 0;
	put32(out + 1, told[VERS]);
	put64(out + 5, path);
}

static void
host_time(uint8_t *out, const int64_t *told)
{
	put64(out, told[0] < 0 ? 0 : told[0]);	/* 9P has no time before 1970 */
	put64(out + 8, told[0] < 0 ? 0 : told[1]);
}

static uint64_t
kernel_dev(uint64_t rdev)
{
	uint64_t maj = major(rdev), min = minor(rdev);

	return (min & 0xFF) | maj << 8 | (min & ~0xFFull) << 12;
}

static uint32_t
host_getattr(struct fidrec *e, const uint8_t *in, uint8_t *out, uint64_t room)
{
	int64_t told[FIELDS];
	uint8_t *p = out + HEAD_SIZE;

	if(room < GETATTR_SIZE || host_stat(e->node, 0, told) < 0)
		return 0;
	head(out, GETATTR_SIZE, TGETATTR + 1, in);
	put64(p, 0x7FF);
	host_qid(p + 8, told, e->path);
	p += 21;
	put32(p, told[MODE]);
	put32(p + 4, told[UID]);
	put32(p + 8, told[GID]);
	put64(p + 12, told[NLINK]);
	put64(p + 20, kernel_dev(told[RDEV]));
	put64(p + 28, told[SIZE]);
	put64(p + 36, told[BLKSIZE]);
	put64(p + 44, told[BLOCKS]);
	host_time(p + 52, told + ATIME);
	host_time(p + 68, told + MTIME);
	host_time(p + 84, told + CTIME);
	host_time(p + 100, told + BTIME);
	put64(p + 116, 0);
	put64(p + 124, 0);
	return GETATTR_SIZE;
}

static uint32_t
run_stat(struct hot *h, const uint8_t *in, uint32_t size, uint8_t *out, uint64_t room)
{
	struct fidrec *e;
	struct proto *p;

	if(size != (in[4] == TGETATTR ? 19 : 11) || (in[4] == TGETATTR) != (h->dialect == LINUX))
		return 0;
	e = idle(h, get32(in + 7));
	if(e == NULL)
		return 0;
	if(e->node >= 0 && in[4] == TGETATTR)
		return h->msize < GETATTR_SIZE ? 0 : host_getattr(e, in, out, room);
	if(e->proto < 0)
		return 0;
	p = &h->protos[e->proto];
	if(p->reply == NULL || p->epoch != hot_epoch || room < p->length)
		return 0;
	memcpy(out, p->reply, p->length);
	out[5] = in[5];
	out[6] = in[6];
	return p->length;
}

static uint32_t
run_read(struct hot *h, const uint8_t *in, uint32_t size, uint8_t *out, uint64_t room)
{
	struct fidrec *e;
	uint64_t offset, length;
	uint32_t count;
	const uint8_t *data;
	ssize_t n;

	if(size != 23 || (e = idle(h, get32(in + 7))) == NULL || e->kind == SHUT || !(e->how & 1))
		return 0;
	offset = get64(in + 11);
	count = get32(in + 19);
	if(count > h->msize - READ_HEAD)
		count = h->msize - READ_HEAD;
	if(e->kind == HOSTFILE){
		if(room < (uint64_t)READ_HEAD + count || offset > INT64_MAX)
			return 0;
		n = pread(e->fd, out + READ_HEAD, count, offset);
		if(n < 0)
			return 0;
		count = n;
	}else{
		data = e->kind == MEMORY ? e->memory->data : e->data;
		length = e->kind == MEMORY ? e->memory->length : e->length;
		if(offset >= length)
			count = 0;
		else if(count > length - offset)
			count = length - offset;
		if(room < (uint64_t)READ_HEAD + count)
			return 0;
		if(count > 0)
			memcpy(out + READ_HEAD, data + offset, count);
	}
	head(out, READ_HEAD + count, TREAD + 1, in);
	put32(out + HEAD_SIZE, count);
	return READ_HEAD + count;
}

static void
memory_changed(struct hot_memory *m)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME_COARSE, &now);
	m->mtime_ns = now.tv_sec * 1000000000ll + now.tv_nsec;
	m->version++;
}

static uint32_t
run_write(struct hot *h, const uint8_t *in, uint32_t size, uint8_t *out, uint64_t room)
{
	struct fidrec *e;
	uint64_t offset;
	uint32_t count;
	ssize_t n;

	if(size < WRITE_HEAD || room < READ_HEAD)
		return 0;
	e = idle(h, get32(in + 7));
	offset = get64(in + 11);
	count = get32(in + 19);
	if(e == NULL || !(e->how & 2) || size - WRITE_HEAD != count || offset > INT64_MAX)
		return 0;
	if(e->kind == MEMORY){
		if(count == 0 || offset > e->memory->length || count > e->memory->length - offset)
			return 0;
		memcpy(e->memory->data + offset, in + WRITE_HEAD, count);
		memory_changed(e->memory);
	}else if(e->kind == HOSTFILE){
		n = pwrite(e->fd, in + WRITE_HEAD, count, offset);
		if(n < 0)
			return 0;
		count = n;
	}else
		return 0;
	head(out, 11, TWRITE + 1, in);
	put32(out + HEAD_SIZE, count);
	return 11;
}

/* A ghost of the entry at fid, moved to a place; NULL when there is no room. `e` may have moved after this. */
static struct fidrec *
ghost(struct hot *h, uint32_t newfid, int32_t proto)
{
	struct fidrec *g;

	if(h->count >= h->fids_max || (g = put(h, newfid)) == NULL)
		return NULL;
	g->ghost = 1;
	g->proto = proto;
	h->ghosts++;
	return g;
}

static uint32_t
host_walk(struct hot *h, struct fidrec *e, const uint8_t *in, const uint8_t *name, uint32_t n, uint8_t *out)
{
	char text[NAME_BYTES + 1], *copy;
	int64_t told[FIELDS];
	uint32_t from = e->fid;
	struct fidrec *g;
	int fd;

	if(n == 0 || n > NAME_BYTES || memchr(name, '/', n) || memchr(name, 0, n) || name[0] == '.')
		return 0;			/* ".", "..", and whatever begins like them */
	memcpy(text, name, n);
	text[n] = 0;
	fd = host_open(e->node, text, told);
	if(fd < 0)
		return 0;
	copy = strdup(text);
	g = copy == NULL ? NULL : ghost(h, get32(in + 11), NOT_HERE);
	if(g == NULL){
		close(fd);
		free(copy);
		return 0;
	}
	g->node = fd;
	g->path = told[PATH];
	g->parent = from;
	g->name = copy;
	head(out, 22, TWALK + 1, in);
	out[7] = 1;
	out[8] = 0;
	host_qid(out + 9, told, told[PATH]);
	return 22;
}

static uint32_t
run_walk(struct hot *h, const uint8_t *in, uint32_t size, uint8_t *out, uint64_t room)
{
	uint32_t i, n, names, newfid, at = 17;
	struct fidrec *e;
	struct dent *d;
	int32_t place;

	if(size < 17 || room < 9 + NAMES_MAX * QID_SIZE)
		return 0;
	names = get16(in + 15);
	newfid = get32(in + 11);
	e = idle(h, get32(in + 7));
	if(e == NULL || names > NAMES_MAX || 9 + names * QID_SIZE > h->msize || newfid == 0xFFFFFFFF || find(h, newfid))
		return 0;
	if(e->node >= 0){
		if(names != 1 || e->ghost || size < 19 || size != 19u + get16(in + 17))
			return 0;
		return host_walk(h, e, in, in + 19, get16(in + 17), out);
	}
	place = e->proto;
	if(place < 0)
		return 0;
	for(i = 0; i < names; i++){
		if(at + 2 > size || at + 2 + (n = get16(in + at)) > size)
			return 0;
		d = lookup(h, place, in + at + 2, n);
		if(d == NULL)
			return 0;
		memcpy(out + 9 + i * QID_SIZE, d->qid, QID_SIZE);
		place = d->child;
		at += 2 + n;
	}
	if(at != size || ghost(h, newfid, place) == NULL)
		return 0;
	head(out, 9 + names * QID_SIZE, TWALK + 1, in);
	out[7] = names;
	out[8] = 0;
	return 9 + names * QID_SIZE;
}

static uint32_t
run_clunk(struct hot *h, const uint8_t *in, uint32_t size, uint8_t *out, uint64_t room)
{
	struct fidrec *e;

	if(size != 11 || room < HEAD_SIZE)
		return 0;
	e = idle(h, get32(in + 7));
	if(e == NULL || !e->ghost)
		return 0;
	forget(h, e);
	head(out, HEAD_SIZE, TCLUNK + 1, in);
	return HEAD_SIZE;
}

/* Answer from in[n] into out[room]; the bytes answered with. *used: how much of the input is done with. */
uint64_t
hot_run(struct hot *h, const uint8_t *in, uint64_t n, uint8_t *out, uint64_t room, uint64_t *used)
{
	uint64_t at = 0, made = 0;
	uint32_t size, answer;

	while(h->calls > 0 && n - at >= HEAD_SIZE){
		size = get32(in + at);
		if(size < HEAD_SIZE || size > h->msize || size > n - at || busy(h, get16(in + at + 5)))
			break;
		switch(in[at + 4]){
		case TREAD:
			answer = run_read(h, in + at, size, out + made, room - made);
			break;
		case TWRITE:
			answer = run_write(h, in + at, size, out + made, room - made);
			break;
		case TWALK:
			answer = h->walks == 0 ? 0 : run_walk(h, in + at, size, out + made, room - made);
			h->walks -= answer != 0;
			break;
		case TCLUNK:
			answer = run_clunk(h, in + at, size, out + made, room - made);
			break;
		case TSTAT:
		case TGETATTR:
			answer = run_stat(h, in + at, size, out + made, room - made);
			break;
		default:
			answer = 0;
		}
		if(answer == 0)
			break;
		h->calls--;
		at += size;
		made += answer;
	}
	*used = at;
	return made;
}

/* What Python tells. */

struct hot *
hot_new(uint32_t fids_max)
{
	struct hot *h = calloc(1, sizeof *h);

	if(h == NULL)
		return NULL;
	h->fids_max = fids_max;
	h->calls = h->walks = UINT64_MAX;
	h->size = START;
	h->fids = calloc(START, sizeof *h->fids);
	if(h->fids == NULL){
		free(h);
		return NULL;
	}
	return h;
}

/* How many calls, and walks among them, may be answered from now on. */
void
hot_budget(struct hot *h, uint64_t calls, uint64_t walks)
{
	h->calls = calls;
	h->walks = walks;
}

/* What is left of that. */
void
hot_left(struct hot *h, uint64_t *calls, uint64_t *walks)
{
	*calls = h->calls;
	*walks = h->walks;
}

void
hot_fids_max(struct hot *h, uint32_t fids_max)
{
	h->fids_max = fids_max;
}

/* No fid, no place, no tag; the version agreed on. msize 0: none. */
void
hot_reset(struct hot *h, uint32_t msize, int dialect)
{
	uint32_t i;

	for(i = 0; i < h->size; i++)
		if(h->fids[i].used && h->fids[i].ghost){
			if(h->fids[i].node >= 0)
				close(h->fids[i].node);
			free(h->fids[i].name);
		}
	memset(h->fids, 0, h->size * sizeof *h->fids);
	for(i = 0; i < h->nprotos; i++)
		free(h->protos[i].reply);
	for(i = 0; i < h->dents_size; i++)
		free(h->dents[i]);
	free(h->protos);
	free(h->dents);
	free(h->tags);
	h->protos = NULL;
	h->dents = NULL;
	h->tags = NULL;
	h->nprotos = h->protos_size = h->ndents = h->dents_size = h->count = h->ghosts = 0;
	h->msize = msize;
	h->dialect = dialect;
}

void
hot_free(struct hot *h)
{
	hot_reset(h, 0, 0);
	free(h->fids);
	free(h);
}

/* A new place; its number, or NOT_HERE when there are PROTOS_MAX. */
int32_t
hot_place(struct hot *h)
{
	struct proto *grown;
	uint32_t size = h->protos_size ? h->protos_size * 2 : START;

	if(h->nprotos >= PROTOS_MAX)
		return NOT_HERE;
	if(h->nprotos == h->protos_size){
		grown = realloc(h->protos, size * sizeof *grown);
		if(grown == NULL)
			return NOT_HERE;
		h->protos = grown;
		h->protos_size = size;
	}
	memset(&h->protos[h->nprotos], 0, sizeof *h->protos);
	return h->nprotos++;
}

/* The name leads from parent to child, whose qid is qid[13]; true until the epoch moves. */
void
hot_name(struct hot *h, int32_t parent, int32_t child, const uint8_t *name, uint32_t n, const uint8_t *qid)
{
	struct dent **slot, *d;

	if(n > NAME_BYTES || parent < 0 || child < 0)
		return;
	if((h->ndents + 1) * 4 >= h->dents_size * 3 && grow_dents(h) < 0)
		return;
	slot = dent_slot(h, parent, name, n);
	d = *slot;
	if(d == NULL){
		d = calloc(1, sizeof *d);
		if(d == NULL)
			return;
		memcpy(d->name, name, n);
		d->length = n;
		d->parent = parent;
		*slot = d;
		h->ndents++;
	}
	d->child = child;
	d->epoch = hot_epoch;
	memcpy(d->qid, qid, QID_SIZE);
}

/* What Tgetattr or Tstat is answered with at a place; true until the epoch moves. */
void
hot_reply(struct hot *h, int32_t place, const uint8_t *reply, uint32_t n)
{
	struct proto *p = &h->protos[place];
	uint8_t *copy = malloc(n);

	if(copy == NULL)
		return;
	memcpy(copy, reply, n);
	free(p->reply);
	p->reply = copy;
	p->length = n;
	p->epoch = hot_epoch;
}

/* A fid that Python has, closed, at a place or NOT_HERE; node: its O_PATH descriptor on the host, or NOT_HERE. */
int
hot_fid(struct hot *h, uint32_t fid, int32_t place, int node, uint64_t path)
{
	struct fidrec *e = find(h, fid);
	uint16_t held = 0;

	if(e != NULL){
		held = e->held;
		forget(h, e);
	}
	e = put(h, fid);
	if(e == NULL)
		return -1;
	e->held = held;
	e->proto = place;
	e->node = node;
	e->path = path;
	return 0;
}

static struct fidrec *
opened(struct hot *h, uint32_t fid, int kind, int how)
{
	struct fidrec *e = find(h, fid);

	if(e != NULL){
		e->kind = kind;
		e->how = how;
	}
	return e;
}

void
hot_open_bytes(struct hot *h, uint32_t fid, const uint8_t *data, uint64_t n)
{
	struct fidrec *e = opened(h, fid, BYTES, 1);

	if(e != NULL){
		e->data = data;
		e->length = n;
	}
}

void
hot_open_memory(struct hot *h, uint32_t fid, struct hot_memory *m, int how)
{
	struct fidrec *e = opened(h, fid, MEMORY, how);

	if(e != NULL)
		e->memory = m;
}

void
hot_open_host(struct hot *h, uint32_t fid, int fd, int how)
{
	struct fidrec *e = opened(h, fid, HOSTFILE, how);

	if(e != NULL)
		e->fd = fd;
}

void
hot_drop(struct hot *h, uint32_t fid)
{
	struct fidrec *e = find(h, fid);

	if(e != NULL && !e->held)
		forget(h, e);
	else if(e != NULL){
		e->kind = SHUT;
		e->proto = e->node = NOT_HERE;
	}
}

/* A call is outstanding (step 1) or no longer (-1) on a fid, which need not be known. */
void
hot_hold_fid(struct hot *h, uint32_t fid, int step)
{
	struct fidrec *e = find(h, fid);

	if(e == NULL && step > 0)
		e = put(h, fid);
	if(e != NULL)
		e->held += step;
}

/* A fid that was only held, for a call that did not bind it. */
void
hot_unheld(struct hot *h, uint32_t fid)
{
	struct fidrec *e = find(h, fid);

	if(e != NULL && !e->held)
		forget(h, e);
}

int
hot_hold_tag(struct hot *h, uint16_t tag, int on)
{
	if(h->tags == NULL && (h->tags = calloc(1, 8192)) == NULL)
		return -1;
	if(on)
		h->tags[tag >> 3] |= 1 << (tag & 7);
	else
		h->tags[tag >> 3] &= ~(1 << (tag & 7));
	return 0;
}

uint32_t
hot_ghosts(struct hot *h)
{
	return h->ghosts;
}

/* The next ghost, from slot *at on, made Python's: fid, place, parent, node[, path, name]. 0: no more. */
int
hot_spill(struct hot *h, uint32_t *at, struct hot_ghost *out)
{
	struct fidrec *e;

	for(; *at < h->size; ++*at){
		e = &h->fids[*at];
		if(!e->used || !e->ghost)
			continue;
		out->fid = e->fid;
		out->place = e->proto;
		out->parent = e->parent;
		out->node = e->node;
		out->path = e->path;
		out->name[0] = 0;
		if(e->name != NULL)
			strcpy(out->name, e->name);
		free(e->name);
		e->name = NULL;
		e->ghost = 0;
		h->ghosts--;
		return 1;
	}
	return 0;
}
