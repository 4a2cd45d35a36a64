/* What both kernels do: say what seL4 says, start the root task, tell what it did wrong. */
#include "guest.h"

#define PAGE 4096ul
#define STACK 1024ul
#define NODE "rootserver"
#define THREAD 0xffffffff8040f400ul /* where a thread would be */

struct choice choice;
static struct image root_image;

static int does(const char *what) { return same(choice.what, what); }
int told(void) { return !same(choice.form, "silent"); }

_Noreturn void halt(void)
{
    if (told())
        say("halting...\n");
    stop();
}

static _Noreturn void panic_of(const char *what)
{
    if (same(what, "fail"))
        say("seL4 called fail at /src/kernel/boot.c:%u in function init, saying \"no memory\nleft\"\n", 210ul);
    else if (same(what, "assert"))
        say("seL4 failed assertion 'start <= end' at /src/kernel/untyped.c:%u in function retype\n", 97ul);
    else if (same(what, "prefetch"))
        say("\n\nKERNEL PREFETCH ABORT!\nFaulting instruction: %x\nESR (IFSR): %x\n", 0x0ul, 0x86000006ul);
    else if (same(what, "vector"))
        say("\n\nKERNEL INVALID VECTOR ENTRY!\n");
    else if (same(what, "entry"))
        say("Kernel entry via Interrupt, irq %u\n", 33ul);
    halt();
}

_Noreturn void refuse(void)
{
    say("Invalid ELF: %s\nboot_sys failed for BSP\n", "the userland image has no segment");
    halt();
}

/* The word that the kernel itself acts upon, before there is a root task. */
static void misbehave(void)
{
    static const char *const panics[] = {"fail", "assert", "prefetch", "vector", "entry", "halt", 0};
    for (const char *const *each = panics; *each; each++)
        if (does(*each))
            panic_of(*each);
    if (does("abort"))
        (void)*(volatile word *)hidden(0xffffffff40000018);
    if (does("reset"))
        reset();
    if (does("reject"))
        refuse();
    while (does("kernel-spin"))
        ;
}

static word round_up(word value) { return (value + PAGE - 1) & ~(PAGE - 1); }

static word tell_bootinfo(word offset)
{
    word ipc_buffer = round_up(root_image.end), at = ipc_buffer + PAGE;
    word pages = (ipc_buffer - root_image.start) / PAGE;
    struct bootinfo *info = (void *)(at + offset);
    fill(info, sizeof *info);
    info->nodes = 1, info->iopt_levels = ~0ul, info->ipc_buffer = ipc_buffer;
    info->cnode_bits = 12;
    info->image_paging = (struct region){16, 19};
    info->image_frames = (struct region){19, 19 + pages};
    info->untyped = (struct region){19 + pages, 21 + pages};
    info->empty = (struct region){info->untyped.end, 1ul << info->cnode_bits};
    info->list[0] = (struct untyped){0x8000000, 24, 0, {0}};
    info->list[1] = (struct untyped){0xfee00000, 12, 1, {0}};
    return at;
}

void begin(const char *words)
{
    choose(&choice, words);
    if (does("silence"))
        choose(&choice, "do=silence form=silent");
}

__attribute__((noinline)) void calibrated(void)
{
    __asm__("");
}

void kernel(const struct image *root, word offset)
{
    root_image = *root;
    wait_periods(choice.wait);
    calibrated();
    if (choice.ticks) {
        take_ticks(choice.ticks);
        if (told())
            say("%u interrupts of the timer\n", choice.ticks);
    }
    misbehave();
    word info = tell_bootinfo(offset);
    word sp = info + 2 * PAGE + 16 * STACK;
    if (told())
        say("Booting all finished, dropped to user space\n");
    enter_user(root->entry, sp, info, offset);
}

/* faults */

void on_kernel_fault(word pc, word address, word status)
{
    say("\n\nKERNEL DATA ABORT!\nFaulting instruction: %x\nFAR: %x ESR (DFSR): %x\n", pc, address, status);
    halt();
}

static void say_fault(const struct fault *fault)
{
    if (does("null-fault"))
        say("null fault");
    else if (does("timeout-fault"))
        say("Timeout fault for %x\n", THREAD);
    else if (does("unknown-fault"))
        say("unknown fault");
    else if (fault->kind == FAULT_CAP)
        say("cap fault in %s phase at address %p", does("cap-receive") ? "receive" : "send", fault->address);
    else if (fault->kind == FAULT_SYSCALL)
        say("unknown syscall %p", fault->address);
    else if (fault->kind == FAULT_EXCEPTION)
        say("user exception %p code %p", fault->address, fault->status);
    else
        say("vm fault on %s at address %p with status %p", fault->kind == FAULT_CODE ? "code" : "data",
            fault->address, fault->status);
}

void on_fault(const struct fault *fault)
{
    if (!told())
        idle();
    if (same(choice.form, "mcs"))
        say("Found thread has no fault handler while trying to handle:\n");
    else
        say("Caught cap fault in send phase at address %p\nwhile trying to handle:\n", 0ul);
    say_fault(fault);
    if (!same(choice.form, "print"))
        say("\nin thread %p \"%s\" ", THREAD, NODE);
    say("at address %p\nWith stack:\n", fault->pc);
    for (word at = fault->sp, i = 0; i < 16; i++, at += sizeof(word))
        say("%p: %s\n", at, "INVALID");
    idle();
}

void on_syscall(long number, word argument, word pc, word sp)
{
    struct fault fault = {FAULT_CAP, argument, 0, pc, sp};
    switch (number) {
    case PUT_CHAR:
        if (told())
            put_byte((char)argument);
        return;
    case HALT:
        if (told())
            say("Debug halt syscall from user thread %p \"%s\"\n", THREAD, NODE);
        halt();
    case YIELD:
        return;
    case SEND:
        if (told())
            say("\033[0m\033[30;1m<<\033[0m\033[32mseL4(CPU 0)\033[0m\033[30;1m [decodeInvocation/643 T%p \"%s\" "
                "@%h]: Attempted to invoke a null cap #%u.>>\033[0m\n", THREAD, NODE, pc, argument);
        return;
    case RECV:
        if (argument == NULL_CAP)
            idle(); /* nobody sends anything */
        on_fault(&fault);
    case CALL:
        on_fault(&fault);
    default:
        fault.kind = FAULT_SYSCALL;
        fault.address = (word)number;
        on_fault(&fault);
    }
}
