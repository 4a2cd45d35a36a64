/* Softmax over rows: a block for each, which goes through it three times. No -inf is written: C has none. */

#ifdef __CUDACC__
#define LOWEST __int_as_float(0xff800000)
#else
#define LOWEST (-HUGE_VALF)
#endif

/* Element i of a row and those THREADS apart; beyond the last one: the least. */
DEVICE static void
row_ahead(wide i, wide columns, const float *row, float *seen)
{
	int j;

	UNROLL
	for (j = 0; j < AHEAD; j++)
		seen[j] = i + j * THREADS < columns ? row[i + j * THREADS] : LOWEST;
}

/* The largest that a thread of THREADS sees; NaN is seen by the sum. */
DEVICE static float
largest(word thread, wide columns, const float *row)
{
	float most = LOWEST, seen[AHEAD];
	wide i;
	int j;

	for (i = thread; i < columns; i += AHEAD * THREADS) {
		row_ahead(i, columns, row, seen);
		UNROLL
		for (j = 0; j < AHEAD; j++)
			if (seen[j] > most)
				most = seen[j];
	}
	return most;
}

DEVICE static float
sum_above(word thread, wide columns, const float *row, float most)
{
	float sum = 0, seen[AHEAD];
	wide i;
	int j;

	for (i = thread; i < columns; i += AHEAD * THREADS) {
		row_ahead(i, columns, row, seen);
		UNROLL
		for (j = 0; j < AHEAD; j++)
			if (i + j * THREADS < columns)
				sum += expf(seen[j] - most);
	}
	return sum;
}

DEVICE static void
share(word thread, wide columns, const float *row, float most, float sum, float *out)
{
	wide i;

	for (i = thread; i < columns; i += THREADS)
		out[i] = expf(row[i] - most) / sum;
}

DEVICE static void
fold_largest(word thread, word step, float *all)
{
	if (thread < step && all[thread + step] > all[thread])
		all[thread] = all[thread + step];
}

DEVICE static void
fold_sum(word thread, word step, float *all)
{
	if (thread < step)
		all[thread] += all[thread + step];
}

#ifdef __CUDACC__
extern "C" __global__ void
softmax(wide rows, wide columns, const float *a, float *out)
{
	__shared__ float all[THREADS];
	word step, thread = threadIdx.x;
	float most;
	wide i;

	for (i = blockIdx.x; i < rows; i += gridDim.x) {
		all[thread] = largest(thread, columns, a + i * columns);
		for (step = THREADS / 2; step > 0; step /= 2) {
			__syncthreads();
			fold_largest(thread, step, all);
		}
		__syncthreads();
		most = all[0];
		__syncthreads();
		all[thread] = sum_above(thread, columns, a + i * columns, most);
		for (step = THREADS / 2; step > 0; step /= 2) {
			__syncthreads();
			fold_sum(thread, step, all);
		}
		__syncthreads();
		share(thread, columns, a + i * columns, most, all[0], out + i * columns);
		__syncthreads();
	}
}
#endif
