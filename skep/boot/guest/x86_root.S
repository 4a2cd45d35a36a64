    .globl _start, invoke, undefined, privileged
_start:
    call root
    ud2
invoke:                         /* (number, argument): rdx, rdi */
    .file "x86_root.S"
    movq %rdi, %rdx
    movq %rsi, %rdi
    syscall
    ret
undefined:
    ud2
privileged:
    hlt
    .section .note.GNU-stack, "", @progbits
