/* From multiboot's 32 bits to long mode, and the ways in and out of user mode. */
    .file "x86_boot.S"
#define HIGH 0xffffffff80000000

    .section .phys, "awx"
    .code32
    .align 4
    .long 0x1badb002, 2, -(0x1badb002 + 2)
    .globl _start
_start:
    movl $boot_stack, %esp
    movl %ebx, %edi             /* multiboot information */
    movl $0x80000001, %eax
    cpuid
    testl $(1 << 26), %edx      /* pages of 1 GiB */
    jz no_huge_page
    movl $pml4, %eax
    movl %eax, %cr3
    movl %cr4, %eax
    orl $0x20, %eax             /* PAE */
    movl %eax, %cr4
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x101, %eax            /* LME, SCE */
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax
    movl %eax, %cr0
    lgdt gdt_pointer
    ljmp $8, $long_mode

no_huge_page:
    movl $reject, %esi
1:  lodsb
    testb %al, %al
    jz 2f
    movw $0x3f8, %dx
    outb %al, %dx
    jmp 1b
2:  cli
    hlt
    jmp 2b
reject: .asciz "Huge page not supported by the processor\r\n"

    .code64
long_mode:
    movw $16, %ax
    movw %ax, %ss
    movw %ax, %ds
    movw %ax, %es
    movq $kernel_stack, %rsp
    movl %edi, %edi
    movabsq $start, %rax
    jmp *%rax

    .align 8
    .globl gdt
gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff /* kernel code 8, data 16 */
    .quad 0, 0x00cff2000000ffff, 0x00affa000000ffff /* user data 32, code 40, as sysret wants them */
    .quad 0, 0                                      /* 48: the TSS */
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt

    .align 4096
    .globl pml4, user_tables
pml4:
    .quad user_tables + 7
    .fill 510, 8, 0
    .quad high + 3
user_tables:                    /* the first GiB, until user mode as it is */
    .quad low + 7
    .fill 511, 8, 0
high:                           /* -2 GiB: the first GiB of memory */
    .fill 510, 8, 0
    .quad 0x83, 0
    .globl low
low:                            /* 2 MiB each; [2] becomes the root task's */
    .set at, 0
    .rept 512
    .quad at + 0x83
    .set at, at + 0x200000
    .endr
    .fill 256, 1, 0
boot_stack:

    .text
    .globl enter_user_at
enter_user_at:                  /* (pc, sp, first argument, second) */
    movq %rsi, %r8
    movq %rdi, %r9
    movq %rdx, %rdi
    movq %rcx, %rsi
    pushq $(32 | 3)
    pushq %r8
    pushq $0x202
    pushq $(40 | 3)
    pushq %r9
    iretq

    .globl on_trap, syscall_entry
/* A stub for each exception; those that bring no error code push 0. */
    .macro trap number
    .if !((\number == 8) || (\number >= 10 && \number <= 14) || (\number == 17))
    pushq $0
    .endif
    pushq $\number
    jmp common
    .align 16
    .endm
    .align 16
    .globl traps
traps:
    .set number, 0
    .rept 32
    trap number
    .set number, number + 1
    .endr
common:
    movq %rsp, %rdi
    cld
    call on_trap
1:  hlt
    jmp 1b

    .globl on_tick, tick_entry
tick_entry:
    .irp register, rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11
    pushq %\register
    .endr
    cld
    call on_tick
    .irp register, r11, r10, r9, r8, rdi, rsi, rdx, rcx, rax
    popq %\register
    .endr
    iretq

syscall_entry:                  /* number in rdx, argument in rdi; rcx: where to go on */
    movq %rsp, user_sp(%rip)
    leaq kernel_stack(%rip), %rsp
    pushq %rcx
    pushq %r11
    movq %rdi, %rsi
    movq %rdx, %rdi
    leaq -2(%rcx), %rdx         /* the syscall itself */
    movq user_sp(%rip), %rcx
    cld
    call on_syscall
    popq %r11
    popq %rcx
    movq user_sp(%rip), %rsp
    sysretq

    .bss
    .align 16
    .fill 8192, 1, 0
    .globl kernel_stack
kernel_stack:
user_sp:
    .quad 0
    .section .note.GNU-stack, "", @progbits
