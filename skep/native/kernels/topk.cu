/* Keys whose order as integers is that of floats, and of equal floats that of their places, first above. */

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

#ifdef __CUDACC__
extern "C" __global__ void
topk_keys(wide n, const word *a, wide *out)
{
	wide i;

	for (i = THREAD; i < n; i += COUNT)
		out[i] = key(a[i], i);
}
#endif
