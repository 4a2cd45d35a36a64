/* Segments of an ELF64 file to memory. Whoever wrote the file is trusted: it is the project's own. */
#include "guest.h"

struct header {
    uint8_t ident[16];
    uint16_t type, machine;
    uint32_t version;
    word entry, phoff, shoff;
    uint32_t flags;
    uint16_t ehsize, phentsize, phnum, shentsize, shnum, shstrndx;
};
struct segment {
    uint32_t type, flags;
    word offset, vaddr, paddr, filesz, memsz, align;
};

int load(struct image *image, const void *file, word offset, int by_paddr)
{
    const struct header *header = file;
    const uint8_t *magic = header->ident;
    if (magic[0] != 0x7f || magic[1] != 'E' || magic[2] != 'L' || magic[3] != 'F' || magic[4] != 2)
        return 0;
    image->start = ~0ul, image->end = 0, image->entry = header->entry;
    const struct segment *each = (const void *)((const char *)file + header->phoff);
    for (int i = 0; i < header->phnum; i++, each++) {
        if (each->type != 1)
            continue;
        word at = by_paddr ? each->paddr : each->vaddr;
        if (at < image->start)
            image->start = at;
        if (at + each->memsz > image->end)
            image->end = at + each->memsz;
        char *to = (char *)(at + offset);
        copy(to, (const char *)file + each->offset, each->filesz);
        fill(to + each->filesz, each->memsz - each->filesz);
    }
    return 1;
}
