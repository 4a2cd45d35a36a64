/* The kernel's entry, its vectors, and the way to user mode. */
    .file "arm_boot.S"
    .section .boot, "ax"
    .globl _start
_start:                         /* x0: what the loader hands over */
    ldr x1, =kernel_stack
    mov sp, x1
    ldr x1, =vectors
    msr vbar_el1, x1
    b start
    .ltorg

    .section .vectors, "ax"
    .balign 2048
vectors:
    .macro vector to
    .balign 128
    b \to
    .endm
    .rept 4
    vector unexpected
    .endr
    vector of_kernel
    vector of_interrupt
    .rept 2
    vector unexpected
    .endr
    vector of_user
    .rept 7
    vector unexpected
    .endr

    .text
unexpected:
    b invalid_vector
of_kernel:
    mrs x0, elr_el1
    mrs x1, far_el1
    mrs x2, esr_el1
    b on_kernel_fault
of_interrupt:
    .irp pair, "x0, x1", "x2, x3", "x4, x5", "x6, x7", "x8, x9", "x10, x11", "x12, x13", "x14, x15", "x16, x17", "x18, x30"
    stp \pair, [sp, #-16]!
    .endr
    bl on_interrupt
    .irp pair, "x18, x30", "x16, x17", "x14, x15", "x12, x13", "x10, x11", "x8, x9", "x6, x7", "x4, x5", "x2, x3", "x0, x1"
    ldp \pair, [sp], #16
    .endr
    eret
of_user:                        /* a system call has its number in x7, its argument in x0 */
    stp x29, x30, [sp, #-16]!
    mrs x1, elr_el1
    mrs x2, sp_el0
    mrs x3, far_el1
    mrs x4, esr_el1
    mov x5, x7
    bl on_trap
    ldp x29, x30, [sp], #16
    eret

    .globl enter_user_at
enter_user_at:                  /* (pc, sp, first argument, second) */
    msr elr_el1, x0
    msr sp_el0, x1
    msr spsr_el1, xzr
    mov x0, x2
    mov x1, x3
    eret

    .bss
    .balign 16
    .skip 8192
kernel_stack:
    .section .note.GNU-stack, "", %progbits
