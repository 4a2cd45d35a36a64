/*
 * The largest, by keys whose order as integers is that of floats, and of equal floats that of their places, first
 * above. No two are the same: all that are not below one of them are as many as that says. It is found digit by
 * digit from above, each time by a look at all.
 */

#define DIGITS 2048

/* The key of the float with these bits at place i: order[4] ~place[4]. */
DEVICE static wide
key(word bits, wide i)
{
	word order;

	if ((bits & 0x7fffffff) > 0x7f800000)
		order = 0xffffffff;
	else if ((bits & 0x7fffffff) == 0)
		order = 0x80000000;
	else
		order = bits >> 31 ? ~bits : bits | 0x80000000;
	return (wide)order << 32 | (0xffffffff - i);
}

/* The digit of so many bits above shift, DIGITS of them at most; -1: what is above it is another prefix. */
DEVICE static int
digit(wide of, word shift, word bits, wide prefix)
{
	if (of >> shift >> bits != prefix)
		return -1;
	return of >> shift & ((1 << bits) - 1);
}

/* The keys of element i and of those count apart; beyond the last one whatever. */
DEVICE static void
keys_ahead(wide i, wide count, wide n, const word *a, wide *keys)
{
	int j;

	UNROLL
	for (j = 0; j < AHEAD; j++)
		keys[j] = i + j * count < n ? key(a[i + j * count], i + j * count) : 0;
}

#ifdef __CUDACC__
extern "C" __global__ void
topk_count(wide n, const word *a, word shift, word bits, wide prefix, word *out)
{
	__shared__ word counts[DIGITS];
	wide keys[AHEAD], i;
	int at, j;

	for (at = threadIdx.x; at < DIGITS; at += blockDim.x)
		counts[at] = 0;
	__syncthreads();
	for (i = THREAD; i < n; i += AHEAD * COUNT) {
		keys_ahead(i, COUNT, n, a, keys);
		UNROLL
		for (j = 0; j < AHEAD; j++) {
			at = i + j * COUNT < n ? digit(keys[j], shift, bits, prefix) : -1;
			if (at >= 0)
				atomicAdd(&counts[at], 1U);
		}
	}
	__syncthreads();
	for (at = threadIdx.x; at < DIGITS; at += blockDim.x)
		if (counts[at] > 0)
			atomicAdd(&out[at], counts[at]);
}

/* All keys from least on, in any order: *next is how many there are so far. */
extern "C" __global__ void
topk_take(wide n, const word *a, wide least, word *next, wide *out)
{
	wide keys[AHEAD], i;
	int j;

	for (i = THREAD; i < n; i += AHEAD * COUNT) {
		keys_ahead(i, COUNT, n, a, keys);
		UNROLL
		for (j = 0; j < AHEAD; j++)
			if (i + j * COUNT < n && keys[j] >= least)
				out[atomicAdd(next, 1U)] = keys[j];
	}
}
#endif
