/* Text, the command line's words, memory. */
#include "guest.h"
#include <stdarg.h>

int same(const char *a, const char *b)
{
    for (; *a && *a == *b; a++, b++)
        ;
    return *a == *b;
}

word word_of(const char *text)
{
    word found = 0;
    for (; *text >= '0' && *text <= '9'; text++)
        found = found * 10 + (word)(*text - '0');
    return found;
}

/* The compiler calls these by name. */
void *memcpy(void *to, const void *from, word size)
{
    for (word i = 0; i < size; i++)
        ((char *)to)[i] = ((const char *)from)[i];
    return to;
}

void *memset(void *to, int byte, word size)
{
    for (word i = 0; i < size; i++)
        ((char *)to)[i] = (char)byte;
    return to;
}

void copy(void *to, const void *from, word size) { memcpy(to, from, size); }
void fill(void *to, word size) { memset(to, 0, size); }

static void take(char *to, word size, const char *from)
{
    for (; size > 1 && *from && *from != ' '; size--)
        *to++ = *from++;
    *to = 0;
}

static const char *after(const char *words, const char *name)
{
    for (; *words; words++) {
        const char *at = words, *said = name;
        for (; *said && *at == *said; at++, said++)
            ;
        if (!*said)
            return at;
    }
    return 0;
}

void choose(struct choice *to, const char *words)
{
    const char *said;
    take(to->what, sizeof to->what, (said = after(words, "do=")) ? said : "ready");
    take(to->form, sizeof to->form, (said = after(words, "form=")) ? said : "debug");
    to->wait = (said = after(words, "wait=")) ? word_of(said) : 0;
    to->ticks = (said = after(words, "ticks=")) ? word_of(said) : 0;
    to->slow = (said = after(words, "slow=")) ? word_of(said) : 0;
}

static void put(char byte)
{
    if (byte == '\n')
        put_byte('\r');
    put_byte(byte);
}

static void put_number(word value, word base)
{
    char digits[24];
    int n = 0;
    do
        digits[n++] = "0123456789abcdef"[value % base];
    while (value /= base);
    while (n)
        put(digits[--n]);
}

void say(const char *format, ...)
{
    va_list said;
    va_start(said, format);
    for (; *format; format++) {
        if (*format != '%') {
            put(*format);
            continue;
        }
        char kind = *++format;
        if (kind == 's') {
            for (const char *text = va_arg(said, const char *); *text; text++)
                put(*text);
            continue;
        }
        word value = va_arg(said, word);
        if (kind == 'x' || (kind == 'p' && value))
            put('0'), put('x');
        put_number(value, kind == 'u' ? 10 : 16);
    }
    va_end(said);
}
