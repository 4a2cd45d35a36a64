/* The sum of a vector, in double: a sum for each thread, folded to one for each block; no order by chance. */

/* What a thread of count adds up, in AHEAD sums of their own. */
DEVICE static double
part(wide thread, wide count, wide n, const REAL *a)
{
	double sums[AHEAD] = {0}, sum = 0;
	wide i;
	int j;

	for (i = thread; i < n; i += AHEAD * count)
		UNROLL
		for (j = 0; j < AHEAD; j++)
			sums[j] += i + j * count < n ? a[i + j * count] : 0;
	UNROLL
	for (j = 0; j < AHEAD; j++)
		sum += sums[j];
	return sum;
}

/* The upper half of sums[2 * step] onto the lower. */
DEVICE static void
fold(word thread, word step, double *sums)
{
	if (thread < step)
		sums[thread] += sums[thread + step];
}

#ifdef __CUDACC__
extern "C" __global__ void
reduce_sum(wide n, const REAL *a, double *out)
{
	__shared__ double sums[THREADS];
	word step;

	sums[threadIdx.x] = part(THREAD, COUNT, n, a);
	for (step = THREADS / 2; step > 0; step /= 2) {
		__syncthreads();
		fold(threadIdx.x, step, sums);
	}
	if (threadIdx.x == 0)
		out[blockIdx.x] = sums[0];
}
#endif
