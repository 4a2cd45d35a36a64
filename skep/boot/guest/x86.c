/* pc99: serial port, PIT, descriptor tables. */
#include "guest.h"

#define COM1 0x3f8
#define PERIOD 59659 /* ticks of the PIT in 50 ms */
#define KERNEL_START 0x100000ul
#define USER_MEMORY 0x1000000ul
#define HIGH 0xffffffff80000000ul

extern word gdt[], pml4[], low[];
extern char _start[], traps[], tick_entry[], syscall_entry[], kernel_stack[], ki_end[];
void enter_user_at(word pc, word sp, word first, word second);
_Noreturn void start(word multiboot) __attribute__((section(".boot")));

static inline void out(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static inline uint8_t in(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline void set_msr(uint32_t which, word value)
{
    __asm__ volatile("wrmsr" ::"c"(which), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)));
}

void put_byte(char byte)
{
    while (!(in(COM1 + 5) & 0x20))
        ;
    out(COM1, (uint8_t)byte);
}

void idle(void)
{
    for (;;)
        __asm__ volatile("sti; hlt");
}

void stop(void)
{
    for (;;)
        __asm__ volatile("cli; hlt");
}

void reset(void)
{
    struct {
        uint16_t limit;
        word base;
    } __attribute__((packed)) none = {0, 0};
    __asm__ volatile("lidt %0; int3" ::"m"(none));
    __builtin_unreachable();
}

/* Polls the second counter, as the calibration of the clocks does. */
void wait_periods(word count)
{
    while (count--) {
        out(0x61, (in(0x61) & ~2) | 1);
        out(0x43, 0xb0);
        out(0x42, PERIOD & 0xff);
        out(0x42, PERIOD >> 8);
        while (!(in(0x61) & 0x20))
            ;
    }
}

static volatile word ticks;
void on_tick(void);
void on_tick(void)
{
    ticks++;
    out(0x20, 0x20);
}

/* Both interrupt controllers begin at vector 0x20, where exceptions end; the timer alone is let through. */
void take_ticks(word count)
{
    static const uint8_t words[][2] = {{0x11, 0x11}, {0x20, 0x28}, {4, 2}, {1, 1}, {0xfe, 0xff}};
    for (int i = 0; i < 5; i++)
        out(i ? 0x21 : 0x20, words[i][0]), out(i ? 0xa1 : 0xa0, words[i][1]);
    out(0x43, 0x34), out(0x40, (PERIOD / 10) & 0xff), out(0x40, (PERIOD / 10) >> 8);
    while (ticks < count)
        __asm__ volatile("sti; hlt; cli");
    out(0x21, 0xff);
}

static struct {
    uint16_t low, selector, flags, middle;
    uint32_t high, none;
} idt[33];
static uint32_t tss[26];

static void set_tables(void)
{
    for (int i = 0; i < 33; i++) {
        word at = i < 32 ? (word)traps + 16ul * (word)i : (word)tick_entry;
        idt[i].low = (uint16_t)at, idt[i].selector = 8, idt[i].flags = 0x8e00;
        idt[i].middle = (uint16_t)(at >> 16), idt[i].high = (uint32_t)(at >> 32);
    }
    struct {
        uint16_t limit;
        word base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (word)idt}, of_gdt = {63, (word)gdt + HIGH};
    word stack = (word)kernel_stack, at = (word)tss;
    tss[1] = (uint32_t)stack, tss[2] = (uint32_t)(stack >> 32);
    word *descriptor = (word *)((word)gdt + HIGH) + 6;
    descriptor[0] = (sizeof tss - 1) | (at & 0xffffff) << 16 | 0x89ul << 40 | (at >> 24 & 0xff) << 56;
    descriptor[1] = at >> 32;
    __asm__ volatile("lgdt %0; lidt %1; ltr %w2" ::"m"(of_gdt), "m"(pointer), "r"(48));
    set_msr(0xc0000081, 8ul << 32 | 24ul << 48); /* of syscall and sysret */
    set_msr(0xc0000082, (word)syscall_entry);
    set_msr(0xc0000084, 0x200);
    out(0x21, 0xff), out(0xa1, 0xff); /* no interrupts come */
}

struct trap {
    word number, error, pc, cs, flags, sp, ss;
};

void on_trap(const struct trap *trap)
{
    word address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    if (!(trap->cs & 3)) {
        on_kernel_fault(trap->pc, address, trap->error);
    }
    /* x86 calls the fetch of an instruction data. */
    struct fault fault = {FAULT_DATA, address, trap->error & ~1ul, trap->pc, trap->sp};
    if (trap->number != 14)
        fault.kind = FAULT_EXCEPTION, fault.address = trap->number, fault.status = trap->error;
    on_fault(&fault);
}

void enter_user(word pc, word sp, word argument, word offset)
{
    /* The second 4 MiB are its own from here on, the rest of the low memory is nobody's. */
    word *tables = (word *)((word)low + HIGH);
    for (int i = 0; i < 512; i++)
        tables[i] = 0;
    tables[2] = USER_MEMORY | 0x87;
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" ::: "rax", "memory");
    (void)offset;
    /* What it was told stands behind BootInfo. */
    copy((void *)(argument + 0x1000), &choice, sizeof choice);
    enter_user_at(pc, sp, argument, argument + 0x1000);
    __builtin_unreachable();
}

struct multiboot {
    uint32_t flags, lower, upper, boot_device, words, module_count, modules;
};

void start(word multiboot)
{
    const struct multiboot *info = (const void *)multiboot;
    const uint32_t *module = (const void *)(word)info->modules;
    word end = (word)ki_end - HIGH;
    begin((const char *)(word)info->words);
    set_tables();
    if (told()) {
        say("Boot config: console_port = %x\nBoot config: debug_port = %x\n", (word)COM1, (word)COM1);
        say("Detected %u boot module(s):\n", (word)info->module_count);
        say("Kernel loaded to: start=%p end=%p size=%x entry=%p\n", KERNEL_START, end, end - KERNEL_START,
            (word)_start);
        say("ELF-loading userland images from boot modules:\n");
    }
    struct image root;
    word offset = USER_MEMORY - 0x400000;
    if (!info->module_count || !load(&root, (const void *)(word)module[0], offset, 0))
        refuse();
    if (told())
        say("size=%x v_entry=%p v_start=%p v_end=%p\n", root.end - root.start, root.entry, root.start, root.end);
    kernel(&root, offset);
}
