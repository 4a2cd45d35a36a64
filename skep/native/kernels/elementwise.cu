/* Sums of vectors, element by element: thread of count takes every count-th. REAL is float or double. */

DEVICE static void
add(wide thread, wide count, wide n, const REAL *a, const REAL *b, REAL *out)
{
	wide i;

	for (i = thread; i < n; i += count)
		out[i] = a[i] + b[i];
}

DEVICE static void
scale_and_add(wide thread, wide count, wide n, REAL alpha, const REAL *x, const REAL *y, REAL *out)
{
	wide i;

	for (i = thread; i < n; i += count)
		out[i] = alpha * x[i] + y[i];
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
