/* Sums of vectors, element by element: thread of count takes every count-th. REAL is float or double. */

/*
 * Elements i and those count apart of two vectors. For all that a compiler knows out is one of them: it would read
 * no element before the one before is written.
 */
DEVICE static void
pairs_ahead(wide i, wide count, wide n, const REAL *a, const REAL *b, REAL *x, REAL *y)
{
	int j;

	UNROLL
	for (j = 0; j < AHEAD; j++) {
		x[j] = i + j * count < n ? a[i + j * count] : 0;
		y[j] = i + j * count < n ? b[i + j * count] : 0;
	}
}

DEVICE static void
add(wide thread, wide count, wide n, const REAL *a, const REAL *b, REAL *out)
{
	REAL x[AHEAD], y[AHEAD];
	wide i;
	int j;

	for (i = thread; i < n; i += AHEAD * count) {
		pairs_ahead(i, count, n, a, b, x, y);
		UNROLL
		for (j = 0; j < AHEAD; j++)
			if (i + j * count < n)
				out[i + j * count] = x[j] + y[j];
	}
}

DEVICE static void
scale_and_add(wide thread, wide count, wide n, REAL alpha, const REAL *x, const REAL *y, REAL *out)
{
	REAL a[AHEAD], b[AHEAD];
	wide i;
	int j;

	for (i = thread; i < n; i += AHEAD * count) {
		pairs_ahead(i, count, n, x, y, a, b);
		UNROLL
		for (j = 0; j < AHEAD; j++)
			if (i + j * count < n)
				out[i + j * count] = alpha * a[j] + b[j];
	}
}

#ifdef __CUDACC__
extern "C" __global__ void
vector_add(wide n, const REAL *a, const REAL *b, REAL *out)
{
	add(THREAD, COUNT, n, a, b, out);
}

extern "C" __global__ void
saxpy(wide n, REAL alpha, const REAL *x, const REAL *y, REAL *out)
{
	scale_and_add(THREAD, COUNT, n, alpha, x, y, out);
}
#endif
