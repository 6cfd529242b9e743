/* Runs a forked child instruction by instruction and kills it after the k-th. Loaded by stepping.py
 * into the process that forks the children, which is their tracer: a parent may trace its children
 * even where nobody may trace strangers.
 *
 * The window lies between two calls of getppid, the cheapest system call that nothing else makes.
 * The first instruction of the library under test that is met in the window enters the call, and
 * on the stack lies the address to which the call returns: what is dead there was answered.
 *
 * A step costs two changes of process. Forks of one process run through nearly the same addresses,
 * so a later one is let run at full speed up to an address that an earlier one met in the window for
 * the first time, and is stepped from there. */
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>

#ifndef __x86_64__
#error "steps x86-64 only: register names, and the address that a call leaves on the stack"
#endif

#define SYSCALL_STOP (SIGTRAP | 0x80)
#define SYSCALL_BYTES 2
#define BREAKPOINT 0xcc

enum phase { BEFORE, INSIDE, RETURNED };

typedef struct {
    uint64_t code_from, code_to; /* the library's instructions */
    uint64_t start;              /* 0: step from the window's beginning; else from there on */
    uint64_t return_to, stack;   /* where start lies inside the call: what was found at its entry */
    int64_t kill_after;          /* steps */
    uint64_t *trace;             /* NULL, or where to note the address after each step */
    int64_t trace_max;
    int32_t phase; /* of start */
} orders;

typedef struct {
    int64_t steps, entered_at, returned_at; /* -1: not met */
    uint64_t return_to, stack, died_at;
    int32_t phase, ended; /* ended: the window's end was reached first */
} outcome;

int trace_me(void) { return ptrace(PTRACE_TRACEME, 0, NULL, NULL) ? errno : 0; }

static uint64_t reg(pid_t pid, size_t offset) {
    return (uint64_t)ptrace(PTRACE_PEEKUSER, pid, (void *)offset, NULL);
}
#define REG(pid, name) reg(pid, offsetof(struct user_regs_struct, name))

/* Lets it go on in the given way -> the signal that stopped it, -1 when it ended. */
static int resume(pid_t pid, int how) {
    int status;
    if (ptrace(how, pid, NULL, NULL) || waitpid(pid, &status, 0) != pid) return -1;
    return WIFSTOPPED(status) ? WSTOPSIG(status) : -1;
}

/* Runs to the next beginning or end of getppid -> 0; or to what stopped it before -> the signal. */
static int to_mark(pid_t pid) {
    for (;;) {
        int sign = resume(pid, PTRACE_SYSCALL);
        if (sign != SYSCALL_STOP) return sign;
        if (REG(pid, orig_rax) == SYS_getppid) return 0;
    }
}

/* Up to the return of getppid; its address, 0 when that failed. */
static uint64_t to_window(pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) return 0;
    void *options = (void *)(PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    if (ptrace(PTRACE_SETOPTIONS, pid, NULL, options)) return 0;
    return to_mark(pid) || to_mark(pid) ? 0 : REG(pid, rip);
}

static int run_to(pid_t pid, uint64_t start, outcome *out) {
    void *at = (void *)start, *rip = (void *)offsetof(struct user_regs_struct, rip);
    errno = 0;
    long word = ptrace(PTRACE_PEEKTEXT, pid, at, NULL);
    if (errno || ptrace(PTRACE_POKETEXT, pid, at, (void *)((word & ~0xffL) | BREAKPOINT))) return -1;
    int sign = to_mark(pid);
    if (sign == 0) return out->ended = 1, out->phase = RETURNED, 0; /* it went another way */
    if (sign != SIGTRAP || REG(pid, rip) != start + 1) return -1;
    if (ptrace(PTRACE_POKETEXT, pid, at, (void *)word)) return -1;
    return ptrace(PTRACE_POKEUSER, pid, rip, at) ? -1 : 0;
}

static void note_phase(pid_t pid, const orders *given, outcome *out, uint64_t at) {
    if (out->phase == BEFORE && at >= given->code_from && at < given->code_to) {
        out->stack = REG(pid, rsp);
        out->return_to = (uint64_t)ptrace(PTRACE_PEEKDATA, pid, (void *)out->stack, NULL);
        out->phase = INSIDE, out->entered_at = out->steps;
    } else if (out->phase == INSIDE && at == out->return_to && REG(pid, rsp) > out->stack) {
        out->phase = RETURNED, out->returned_at = out->steps;
    }
}

static int step(pid_t pid, const orders *given, uint64_t mark, outcome *out) {
    while (!out->ended && out->steps < given->kill_after) {
        if (resume(pid, PTRACE_SINGLESTEP) != SIGTRAP) return -1;
        uint64_t at = REG(pid, rip);
        if (at == mark - SYSCALL_BYTES) return out->ended = 1, 0;
        if (given->trace && out->steps < given->trace_max) given->trace[out->steps] = at;
        out->steps++;
        note_phase(pid, given, out, at);
    }
    return 0;
}

/* The child is gone when this returns, in any case. 0, or -1 when it did not go as it should. */
int step_and_kill(pid_t pid, const orders *given, outcome *out) {
    int status;
    *out = (outcome){.entered_at = -1, .returned_at = -1, .return_to = given->return_to,
                     .stack = given->stack, .phase = given->phase};
    uint64_t mark = to_window(pid);
    int failed = mark == 0;
    if (!failed && given->start) failed = run_to(pid, given->start, out);
    if (!failed) failed = step(pid, given, mark, out);
    if (!failed) out->died_at = REG(pid, rip);
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) == pid && !WIFSIGNALED(status) && !WIFEXITED(status)) continue;
    return failed || !WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL ? -1 : 0;
}
