/* What RB_STEP means in the kernel that the tests build (-include, see stepping.py):
 *
 *   RINGBUF_STEP=name:nth:signal   the process raises that signal at its nth passing of that step
 *   RINGBUF_STEP_LOG=path          first it appends the name there, so that a test knows it was hit
 *
 * The environment is read anew at every step: an actor arms itself right before the deed.
 */
#ifndef RINGBUF_STEPS_H
#define RINGBUF_STEPS_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void rb_note_step(const char *name) {
    char line[64];
    int length = snprintf(line, sizeof line, "%s\n", name);
    int fd = open(getenv("RINGBUF_STEP_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (fd < 0 || write(fd, line, (size_t)length) != length) abort();
    close(fd);
}

/* Not every part in C has steps. */
__attribute__((unused)) static void rb_step(const char *name) {
    static _Atomic unsigned passings;
    const char *order = getenv("RINGBUF_STEP");
    size_t length = strlen(name);
    unsigned nth;
    int number;
    if (!order || strncmp(order, name, length) || order[length] != ':') return;
    if (sscanf(order + length, ":%u:%d", &nth, &number) != 2) abort();
    if (++passings != nth) return;
    rb_note_step(name);
    raise(number); /* at this thread: not one instruction more */
}

#define RB_STEP(name) rb_step(#name)

#endif
