/* Counts of values in bins of the same width. Few bins are counted for each block first, near its threads. */

#ifdef __CUDACC__
#define NOWHERE __int_as_float(0x7fc00000)
#else
#define NOWHERE NAN
#endif

/* The bin of x; -1: none. Differences of floats are exact enough in double, and no step can be fused. */
DEVICE static int
bin(float x, double low, double high, double scale, int bins)
{
	int i;

	if (!(x >= low && x <= high))
		return -1;
	i = (int)((x - low) * scale);
	return i < bins ? i : bins - 1;
}

/* Element i and those count apart; beyond the last one: NaN, which is in no bin. */
DEVICE static void
ahead(wide i, wide count, wide n, const float *a, float *seen)
{
	int j;

	UNROLL
	for (j = 0; j < AHEAD; j++)
		seen[j] = i + j * count < n ? a[i + j * count] : NOWHERE;
}

#ifdef __CUDACC__
extern "C" __global__ void
histogram(wide n, const float *a, double low, double high, double scale, int bins, wide *out)
{
	float seen[AHEAD];
	wide i;
	int at, j;

	for (i = THREAD; i < n; i += AHEAD * COUNT) {
		ahead(i, COUNT, n, a, seen);
		UNROLL
		for (j = 0; j < AHEAD; j++) {
			at = bin(seen[j], low, high, scale, bins);
			if (at >= 0)
				atomicAdd(&out[at], 1ULL);
		}
	}
}

/* The same where counts[bins] fit into the memory of a block. */
extern "C" __global__ void
histogram_few(wide n, const float *a, double low, double high, double scale, int bins, wide *out)
{
	extern __shared__ word counts[];
	float seen[AHEAD];
	wide i;
	int at, j;

	for (at = threadIdx.x; at < bins; at += blockDim.x)
		counts[at] = 0;
	__syncthreads();
	for (i = THREAD; i < n; i += AHEAD * COUNT) {
		ahead(i, COUNT, n, a, seen);
		UNROLL
		for (j = 0; j < AHEAD; j++) {
			at = bin(seen[j], low, high, scale, bins);
			if (at >= 0)
				atomicAdd(&counts[at], 1U);
		}
	}
	__syncthreads();
	for (at = threadIdx.x; at < bins; at += blockDim.x)
		if (counts[at] > 0)
			atomicAdd(&out[at], (wide)counts[at]);
}
#endif
