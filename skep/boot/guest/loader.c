/* Unpacks kernel and root task from a newc CPIO, turns the MMU on and jumps: as seL4's elfloader does. */
#include "arm.h"

#define MEMORY 0x40000000ul /* where QEMU leaves the device tree, and the kernel goes */

extern char _text[], _end[], _archive_start[], _archive_end[];
_Noreturn void jump(word entry, word argument);
_Noreturn void start(void);

static struct handover handover;
static int silent;

void put_byte(char byte)
{
    if (!silent)
        put_at(UART, byte);
}

static _Noreturn void give_up(const char *why)
{
    say("ERROR: %s\nabort() called.\n", why);
    for (;;)
        ;
}

/* the command line, from the device tree: property bootargs */

static uint32_t big(const uint8_t *at)
{
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void find_words(const uint8_t *tree)
{
    if (big(tree) != 0xd00dfeed)
        return;
    const char *names = (const char *)tree + big(tree + 12);
    for (const uint8_t *at = tree + big(tree + 8); big(at) != 9;) {
        uint32_t token = big(at);
        at += 4;
        if (token == 1) {
            while (*at)
                at++;
            at++;
        } else if (token == 3) {
            uint32_t size = big(at);
            if (same(names + big(at + 4), "bootargs") && size <= WORDS_MAX)
                copy(handover.words, at + 8, size);
            at += 8 + size;
        }
        at = (const uint8_t *)(((word)at + 3) & ~3ul);
    }
}

/* the archive */

static word hex(const char *digits)
{
    word value = 0;
    for (int i = 0; i < 8; i++) {
        char each = digits[i];
        value = value << 4 | (word)(each <= '9' ? each - '0' : (each & 31) + 9);
    }
    return value;
}

static const void *member(const char *name)
{
    for (const char *at = _archive_start; at + 110 < _archive_end;) {
        word size = hex(at + 54), named = hex(at + 94);
        const char *content = (const char *)(((word)at + 110 + named + 3) & ~3ul);
        if (same(at + 110, name))
            return content;
        at = (const char *)(((word)content + size + 3) & ~3ul);
    }
    give_up(name);
}

static struct image loaded(const char *name, const char *file, word offset, int by_paddr, word high)
{
    struct image image;
    if (!load(&image, member(file), offset, by_paddr))
        give_up("not an ELF file");
    word start = image.start + offset;
    say("ELF-loading image '%s' to %h\n  paddr=[%h..%h]\n", name, start, start, image.end + offset - 1);
    say("  vaddr=[%h..%h]\n  virt_entry=%h\n", image.start + high, image.end + high - 1, image.entry);
    return image;
}

static word identity[512] __attribute__((aligned(4096))), high[512] __attribute__((aligned(4096)));

static void enable_mmu(void)
{
    identity[0] = DEVICE, identity[1] = MEMORY | BLOCK;
    high[510] = DEVICE, high[511] = MEMORY | BLOCK;
    word sizes = 25ul | 25ul << 16 | 2ul << 30 | 2ul << 32 | 0x3500ul | 0x3500ul << 16;
    __asm__ volatile("msr mair_el1, %0; msr tcr_el1, %1; msr ttbr0_el1, %2; msr ttbr1_el1, %3; isb; tlbi vmalle1; dsb sy; isb;"
                     "mrs x9, sctlr_el1; orr x9, x9, #1; orr x9, x9, #4; orr x9, x9, #0x1000; msr sctlr_el1, x9; isb"
                     ::"r"(0xff00ul), "r"(sizes), "r"(identity), "r"(high) : "x9", "memory");
}

void start(void)
{
    struct choice choice;
    find_words((const uint8_t *)MEMORY);
    choose(&choice, handover.words);
    silent = same(choice.what, "silence");
    say("ELF-loader started on CPU: ARM Ltd. Cortex-A53 r0p4\n  paddr=[%h..%h]\n", (word)_text, (word)_end - 1);
    if (same(choice.what, "loader"))
        give_up("Hashes are different");
    struct image kernel = loaded("kernel", "kernel.elf", 0, 1, HIGH);
    handover.root = loaded("rootserver", "rootserver", OFFSET, 0, 0);
    say("Enabling MMU and jumping to entry point...\n");
    enable_mmu();
    jump(kernel.entry, (word)&handover + HIGH);
}
