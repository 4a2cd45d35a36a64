/* An EFI application: tells whether Secure Boot is on, says that it is ready, and waits.
   Source: UEFI 2.10, 4.3 (system table), 8.2 (variables), 12.4 (text output). */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned long u64;

#ifdef __x86_64__
#define EFI __attribute__((ms_abi))
#else
#define EFI
#endif

struct output {
        void *reset;
        EFI u64 (*print)(struct output *, const u16 *);
};

struct runtime {
        u64 header[3];
        void *time[6];
        EFI u64 (*get_variable)(const u16 *, const u8 *, unsigned *, u64 *, void *);
};

struct system {
        u64 header[3];
        u16 *vendor;
        u64 revision;
        void *in_handle, *in, *out_handle;
        struct output *out;
        void *err_handle, *err;
        struct runtime *runtime;
};

static const u8 global[16] = { 0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11,
                               0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c };

EFI u64
efi_main(void *image, struct system *system)
{
        u8 on = 0;
        u64 size = sizeof on;

        (void)image;
        system->runtime->get_variable(u"SecureBoot", global, 0, &size, &on);
        system->out->print(system->out, on ? u"EFI: SecureBoot=1\r\n" : u"EFI: SecureBoot=0\r\n");
        system->out->print(system->out, u"EFI: ready\r\n");
        for (;;)
#ifdef __x86_64__
                __asm__ volatile("hlt");
#else
                __asm__ volatile("wfi");
#endif
}
