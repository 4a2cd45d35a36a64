/* virt: the serial port, user mode's tables, traps. */
#include "arm.h"

void enter_user_at(word pc, word sp, word first, word second);
_Noreturn void start(const struct handover *);
_Noreturn void invalid_vector(void);
void on_trap(word argument, word pc, word sp, word address, word status, long number);

void put_byte(char byte) { put_at(UART + HIGH, byte); }

void idle(void)
{
    __asm__ volatile("msr daifclr, #14; msr daifset, #1");
    for (;;)
        __asm__ volatile("wfi");
}

void stop(void)
{
    __asm__ volatile("msr daifset, #15");
    for (;;)
        ;
}

void reset(void)
{
    register word call __asm__("x0") = 0x84000009; /* PSCI's SYSTEM_RESET */
    __asm__ volatile("hvc #0" ::"r"(call));
    __builtin_unreachable();
}

/* Clocks need no calibration here. */
void wait_periods(word count) { (void)count; }

#define DISTRIBUTOR (0x08000000ul + HIGH)
#define INTERFACE (0x08010000ul + HIGH)
#define TIMER 27
static volatile word ticks;
void on_interrupt(void);

static volatile uint32_t *device(word at) { return (volatile uint32_t *)at; }
static void start_timer(void) { __asm__ volatile("msr cntv_tval_el0, %0" ::"r"(62500 * 5ul)); /* 5 ms */ }

void on_interrupt(void)
{
    uint32_t number = *device(INTERFACE + 0xc);
    ticks++;
    start_timer();
    *device(INTERFACE + 0x10) = number;
}

void take_ticks(word count)
{
    *device(DISTRIBUTOR) = 1, *device(DISTRIBUTOR + 0x100) = 1u << TIMER;
    *device(INTERFACE + 4) = 0xf0, *device(INTERFACE) = 1;
    start_timer();
    __asm__ volatile("msr cntv_ctl_el0, %0" ::"r"(1ul));
    while (ticks < count)
        __asm__ volatile("msr daifclr, #2; wfi; msr daifset, #2");
    __asm__ volatile("msr cntv_ctl_el0, xzr");
}

void invalid_vector(void)
{
    say("\n\nKERNEL INVALID VECTOR ENTRY!\n");
    halt();
}

void on_trap(word argument, word pc, word sp, word address, word status, long number)
{
    struct fault fault = {FAULT_DATA, address, status, pc, sp};
    switch (status >> 26) {
    case 0x15:
        on_syscall(number, argument, pc - 4, sp);
        return;
    case 0x20:
        fault.kind = FAULT_CODE;
        break;
    case 0x24:
        break;
    default:
        fault.kind = FAULT_EXCEPTION, fault.address = status, fault.status = 0;
    }
    on_fault(&fault);
}

static word top[512] __attribute__((aligned(4096))), middle[512] __attribute__((aligned(4096)));

void enter_user(word pc, word sp, word argument, word offset)
{
    top[0] = ((word)middle - HIGH) | TABLE;
    middle[2] = USER_MEMORY | USER_BLOCK;
    /* What it was told stands behind BootInfo. */
    copy((void *)(argument + 0x1000 + offset), &choice, sizeof choice);
    __asm__ volatile("msr ttbr0_el1, %0; isb; tlbi vmalle1; dsb sy; ic iallu; isb" ::"r"((word)top - HIGH) : "memory");
    enter_user_at(pc, sp, argument, argument + 0x1000);
    __builtin_unreachable();
}

void start(const struct handover *from)
{
    begin(from->words);
    if (told())
        say("Bootstrapping kernel\n");
    kernel(&from->root, OFFSET + HIGH);
}
