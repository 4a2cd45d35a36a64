/* Cross-correlation without padding: a thread for each element of out[b][o][h - r + 1][w - s + 1]. */

/* Element i of out: images[b][c][h][w], weights[o][c][r][s]. */
DEVICE static float
element(wide i, wide c, wide h, wide w, wide o, wide r, wide s, const float *images, const float *weights)
{
	wide x = i % (w - s + 1), y = i / (w - s + 1) % (h - r + 1);
	wide of = i / (w - s + 1) / (h - r + 1) % o, image = i / (w - s + 1) / (h - r + 1) / o;
	wide k, l, m;
	float sum = 0;

	for (k = 0; k < c; k++)
		for (l = 0; l < r; l++)
			for (m = 0; m < s; m++)
				sum += images[((image * c + k) * h + y + l) * w + x + m] * weights[((of * c + k) * r + l) * s + m];
	return sum;
}

#ifdef __CUDACC__
extern "C" __global__ void
conv2d(wide n, wide c, wide h, wide w, wide o, wide r, wide s, const float *images, const float *weights, float *out)
{
	wide i;

	for (i = THREAD; i < n; i += COUNT)
		out[i] = element(i, c, h, w, o, r, s, images, weights);
}
#endif
