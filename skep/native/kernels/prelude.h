/*
 * What every kernel's text begins with. The same text is plain C: there DEVICE is nothing, and a test calls
 * for each thread what the kernels at the end of a file call for theirs. THREADS is the size of a block.
 */

typedef unsigned int word;
typedef unsigned long long wide;

/* Elements that a thread asks for before it waits for the first: one alone would be waited for each time. */
#define AHEAD 4

/* How far apart what a thread takes is: all threads side by side read side by side. */
#ifdef __CUDACC__
#define THREAD ((wide)blockIdx.x * blockDim.x + threadIdx.x)
#define COUNT ((wide)gridDim.x * blockDim.x)
#endif
