/* virt's places, and what the loader hands to the kernel. */
#ifndef ARM_H
#define ARM_H

#include "guest.h"

#define HIGH 0xffffffff80000000ul /* of the first 2 GiB: devices, then memory */
#define UART 0x09000000ul
#define USER_MEMORY 0x41000000ul
#define OFFSET (USER_MEMORY - 0x400000)

#define WORDS_MAX 256
struct handover {
    struct image root;
    char words[WORDS_MAX];
};

/* Entries of translation tables: a block that the kernel may use, memory or device; a table; the root task's. */
#define BLOCK 0x705ul
#define DEVICE (0x401ul | 3ul << 53)
#define TABLE 3ul
#define USER_BLOCK 0x745ul

static inline void put_at(word uart, char byte)
{
    while (*(volatile uint32_t *)(uart + 0x18) & 0x20)
        ;
    *(volatile uint32_t *)uart = (uint8_t)byte;
}

#endif
