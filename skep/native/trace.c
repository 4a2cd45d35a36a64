/*
 * The hashes of RFC 6962 over batches: of leaves, and of the tree above them.
 *
 * Two messages are hashed side by side: where the processor has SHA instructions, one alone waits for their
 * results half of the time. Blocks within a message are read where they are; the first, which begins with the
 * byte that tells leaves from nodes, and the padded last ones are put together before.
 * Sources: RFC 6962, 2.1; FIPS 180-4, 6.2; Intel SDM 2, SHA256RNDS2.
 */

enum { LANES = 2, THREADS = 64, LEVELS = 64 };

struct lane {
	word h[8];
	const byte *data;
	wide at, inner, last;           /* block: this one, the first that is not data alone, the last */
	byte edge[3][BLOCK];            /* the first block and those from inner on */
	byte *out;                      /* NULL: idle */
};

struct batch {                      /* data[] holds n messages; message i ends at ends[i], or each is of 64 bytes */
	byte first;
	const byte *data;
	const uint64_t *ends;
	uint64_t from, to;
	byte *out;                      /* 32 bytes for each message */
};

static int sha;                     /* whether the processor's SHA instructions are used */

static const byte *
next(const struct lane *l)
{
	if (l->at == 0)
		return l->edge[0];
	return l->at < l->inner ? l->data + l->at * BLOCK - 1 : l->edge[1 + l->at - l->inner];
}

static void
compress_lanes(struct lane *l)
{
	int i;

	for (i = 0; i < LANES; i++)
		if (l[i].out != NULL)
			compress(l[i].h, next(&l[i]));
}

#ifdef __x86_64__
#define SHA_CODE __attribute__((target("sha,sse4.1")))

/* Both lanes go on by a block; an idle one's goes nowhere. */
SHA_CODE static void
compress_lanes_sha(struct lane *l)
{
	static const word k[64] __attribute__((aligned(16))) = K_OF_SHA256;
	const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
	__m128i abef[LANES], cdgh[LANES], ab, cd, t, w[LANES][4];
	const byte *in;
	int i, j;

	for (j = 0; j < LANES; j++) {
		in = next(&l[j]);
		for (i = 0; i < 4; i++)
			w[j][i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)in + i), order);
		ab = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)l[j].h), 0xb1);
		cd = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)l[j].h + 1), 0x1b);
		abef[j] = _mm_alignr_epi8(ab, cd, 8);
		cdgh[j] = _mm_blend_epi16(cd, ab, 0xf0);
	}
	__m128i abef0[LANES] = {abef[0], abef[1]}, cdgh0[LANES] = {cdgh[0], cdgh[1]};
#pragma GCC unroll 16
	for (i = 0; i < 16; i++)
#pragma GCC unroll 2
		for (j = 0; j < LANES; j++) {
			__m128i *v = w[j], now = v[i & 3];

			t = _mm_add_epi32(now, _mm_load_si128((const __m128i *)k + i));
			cdgh[j] = _mm_sha256rnds2_epu32(cdgh[j], abef[j], t);
			abef[j] = _mm_sha256rnds2_epu32(abef[j], cdgh[j], _mm_shuffle_epi32(t, 0x0e));
			if (i >= 3 && i < 15) {
				t = _mm_sha256msg1_epu32(v[(i + 1) & 3], v[(i + 2) & 3]);
				t = _mm_add_epi32(t, _mm_alignr_epi8(now, v[(i + 3) & 3], 4));
				v[(i + 1) & 3] = _mm_sha256msg2_epu32(t, now);
			}
		}
	for (j = 0; j < LANES; j++) {
		ab = _mm_shuffle_epi32(_mm_add_epi32(abef[j], abef0[j]), 0x1b);
		cd = _mm_shuffle_epi32(_mm_add_epi32(cdgh[j], cdgh0[j]), 0xb1);
		_mm_storeu_si128((__m128i *)l[j].h, _mm_blend_epi16(ab, cd, 0xf0));
		_mm_storeu_si128((__m128i *)l[j].h + 1, _mm_alignr_epi8(cd, ab, 8));
	}
}

