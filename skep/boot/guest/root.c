/* The root task: does what it was told to do wrong, or is ready. */
#include "guest.h"

#define NOWHERE 0x10

long invoke(long number, word argument);
void undefined(void);
void privileged(void);

void put_byte(char byte) { invoke(PUT_CHAR, (word)byte); }

const struct bootinfo *bootinfo;
/* As slow=, but in the file, behind a mark to find it by. */
volatile struct {
    char mark[8];
    word turns;
} slowness = {{'s', 'k', 'e', 'p', 's', 'l', 'o', 'w'}, 0};

__attribute__((noinline)) void ready(void)
{
    say("ROOT: ready\n");
}

void root(const struct bootinfo *info, const struct choice *choice)
{
    const char *what = choice->what;
    bootinfo = info;
    volatile word *nowhere = (volatile word *)hidden(NOWHERE);
    say("ROOT: start, bootinfo at %p\n", (word)info);
    for (volatile word i = 0; i < choice->slow + slowness.turns; i++)
        ;
    if (same(what, "vm-read") || same(what, "null-fault") || same(what, "timeout-fault") ||
        same(what, "unknown-fault"))
        (void)*nowhere;
    if (same(what, "vm-write"))
        *nowhere = 1;
    if (same(what, "vm-code"))
        ((void (*)(void))nowhere)();
    if (same(what, "cap"))
        invoke(CALL, 0);
    if (same(what, "cap-receive"))
        invoke(RECV, 0);
    if (same(what, "syscall"))
        invoke(77, 0);
    if (same(what, "undefined"))
        undefined();
    if (same(what, "privileged"))
        privileged();
    if (same(what, "debug-halt"))
        invoke(HALT, 0);
    for (int i = 0; same(what, "null-cap") && i < 919; i++)
        invoke(SEND, NULL_CAP);
    while (same(what, "spin"))
        ;
    for (word line = 1; same(what, "flood"); line++)
        say("ROOT: line %u of what does not end\n", line);
    ready();
    if (same(what, "suite")) {
        say("<testsuite>\nStarting test 1\n");
        for (;;)
            ;
    }
    for (;;)
        invoke(RECV, NULL_CAP);
}
