/*
 * Cross-correlation without padding. A thread makes PLACES times CHANNELS elements of out: what it reads of an
 * image serves all its channels, what it reads of the weights all its places. Each sum is added up as it would be
 * alone. Places are those of all images, one after the other; a thread's are so far apart that threads side by
 * side have places side by side.
 */

#define PLACES 4
#define CHANNELS 4

/* images[b][c][h][w], weights[o][c][r][s], out[b][o][h - r + 1][w - s + 1]; an image has area places in out. */
typedef struct {
	wide b, c, h, w, o, r, s;
	wide right, area;
} Sizes;

DEVICE static Sizes
sizes(wide b, wide c, wide h, wide w, wide o, wide r, wide s)
{
	Sizes of = {b, c, h, w, o, r, s, w - s + 1, (h - r + 1) * (w - s + 1)};

	return of;
}

/* How many threads there is something for. */
DEVICE static wide
threads(Sizes of)
{
	return (of.b * of.area + PLACES - 1) / PLACES * ((of.o + CHANNELS - 1) / CHANNELS);
}

/* Where place i begins in images[]. */
DEVICE static wide
corner(Sizes of, wide i)
{
	wide in = i % of.area;

	return i / of.area * of.c * of.h * of.w + in / of.right * of.w + in % of.right;
}

/* What thread i of threads() makes. Beyond the last place or channel it makes the last one again, for nobody. */
DEVICE static void
elements(wide i, Sizes of, const float *images, const float *weights, float *out)
{
	wide all = of.b * of.area, step = (all + PLACES - 1) / PLACES;
	wide place = i % step, channel = i / step * CHANNELS, terms = of.c * of.r * of.s;
	wide from[PLACES], to[CHANNELS], k, l, m, at;
	float sums[PLACES][CHANNELS], seen[PLACES], weight;
	int p, q;

	UNROLL
	for (p = 0; p < PLACES; p++) {
		at = place + p * step;
		from[p] = corner(of, at < all ? at : all - 1);
		UNROLL
		for (q = 0; q < CHANNELS; q++)
			sums[p][q] = 0;
	}
	UNROLL
	for (q = 0; q < CHANNELS; q++)
		to[q] = (channel + q < of.o ? channel + q : of.o - 1) * terms;
	for (k = 0; k < of.c; k++)
		for (l = 0; l < of.r; l++)
			for (m = 0; m < of.s; m++) {
				at = (k * of.h + l) * of.w + m;
				UNROLL
				for (p = 0; p < PLACES; p++)
					seen[p] = images[from[p] + at];
				at = (k * of.r + l) * of.s + m;
				UNROLL
				for (q = 0; q < CHANNELS; q++) {
					weight = weights[to[q] + at];
					UNROLL
					for (p = 0; p < PLACES; p++)
						sums[p][q] += seen[p] * weight;
				}
			}
	UNROLL
	for (p = 0; p < PLACES; p++) {
		at = place + p * step;
		UNROLL
		for (q = 0; q < CHANNELS; q++)
			if (at < all && channel + q < of.o)
				out[(at / of.area * of.o + channel + q) * of.area + at % of.area] = sums[p][q];
	}
}

#ifdef __CUDACC__
extern "C" __global__ void
conv2d(wide b, wide c, wide h, wide w, wide o, wide r, wide s, const float *images, const float *weights, float *out)
{
	Sizes of = sizes(b, c, h, w, o, r, s);
	wide i, n = threads(of);

	for (i = THREAD; i < n; i += COUNT)
		elements(i, of, images, weights, out);
}
#endif