static int
has_sha(void)
{
	unsigned a, b, c, d;

	return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b >> 29 & 1 && __get_cpuid(1, &a, &b, &c, &d) && c >> 19 & 1;
}
#else
#define compress_lanes_sha compress_lanes

static int
has_sha(void)
{
	return 0;
}
#endif

/* The first block and the last ones, as they are hashed. */
static void
take(struct lane *l, const struct batch *b, uint64_t i)
{
	uint64_t from = b->ends == NULL ? i * BLOCK : i == 0 ? 0 : b->ends[i - 1];
	uint64_t n = b->ends == NULL ? BLOCK : b->ends[i] - from;
	byte *tail = l->edge[1];
	uint64_t bits = __builtin_bswap64((n + 1) * 8);

	begin(l->h);
	l->data = b->data + from;
	l->at = 0;
	l->last = blocks(n) - 1;
	l->inner = (n + 1) / BLOCK;
	l->out = b->out + i * HASH;
	memset(tail, 0, 2 * BLOCK);
	if (l->inner == 0) {
		/* The only block, or the first of two, is padded itself. */
		l->inner = 1;
		tail = l->edge[0];
		memset(tail, 0, BLOCK);
		memcpy(tail + 1, l->data, n);
		tail[1 + n] = 0x80;
	} else {
		memcpy(l->edge[0] + 1, l->data, BLOCK - 1);
		memcpy(tail, l->data + l->inner * BLOCK - 1, n + 1 - l->inner * BLOCK);
		tail[n + 1 - l->inner * BLOCK] = 0x80;
	}
	l->edge[0][0] = b->first;
	memcpy(l->last == 0 ? l->edge[0] + BLOCK - 8 : l->edge[1 + l->last - l->inner] + BLOCK - 8, &bits, 8);
}

static void *
hash(void *arg)
{
	struct batch *b = arg;
	struct lane l[LANES];
	int i, busy = 0;

	memset(l, 0, sizeof l);
	for (i = 0; i < LANES && b->from < b->to; i++, busy++)
		take(&l[i], b, b->from++);
	while (busy > 0) {
		if (sha)
			compress_lanes_sha(l);
		else
			compress_lanes(l);
		for (i = 0; i < LANES; i++) {
			if (l[i].out == NULL || l[i].at++ < l[i].last)
				continue;
			finish(l[i].h, l[i].out);
			l[i].out = NULL;
			l[i].at = 0;
			if (b->from < b->to)
				take(&l[i], b, b->from++);
			else
				busy--;
		}
	}
	return NULL;
}

/* All of b, shared by threads; where one cannot be had, another does its part. */
static void
hash_all(struct batch *b, int threads)
{
	struct batch part[THREADS];
	pthread_t id[THREADS];
	int i, started[THREADS];
	uint64_t n = b->to;

	threads = threads < 1 ? 1 : threads > THREADS ? THREADS : threads;
	for (i = 0; i < threads; i++) {
		part[i] = *b;
		part[i].from = n * i / threads;
		part[i].to = n * (i + 1) / threads;
		started[i] = i > 0 && pthread_create(&id[i], NULL, hash, &part[i]) == 0;
	}
	for (i = 0; i < threads; i++)
		if (!started[i])
			hash(&part[i]);
		else
			pthread_join(id[i], NULL);
}

/* Use the SHA instructions, when they are wanted and there; whether they are used. */
int
trace_sha(int wanted)
{
	return sha = wanted && has_sha();
}

void
trace_leaves(const uint8_t *data, const uint64_t *ends, uint64_t n, uint8_t *out, int threads)
{
	struct batch b = { 0, data, ends, 0, n, out };

	hash_all(&b, threads);
}

/* The n / 2 nodes over n hashes; out may be where the hashes are. Threads would overtake each other there. */
static void
pairs(const uint8_t *hashes, uint64_t n, uint8_t *out)
{
	struct batch b = { 1, hashes, NULL, 0, n / 2, out };

	hash(&b);
}

