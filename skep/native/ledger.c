/*
 * A ledger's rows verified as fast as SQLite reads them: one thread reads, the caller's hashes.
 *
 * A row is seq, body, leaf and, where a commit ends with it, since and root. Batches follow on a tree as
 * trace_grow tells; one of which any row does not, or is not what was expected in any way, ends it: what is
 * wrong with it is for others to say. SQLite is the one that Python has loaded already, for two of them in one
 * process drop each other's locks; where there is none, nothing is verified.
 * Source: sqlite.org/c3ref; sqlite.org/howtocorrupt.html, 2.2.1.
 */

enum { ROWS = 512, SQLITE_ROW = 100, SQLITE_INTEGER = 1, SQLITE_BLOB = 4, SQLITE_NULL = 5 };
enum { SQLITE_OPEN = 0x01 | 0x40 | 0x8000 };    /* READONLY, URI, NOMUTEX */

struct rows {
	uint64_t n, m;                  /* rows, commits */
	int last;                       /* none come after them */
	uint8_t *data;                  /* the bodies */
	uint64_t room, ends[ROWS];
	uint8_t leaves[ROWS * HASH];
	uint64_t sizes[ROWS], sinces[ROWS];
	uint8_t roots[ROWS * HASH];
};

struct reader {
	void *db, *select;
	uint64_t seq;                   /* the last one read */
	int numbers;                    /* bodies say their numbers */
	int stop;                       /* nobody looks at more */
	struct rows *rows;              /* rows[2], filled in turn */
	sem_t full, empty;              /* how many of them are */
};

static struct {
	int (*open)(const char *, void **, int, const char *);
	int (*close)(void *);
	int (*prepare)(void *, const char *, int, void **, const char **);
	int (*bind)(void *, int, long long);
	int (*step)(void *);
	int (*finalize)(void *);
	int (*type)(void *, int);
	long long (*integer)(void *, int);
	const void *(*blob)(void *, int);
	int (*size)(void *, int);
} sqlite;

/* Find SQLite, where it is loaded; whether it is. */
int
ledger_begin(void)
{
	void *self;

	if ((self = dlopen("libsqlite3.so.0", RTLD_NOW | RTLD_NOLOAD)) == NULL)
		return 0;
	*(void **)&sqlite.open = dlsym(self, "sqlite3_open_v2");
	*(void **)&sqlite.close = dlsym(self, "sqlite3_close");
	*(void **)&sqlite.prepare = dlsym(self, "sqlite3_prepare_v2");
	*(void **)&sqlite.bind = dlsym(self, "sqlite3_bind_int64");
	*(void **)&sqlite.step = dlsym(self, "sqlite3_step");
	*(void **)&sqlite.finalize = dlsym(self, "sqlite3_finalize");
	*(void **)&sqlite.type = dlsym(self, "sqlite3_column_type");
	*(void **)&sqlite.integer = dlsym(self, "sqlite3_column_int64");
	*(void **)&sqlite.blob = dlsym(self, "sqlite3_column_blob");
	*(void **)&sqlite.size = dlsym(self, "sqlite3_column_bytes");
	return 1;
}

/* Whether what ends at *at is `text`, which is then passed; so the others pass digits and a string. */
static int
back(const uint8_t *from, const uint8_t **at, const char *text)
{
	size_t n = strlen(text);

	if ((size_t)(*at - from) < n || memcmp(*at - n, text, n) != 0)
		return 0;
	*at -= n;
	return 1;
}

static int
back_digits(const uint8_t *from, const uint8_t **at)
{
	const uint8_t *end = *at;

	while (*at > from && (*at)[-1] >= '0' && (*at)[-1] <= '9')
		--*at;
	return *at < end;
}

static int
back_string(const uint8_t *from, const uint8_t **at)
{
	if (!back(from, at, "\""))
		return 0;
	while (*at > from && (*at)[-1] != '"' && (*at)[-1] != '\\')
		--*at;
	return back(from, at, "\"");
}

/*
 * Whether an entry says that its number is seq, in canonical JSON, where only strings without a backslash and
 * numbers stand behind it: ,"seq":N,"tenant":"","time":N,["token":"",]"trace":"","v":N}
 */
static int
says(const uint8_t *from, const uint8_t *at, uint64_t seq)
{
	char text[32];

	if (!back(from, &at, "}") || !back_digits(from, &at) || !back(from, &at, ",\"v\":"))
		return 0;
	if (!back_string(from, &at) || !back(from, &at, ",\"trace\":"))
		return 0;
	if (back_string(from, &at) && !back(from, &at, ",\"token\":"))
		return 0;
	if (!back_digits(from, &at) || !back(from, &at, ",\"time\":"))
		return 0;
	snprintf(text, sizeof text, ",\"seq\":%llu", (unsigned long long)seq);
	return back_string(from, &at) && back(from, &at, ",\"tenant\":") && back(from, &at, text);
}

