/* What the parts of the guests share: kernels, loader and root task. */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>

typedef uint64_t word;

/* What goes wrong, and how it is told; from the words of the command line, see README.md. */
struct choice {
    char what[24]; /* do= */
    char form[8];  /* form= debug, mcs, print, silent */
    word wait;     /* wait= periods of 50 ms that the kernel spins for (x86) */
    word ticks;    /* ticks= interrupts of the timer that the kernel waits for */
    word slow;     /* slow= turns of a loop before the root task is ready */
};

/* Of BootInfo (64 bits, not MCS) what is filled in. */
struct region {
    word start, end;
};
struct untyped {
    word paddr;
    uint8_t size_bits, is_device, pad[6];
};
struct bootinfo {
    word extra_len, node, nodes, iopt_levels, ipc_buffer;
    struct region empty, shared, image_frames, image_paging, io_space, extra_pages;
    word cnode_bits, domain;
    struct region untyped;
    struct untyped list[230];
};
_Static_assert(sizeof(struct bootinfo) == 3848, "seL4's layout");

enum { /* system calls, as seL4 numbers them */
    CALL = -1, SEND = -3, RECV = -5, YIELD = -7, PUT_CHAR = -9, HALT = -11
};
#define NULL_CAP 8191

/* arch: */
void put_byte(char byte); /* waits until there is room */
_Noreturn void idle(void);
_Noreturn void stop(void); /* interrupts off, for ever */
_Noreturn void reset(void);
void wait_periods(word count);
void take_ticks(word count); /* interrupts of the timer, some ms apart */
_Noreturn void enter_user(word pc, word sp, word argument, word offset);

/* say.c: */
void say(const char *format, ...); /* %s, %x 0x…, %p of 0 is 0, %u, %h hex without 0x */
int same(const char *, const char *);
word word_of(const char *text);
void choose(struct choice *, const char *words);
void copy(void *to, const void *from, word size);
void fill(void *to, word size);
static inline word hidden(word value) /* the same, which the compiler is not to know */
{
    __asm__("" : "+r"(value));
    return value;
}

/* elf.c: the memory that an ELF64's segments take, moved by `offset`. */
struct image {
    word start, end, entry;
};
int load(struct image *, const void *file, word offset, int by_paddr);

/* kernel.c: */
struct fault {
    enum { FAULT_DATA, FAULT_CODE, FAULT_CAP, FAULT_SYSCALL, FAULT_EXCEPTION } kind;
    word address, status, pc, sp;
};
extern struct choice choice;
void begin(const char *words); /* first of all */
int told(void);                /* whether anything is said */
/* The root task has been loaded; its addresses and `offset` is where it is in memory. */
_Noreturn void kernel(const struct image *root, word offset);
_Noreturn void refuse(void);
_Noreturn void halt(void);
_Noreturn void on_kernel_fault(word pc, word address, word status);
_Noreturn void on_fault(const struct fault *);
/* The answer to a system call: whether the caller goes on. */
void on_syscall(long number, word argument, word pc, word sp);

#endif