/* The nodes `levels` above n hashes, a multiple of 2**levels; at least n / 2 fit in out. */
void
trace_fold(const uint8_t *hashes, uint64_t n, int levels, uint8_t *out)
{
	for (; levels > 0; levels--, n /= 2) {
		pairs(hashes, n, out);
		hashes = out;
	}
}

/* The nodes that a tree's growth made, level by level; those before them are the tree's peaks. */
struct growth {
	uint8_t *peaks;                 /* peaks[64][32]: of each level the complete subtree that ends the tree, if one does */
	uint8_t *level[LEVELS];
	uint64_t first[LEVELS];         /* the number of level[l]'s first node: even */
	int levels;
};

/* The last node of its level in a tree of `size` leaves, that has one there. */
static uint8_t *
peak(const struct growth *g, int l, uint64_t size)
{
	return l < g->levels ? g->level[l] + ((size >> l) - 1 - g->first[l]) * HASH : g->peaks + l * HASH;
}

/* The nodes that n leaves make, in room for 2 * n + 2 * LEVELS. */
static void
lift(struct growth *g, uint64_t size, const uint8_t *leaves, uint64_t n, uint8_t *room)
{
	int l, held;

	for (l = 0; n > 0; l++) {
		g->level[l] = room;
		held = size >> l & 1;
		g->first[l] = (size >> l) - held;
		memcpy(room, g->peaks + l * HASH, held * HASH);
		room += held * HASH;
		if (l == 0)
			memcpy(room, leaves, n * HASH);
		else
			pairs(g->level[l - 1], 2 * n, room);
		room += n * HASH;
		n = (n + held) / 2;
	}
	g->levels = l;
}

/* The roots of the trees of sizes[m] leaves: all grow at the same time, each from its smallest peak up. */
static void
root(const struct growth *g, const uint64_t *sizes, uint64_t m, uint8_t *roots, uint64_t *left, uint8_t *pair)
{
	uint64_t i, n, *who = left + m;
	int l;

	for (i = 0; i < m; i++) {
		memcpy(roots + i * HASH, peak(g, __builtin_ctzll(sizes[i]), sizes[i]), HASH);
		left[i] = sizes[i] & (sizes[i] - 1);
	}
	do {
		for (i = n = 0; i < m; i++) {
			if (left[i] == 0)
				continue;
			l = __builtin_ctzll(left[i]);
			left[i] &= left[i] - 1;
			memcpy(pair + 2 * n * HASH, peak(g, l, sizes[i]), HASH);
			memcpy(pair + (2 * n + 1) * HASH, roots + i * HASH, HASH);
			who[n++] = i;
		}
		pairs(pair, 2 * n, pair);
		for (i = 0; i < n; i++)
			memcpy(roots + who[i] * HASH, pair + i * HASH, HASH);
	} while (n > 0);
}

/*
 * A tree of `size` leaves grows by n. peaks[64][32] has the complete subtree of each level that ends it, before
 * and after. roots[m][32] become those of the trees of sizes[m] leaves, above size and up to size + n.
 * 0, or -1: no memory.
 */
int
trace_grow(uint64_t size, uint8_t *peaks, const uint8_t *leaves, uint64_t n, const uint64_t *sizes, uint64_t m,
    uint8_t *roots)
{
	struct growth g = { .peaks = peaks };
	uint8_t *room = malloc((2 * n + 2 * LEVELS + 2 * m) * HASH);
	uint64_t *left = malloc((2 * m + 1) * sizeof *left);
	int l, made = room != NULL && left != NULL;

	if (made) {
		lift(&g, size, leaves, n, room + 2 * m * HASH);
		root(&g, sizes, m, roots, left, room);
		for (l = 0; l < g.levels; l++)
			if ((size + n) >> l & 1)
				memcpy(peaks + l * HASH, peak(&g, l, size + n), HASH);
	}
	free(room);
	free(left);
	return made ? 0 : -1;
}
