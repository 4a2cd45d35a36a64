/*
 * The tree's hashes on a graphics processor: a thread for each message. What hashes one is in sha256.h, which
 * stands before this text; both are plain C, too, but for the kernels at the end.
 */

/* SHA-256 of a byte and data[n]: the blocks within it are read where they are. */
DEVICE static void
message(byte first, const byte *data, wide n, byte *out)
{
	wide i, last = blocks(n), inner = (n + 1) / BLOCK;
	word h[8];
	byte edge[BLOCK];

	begin(h);
	for (i = 0; i < last; i++)
		if (i > 0 && i < inner)
			compress(h, data + i * BLOCK - 1);
		else {
			block(first, data, n, i, edge);
			compress(h, edge);
		}
	finish(h, out);
}

/* Entry i of those in data[], each of which ends at ends[i], counted from base on: its hash is out[i][32]. */
DEVICE static void
leaf(const byte *data, const wide *ends, wide base, wide i, byte *out)
{
	wide from = i == 0 ? base : ends[i - 1];

	message(0, data + (from - base), ends[i] - from, out + i * HASH);
}

/* Node i over hashes[][32]. out is another place: threads come in any order. */
DEVICE static void
node(const byte *hashes, wide i, byte *out)
{
	message(1, hashes + 2 * i * HASH, 2 * HASH, out + i * HASH);
}

#ifdef __CUDACC__
extern "C" __global__ void
leaves(wide n, const byte *data, const wide *ends, wide base, byte *out)
{
	wide i = (wide)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		leaf(data, ends, base, i, out);
}

extern "C" __global__ void
nodes(wide n, const byte *hashes, byte *out)
{
	wide i = (wide)blockIdx.x * blockDim.x + threadIdx.x;

	if (i < n)
		node(hashes, i, out);
}
#endif