/* Take the row that SQLite stands at; whether it is as rows should be. */
static int
take_row(struct reader *r, struct rows *b)
{
	void *row = r->select;
	uint64_t from = b->n == 0 ? 0 : b->ends[b->n - 1], n;
	uint8_t *data;

	if (sqlite.integer(row, 0) != (long long)++r->seq || sqlite.type(row, 1) != SQLITE_BLOB)
		return 0;
	n = sqlite.size(row, 1);
	if (from + n > b->room) {
		if ((data = realloc(b->data, 2 * (from + n))) == NULL)
			return 0;
		b->data = data;
		b->room = 2 * (from + n);
	}
	if (n > 0)
		memcpy(b->data + from, sqlite.blob(row, 1), n);
	if (r->numbers && !says(b->data + from, b->data + from + n, r->seq))
		return 0;
	if (sqlite.type(row, 2) != SQLITE_BLOB || sqlite.size(row, 2) != HASH)
		return 0;
	memcpy(b->leaves + b->n * HASH, sqlite.blob(row, 2), HASH);
	b->ends[b->n++] = from + n;
	if (sqlite.type(row, 3) == SQLITE_NULL)
		return sqlite.type(row, 4) == SQLITE_NULL;
	if (sqlite.type(row, 3) != SQLITE_INTEGER || sqlite.type(row, 4) != SQLITE_BLOB || sqlite.size(row, 4) != HASH)
		return 0;
	b->sizes[b->m] = r->seq;
	b->sinces[b->m] = sqlite.integer(row, 3);
	memcpy(b->roots + b->m++ * HASH, sqlite.blob(row, 4), HASH);
	return 1;
}

/* Fill b; what a row that is not as it should be stands in, is thrown away. */
static void
fill(struct reader *r, struct rows *b)
{
	int found = SQLITE_ROW;

	b->n = b->m = 0;
	while (b->n < ROWS && (found = sqlite.step(r->select)) == SQLITE_ROW)
		if (!take_row(r, b)) {
			b->n = 0;
			b->last = 1;
			return;
		}
	b->last = found != SQLITE_ROW;
}

static void *
read_all(void *arg)
{
	struct reader *r = arg;
	int i = 0, last;

	do {
		sem_wait(&r->empty);
		if (r->stop)
			break;
		fill(r, &r->rows[i]);
		last = r->rows[i].last;
		sem_post(&r->full);
		i ^= 1;
	} while (!last);
	return NULL;
}

/* Whether b follows on the tree and its last commit, which then have moved on. */
static int
follow(struct rows *b, uint64_t *size, uint64_t *committed, uint8_t *peaks, uint8_t *root)
{
	uint8_t made[ROWS * HASH], grown[LEVELS * HASH];
	uint64_t i, since = *committed;

	trace_leaves(b->data, b->ends, b->n, made, 1);
	if (memcmp(made, b->leaves, b->n * HASH) != 0)
		return 0;
	for (i = 0; i < b->m; since = b->sizes[i++])
		if (b->sinces[i] != since)
			return 0;
	memcpy(grown, peaks, sizeof grown);
	if (trace_grow(*size, grown, b->leaves, b->n, b->sizes, b->m, made) < 0)
		return 0;
	if (memcmp(made, b->roots, b->m * HASH) != 0)
		return 0;
	memcpy(peaks, grown, sizeof grown);
	if (b->m > 0)
		memcpy(root, b->roots + (b->m - 1) * HASH, HASH);
	*committed = since;
	*size += b->n;
	return 1;
}

static void
follow_all(struct reader *r, uint64_t *size, uint64_t *committed, uint8_t *peaks, uint8_t *root)
{
	pthread_t id;
	int i, last;

	if (pthread_create(&id, NULL, read_all, r) != 0)
		return;
	for (i = 0;; i ^= 1) {
		sem_wait(&r->full);
		last = r->rows[i].last;
		if (!follow(&r->rows[i], size, committed, peaks, root))
			r->stop = last = 1;
		sem_post(&r->empty);
		if (last)
			break;
	}
	pthread_join(id, NULL);
}

/*
 * Verify the rows that `sql` selects from the database at uri: from size + 1 up to last. As far as they follow,
 * size, committed, peaks[64][32] and root[32] move on. numbers: each body says its own, too.
 */
void
ledger_follow(const char *uri, const char *sql, int numbers, uint64_t last, uint64_t *size, uint64_t *committed,
    uint8_t *peaks, uint8_t *root)
{
	struct reader r = { .seq = *size, .numbers = numbers };

	sem_init(&r.full, 0, 0);
	sem_init(&r.empty, 0, 2);
	if ((r.rows = calloc(2, sizeof *r.rows)) == NULL)
		return;
	if (sqlite.open(uri, &r.db, SQLITE_OPEN, NULL) == 0 && sqlite.prepare(r.db, sql, -1, &r.select, NULL) == 0) {
		sqlite.bind(r.select, 1, *size);
		sqlite.bind(r.select, 2, last);
		follow_all(&r, size, committed, peaks, root);
	}
	sqlite.finalize(r.select);
	sqlite.close(r.db);
	free(r.rows[0].data);
	free(r.rows[1].data);
	free(r.rows);
	sem_destroy(&r.full);
	sem_destroy(&r.empty);
}
