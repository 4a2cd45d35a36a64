/* A PE32+ image, its header written out: the linker that makes kernels makes this too. One section has all;
   nothing in it depends on where firmware puts it. Source: PE Format (Microsoft), 3 and 4. */

#ifdef __aarch64__
#define MACHINE 0xaa64
#else
#define MACHINE 0x8664
#endif
#define ALIGN 0x1000

        .section .header, "a"
        .globl header
header:
        .ascii "MZ"
        .org 0x3c
        .long pe - header
pe:
        .ascii "PE\0\0"
        .short MACHINE
        .short 1                        /* sections */
        .long 0, 0, 0                   /* time 0: the same bytes every time */
        .short sections - optional
        .short 0x206                    /* executable, no line numbers, no debugging */
optional:
        .short 0x20b                    /* PE32+ */
        .byte 0, 0
        .long image_size - ALIGN, 0, 0
        .long efi_main - header
        .long ALIGN
        .quad 0                         /* where it would like to be */
        .long ALIGN, ALIGN
        .short 0, 0, 0, 0, 0, 0
        .long 0
        .long image_size
        .long ALIGN                     /* size of headers */
        .long 0
        .short 10, 0                    /* an EFI application */
        .quad 0, 0, 0, 0
        .long 0
        .long 6                         /* data directories; the fifth is for signatures */
        .quad 0, 0, 0, 0, 0, 0
sections:
        .ascii ".all\0\0\0\0"
        .long image_size - ALIGN, ALIGN, image_size - ALIGN, ALIGN
        .long 0, 0, 0
        .long 0xe0000020                /* code that is read, written and run */
