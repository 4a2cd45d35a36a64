/*
 * SHA-256 of a byte and what follows it, as RFC 6962 hashes leaves (0) and nodes (1), in plain C.
 *
 * The same text is a graphics processor's: there DEVICE says so, and no header can be had. Words are of 32
 * bits, the compression's order is that of the standard. Source: FIPS 180-4, 5.1.1, 6.2.2.
 */

typedef unsigned char byte;
typedef unsigned int word;
typedef unsigned long long wide;

enum { BLOCK = 64, HASH = 32 };

#define K_OF_SHA256 { \
	0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5, \
	0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174, \
	0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da, \
	0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, \
	0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, \
	0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, \
	0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3, \
	0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2 }

DEVICE static inline word
right(word x, int n)
{
	return x >> n | x << (32 - n);
}

DEVICE static void
begin(word *h)
{
	h[0] = 0x6a09e667;
	h[1] = 0xbb67ae85;
	h[2] = 0x3c6ef372;
	h[3] = 0xa54ff53a;
	h[4] = 0x510e527f;
	h[5] = 0x9b05688c;
	h[6] = 0x1f83d9ab;
	h[7] = 0x5be0cd19;
}

/* One block more: h[8] goes on by in[64]. Unrolled, nothing is moved: a to h are s[-i & 7] and on. */
DEVICE static void
compress(word *h, const byte *in)
{
	CONSTANT static const word k[64] = K_OF_SHA256;
	word s[8], w[16], a, e, t, x, y;
	int i;

	for (i = 0; i < 8; i++)
		s[i] = h[i];
	for (i = 0; i < 16; i++)
		w[i] = (word)in[4 * i] << 24 | (word)in[4 * i + 1] << 16 | (word)in[4 * i + 2] << 8 | in[4 * i + 3];
	UNROLL
	for (i = 0; i < 64; i++) {
		if (i >= 16) {
			x = w[(i + 1) & 15];
			y = w[(i + 14) & 15];
			w[i & 15] += w[(i + 9) & 15] + (right(x, 7) ^ right(x, 18) ^ x >> 3) + (right(y, 17) ^ right(y, 19) ^ y >> 10);
		}
		a = s[-i & 7];
		e = s[(4 - i) & 7];
		t = s[(7 - i) & 7] + (right(e, 6) ^ right(e, 11) ^ right(e, 25)) + (s[(6 - i) & 7] ^ (e & (s[(5 - i) & 7] ^ s[(6 - i) & 7]))) + k[i] + w[i & 15];
		s[(3 - i) & 7] += t;
		s[(7 - i) & 7] = t + (right(a, 2) ^ right(a, 13) ^ right(a, 22)) + ((a & (s[(1 - i) & 7] | s[(2 - i) & 7])) | (s[(1 - i) & 7] & s[(2 - i) & 7]));
	}
	for (i = 0; i < 8; i++)
		h[i] += s[i];
}

/* Blocks of the padded message of a byte and n bytes. */
DEVICE static inline wide
blocks(wide n)
{
	return (n + 1 + 8) / BLOCK + 1;
}

/* Byte `at` of the padded message: first data[n] 0x80 0... bits[8, big-endian]. */
DEVICE static inline byte
padded(byte first, const byte *data, wide n, wide at)
{
	wide left = blocks(n) * BLOCK - 1 - at;

	if (at == 0)
		return first;
	if (at <= n)
		return data[at - 1];
	if (at == n + 1)
		return 0x80;
	return left < 8 ? (n + 1) * 8 >> 8 * left : 0;
}

/* Block i of it. */
DEVICE static void
block(byte first, const byte *data, wide n, wide i, byte *out)
{
	int j;

	for (j = 0; j < BLOCK; j++)
		out[j] = padded(first, data, n, i * BLOCK + j);
}

DEVICE static void
finish(const word *h, byte *out)
{
	int i;

	for (i = 0; i < HASH; i++)
		out[i] = h[i / 4] >> (24 - i % 4 * 8);
}
