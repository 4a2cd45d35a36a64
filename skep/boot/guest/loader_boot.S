/* The loader's entry, and the archive that it unpacks. */
    .file "loader_boot.S"
    .text
    .globl _start
_start:
    ldr x1, =loader_stack
    mov sp, x1
    mrs x1, cpacr_el1
    b start
    .globl jump
jump:                           /* (entry, argument) */
    mov x2, x0
    mov x0, x1
    br x2
    .ltorg

    .section .rodata
    .balign 16
    .globl _archive_start, _archive_end
_archive_start:
    .incbin "archive.cpio"
_archive_end:

    .bss
    .balign 16
    .skip 8192
loader_stack:
    .section .note.GNU-stack, "", %progbits
