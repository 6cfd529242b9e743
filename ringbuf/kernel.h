/* The ring: a bounded queue in shared memory that any of its processes may leave by SIGKILL.
 *
 * No Python in here. The protocol, in the order in which a message lives:
 *
 *   put      (writers' lock)  copy into slot tail % N        then ONE release store of tail
 *   take     (readers' lock)  owner = me; copy into free cells of my hand, each marked with its
 *                             sequence;                       then ONE release store of head
 *   release  (no lock)        cell HELD(sequence) -> EMPTY by compare-and-swap
 *
 * [head, tail) is what waits; the capacity counts exactly that. What a reader took lies in its
 * hand, so one slow message never blocks the ring.
 *
 * Killed where, and what the next holder of that lock (told by EOWNERDEAD) may assume:
 *
 *   field          written by            order    if its writer died
 *   -------------  --------------------  -------  --------------------------------------------------
 *   slot bytes     holder of writers     plain    unfinished unless below tail; overwritten later
 *   slot.stamp     holder of writers     release  0 while the bytes change: lookers skip the slot
 *   tail           holder of writers     release  everything below it is whole
 *   cached head    holder of writers     plain    at most stale, and then only too small
 *   closed         holder of writers     release  set or not set
 *   owner          holder of readers     relaxed  names the hand whose newest cells are in doubt
 *   cell bytes     holder of readers     plain    in doubt while its sequence is not below head
 *   cell.stamp     holder of readers,    release  not below head: the copy was not published, the
 *                  its reader (release)           slot still counts: REPAIR clears the cell
 *                                                 below head: the item is that reader's, for good
 *   cell.crashes,  who owns the index's  relaxed  one count less, of a death that its supervisor
 *   .slow, note    processes: blame               did not survive
 *   begun          its reader, blame     relaxed  names the cell that was worked on alone, or none
 *   head           holder of readers     release  everything below it lies, or lay, in a hand
 *   cached tail    holder of readers     plain    at most stale, and then only too small
 *   event words    everybody             seq_cst  a wake may be missing: every sleep ends by itself
 *                                                 after RB_RECHECK_NS and looks again
 *
 * Stores of a killed process reach memory in program order as far as it came (retirement is in
 * order, and the kernel's hand-over of the lock is a barrier), so keeping the COMPILER from moving
 * them is enough for the kill points; the release/acquire pairs are for the living.
 */
#ifndef RINGBUF_KERNEL_H
#define RINGBUF_KERNEL_H

#ifndef __linux__
#error "ringbuf needs Linux: robust process-shared mutexes, futexes, pidfds"
#endif

#include <assert.h>
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

/* An instant at which a process can be made to die or stop: nothing here, for it is the tests that
 * build this file with a meaning for it (tests/ringbuf/steps.h). Every name is hit by every run. */
#ifndef RB_STEP
#define RB_STEP(name) ((void)0)
#endif

#define RB_MAGIC 0x474e495252485352ull /* "RSHRRING" */
#define RB_LAYOUT 2u
#define RB_PAGE 4096u
#define RB_LINE 128u /* two cache lines: the adjacent-line prefetcher pairs them */
#define RB_LABEL_MAX 1024u
#define RB_CAPACITY_MAX (1u << 24)
#define RB_SLOT_BYTES_MAX (1u << 24)
#define RB_PARTICIPANTS_MAX 4096u
#define RB_HAND_MAX 65536u
#define RB_RECHECK_NS 100000000ll /* the longest sleep before looking again: killed wakers */
#define RB_CONFIRM_NS 50000000ll  /* a late wake may still be on its way: not counted as rescued */
#define RB_PATIENCE_NS 2000000ll  /* how long a call that must not block waits for a lock */

#define RB_SEQUENCE_MAX (1ull << 62) /* thousands of years of puts: more is damage, and no stamp is 0 */

enum rb_status {
    RB_OK, RB_FULL, RB_EMPTY, RB_CLOSED, RB_BUSY, RB_HANDFULL, RB_BROKEN, RB_NOTHELD, RB_DAMAGED
};

typedef struct { /* page 0, written once */
    uint64_t magic;
    uint32_t layout;
    uint32_t mutex_bytes; /* another libc's mutex would be misread */
    uint64_t file_bytes;
    uint64_t capacity;
    uint32_t slot_bytes, readers, writers, hand;
    uint64_t epoch; /* random: tells this ring from every other */
    uint8_t boot_id[16];
    uint32_t label_bytes;
    char label[RB_LABEL_MAX];
    uint32_t crc; /* of everything before it */
} rb_header;
static_assert(sizeof(rb_header) <= RB_PAGE, "the header fits its page");

typedef struct {
    alignas(RB_LINE) pthread_mutex_t lock;
    uint64_t cached;                             /* the opposite cursor as last seen */
    _Atomic uint32_t owner;                      /* readers' side: index + 1 of the hand being filled */
    _Atomic uint64_t repairs, cleared, rescues;  /* counted for tests and operators */
    alignas(RB_LINE) _Atomic uint64_t cursor;    /* writers' side: tail; readers' side: head */
    alignas(RB_LINE) _Atomic uint32_t event;     /* who of this side waits sleeps here */
} rb_side;

typedef struct {
    rb_side writers, readers;
    alignas(RB_LINE) _Atomic uint32_t closed;
    alignas(RB_LINE) _Atomic uint64_t commits; /* bumped by readers' owners after each commit */
    _Atomic uint32_t commit_event;
} rb_shared;

typedef struct {
    alignas(64) _Atomic uint64_t identity; /* pid | start ticks << 22, one word so that it is whole */
    _Atomic uint64_t begun; /* of a reader: stamp of the item that it works on alone; 0: none */
} rb_participant;

#define RB_TRIAL (1ull << 63) /* begun for a shorter time than an item has: being slow is no crash */

typedef struct { /* a page per reader: how the last one that was blamed for an item ended */
    uint32_t bytes;
    char text[RB_PAGE - 4];
} rb_note;
static_assert(sizeof(rb_note) == RB_PAGE, "a note is a page");

typedef struct {
    _Atomic uint64_t stamp; /* sequence + 1; 0 while the bytes change */
    uint8_t key[16];
    uint64_t accepted_ns; /* CLOCK_REALTIME */
    uint32_t payload_bytes;
    uint16_t header_bytes; /* the record header lies before the payload; its meaning is the user's */
    uint16_t header_version;
    uint32_t round;
    uint32_t crc; /* crc32c of key .. round, record header, payload, stamp */
    uint8_t reserved[16];
} rb_slot;
static_assert(sizeof(rb_slot) == 64, "a slot's head is one cache line");
static_assert(offsetof(rb_slot, crc) == 44, "the checksum follows what it covers");

typedef struct {
    _Atomic uint64_t stamp; /* sequence + 1; 0: free */
    _Atomic uint32_t attempts;
    _Atomic uint32_t crashes, slow; /* readers that it ended; that were ended for its sake, on trial */
    uint8_t reserved[44];
    rb_slot slot;
} rb_cell;
static_assert(sizeof(rb_cell) == 128, "a cell is a line and a slot");

typedef struct { /* one process's view; geometry is copied, never read again from shared memory */
    uint8_t *base;
    uint64_t file_bytes, capacity, epoch;
    uint32_t slot_bytes, readers, writers, hand;
    uint32_t lock_word, lock_kind; /* where a mutex says what it is, and what it has to say */
    rb_shared *shared;
    rb_participant *participants; /* readers first, then writers */
    rb_note *notes; /* one per reader */
    uint8_t *stats, *slots, *hands;
    uint64_t cell_bytes;
} rb_ring;

typedef uint32_t __attribute__((may_alias)) rb_half;
typedef uint64_t __attribute__((may_alias)) rb_word;

typedef struct {
    const uint8_t *key, *header, *payload;
    uint32_t payload_bytes, round, crc;
    uint16_t header_bytes, header_version;
    uint64_t accepted_ns;
} rb_entry;

/* ---- crc32c ------------------------------------------------------------------------------- */

#define RB_CRC_POLYNOMIAL 0x82f63b78u /* Castagnoli's, lowest bit first */
#define RB_CRC_WORDS_MAX 42u          /* of each of the three parts that are summed side by side */

static uint32_t rb_crc_table[256];
static struct { uint64_t two, one; } rb_crc_skip[RB_CRC_WORDS_MAX + 1];

static uint32_t rb_crc_times_x(uint32_t c) { return (c >> 1) ^ (RB_CRC_POLYNOMIAL & (0u - (c & 1))); }

/* rb_crc_skip[n]: what carries a sum over 2n and over n words. Multiplied without carries and put
 * where the last word is summed, which adds x^33, x^(64n - 33) is a skip of n words. */
static void rb_crc_init(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++) c = rb_crc_times_x(c);
        rb_crc_table[i] = c;
    }
    uint32_t power = 0x80000000u; /* x^0 */
    for (uint32_t exponent = 0; exponent <= 128 * RB_CRC_WORDS_MAX - 33; exponent++) {
        uint32_t words = (exponent + 33) / 64;
        if ((exponent + 33) % 64 == 0) {
            if (words <= RB_CRC_WORDS_MAX) rb_crc_skip[words].one = power;
            if (words % 2 == 0) rb_crc_skip[words / 2].two = power;
        }
        power = rb_crc_times_x(power);
    }
}

static uint32_t rb_crc_portable(uint32_t crc, const uint8_t *p, size_t n) {
    while (n--) crc = rb_crc_table[(crc ^ *p++) & 0xff] ^ (crc >> 8);
    return crc;
}

#if defined(__x86_64__)
#define RB_CRC_TARGET __attribute__((target("sse4.2,pclmul")))
typedef long long rb_pair __attribute__((vector_size(16)));

static uint64_t rb_word_at(const uint8_t *p) {
    uint64_t word;
    memcpy(&word, p, 8);
    return word;
}

RB_CRC_TARGET static uint64_t rb_crc_carry(uint64_t crc, uint64_t skip) {
    rb_pair product = __builtin_ia32_pclmulqdq128((rb_pair){(long long)crc}, (rb_pair){(long long)skip}, 0);
    return (uint64_t)product[0];
}

/* An instruction sums a word in three cycles, but begins one in every cycle: so three parts at once. */
RB_CRC_TARGET static uint64_t rb_crc_thirds(uint64_t crc, const uint8_t *p, uint32_t words) {
    uint64_t second = 0, third = 0;
    const uint8_t *q = p + 8 * words, *t = q + 8 * words, *last = q - 8;
    for (; p < last; p += 8, q += 8, t += 8) {
        crc = __builtin_ia32_crc32di(crc, rb_word_at(p));
        second = __builtin_ia32_crc32di(second, rb_word_at(q));
        third = __builtin_ia32_crc32di(third, rb_word_at(t));
    }
    crc = __builtin_ia32_crc32di(crc, rb_word_at(p));
    second = __builtin_ia32_crc32di(second, rb_word_at(q));
    uint64_t carried = rb_crc_carry(crc, rb_crc_skip[words].two) ^
                       rb_crc_carry(second, rb_crc_skip[words].one);
    return __builtin_ia32_crc32di(third, rb_word_at(t) ^ carried);
}

RB_CRC_TARGET static uint32_t rb_crc_sse42(uint32_t crc, const uint8_t *p, size_t n) {
    uint64_t wide = crc;
    while (n >= 3 * 8 * 3) {
        uint32_t words = n / 24 < RB_CRC_WORDS_MAX ? (uint32_t)(n / 24) : RB_CRC_WORDS_MAX;
        wide = rb_crc_thirds(wide, p, words);
        p += 24 * words, n -= 24 * words;
    }
    for (; n >= 8; n -= 8, p += 8) wide = __builtin_ia32_crc32di(wide, rb_word_at(p));
    crc = (uint32_t)wide;
    if (n & 4) {
        uint32_t half;
        memcpy(&half, p, 4);
        crc = __builtin_ia32_crc32si(crc, half);
        p += 4;
    }
    for (n &= 3; n; n--) crc = __builtin_ia32_crc32qi(crc, *p++);
    return crc;
}
#endif

static uint32_t rb_crc(uint32_t crc, const void *p, size_t n) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul"))
        return rb_crc_sse42(crc, p, n);
#endif
    return rb_crc_portable(crc, p, n);
}

/* ---- time and futexes --------------------------------------------------------------------- */

static int64_t rb_clock_ns(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (int64_t)t.tv_sec * 1000000000ll + t.tv_nsec;
}

static struct timespec rb_timespec(int64_t ns) {
    return (struct timespec){.tv_sec = ns / 1000000000ll, .tv_nsec = ns % 1000000000ll};
}

static int64_t rb_deadline(int64_t ns) { return rb_clock_ns(CLOCK_MONOTONIC) + ns; }

static int rb_futex_wait(_Atomic uint32_t *word, uint32_t seen, int64_t ns) {
    struct timespec t = rb_timespec(ns);
    return syscall(SYS_futex, word, FUTEX_WAIT, seen, &t, NULL, 0) == 0 ? 0 : errno;
}

/* Bit 0: somebody sleeps. The rest counts. Call after publishing whatever a sleeper looks for. */
static void rb_signal(_Atomic uint32_t *event) {
    atomic_thread_fence(memory_order_seq_cst);
    uint32_t seen = atomic_load_explicit(event, memory_order_relaxed);
    if (!(seen & 1)) return;
    RB_STEP(signal.seen);
    /* A lost race was won by another signal, or by a sleeper that looks again after our publish. */
    atomic_compare_exchange_strong(event, &seen, (seen + 2) & ~1u);
    RB_STEP(signal.cleared);
    syscall(SYS_futex, event, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

/* Announces a sleep; the caller looks once more before rb_sleep. */
static uint32_t rb_announce(_Atomic uint32_t *event) {
    uint32_t seen = atomic_fetch_or(event, 1) | 1;
    atomic_thread_fence(memory_order_seq_cst);
    return seen;
}

/* ---- locks and repair --------------------------------------------------------------------- */

static rb_cell *rb_cell_at(const rb_ring *r, uint32_t reader, uint32_t cell) {
    return (rb_cell *)(r->hands + ((uint64_t)reader * r->hand + cell) * r->cell_bytes);
}

static rb_slot *rb_slot_at(const rb_ring *r, uint64_t sequence) {
    return (rb_slot *)(r->slots + (sequence % r->capacity) * r->slot_bytes);
}

static uint32_t rb_room(const rb_ring *r) { return r->slot_bytes - (uint32_t)sizeof(rb_slot); }

/* The holder died inside take. Its copies that head does not cover are not its own: the slots still
 * hold them. Idempotent, and a killed repair is met again: the lock is declared consistent last. */
static void rb_repair(rb_ring *r, rb_side *side) {
    RB_STEP(repair.begun);
    uint32_t owner = atomic_load_explicit(&side->owner, memory_order_relaxed);
    uint64_t head = atomic_load_explicit(&r->shared->readers.cursor, memory_order_relaxed);
    if (owner && owner <= r->readers) {
        for (uint32_t i = 0; i < r->hand; i++) {
            rb_cell *cell = rb_cell_at(r, owner - 1, i);
            uint64_t stamp = atomic_load_explicit(&cell->stamp, memory_order_acquire);
            if (stamp && stamp - 1 >= head) {
                RB_STEP(repair.found);
                atomic_store_explicit(&cell->stamp, 0, memory_order_release);
                RB_STEP(repair.cleared);
                atomic_fetch_add_explicit(&side->cleared, 1, memory_order_relaxed);
            }
        }
    }
    atomic_store_explicit(&side->owner, 0, memory_order_release);
    RB_STEP(repair.disowned);
    atomic_fetch_add_explicit(&side->repairs, 1, memory_order_relaxed);
    RB_STEP(repair.counted);
    pthread_mutex_consistent(&side->lock);
    RB_STEP(repair.consistent);
}

static int rb_init_lock(pthread_mutex_t *lock) {
    pthread_mutexattr_t attr;
    int failed = pthread_mutexattr_init(&attr);
    failed = failed ? failed : pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    failed = failed ? failed : pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    failed = failed ? failed : pthread_mutex_init(lock, &attr);
    pthread_mutexattr_destroy(&attr);
    return failed;
}

/* libc ends the process (an assertion, even an illegal instruction) over a mutex whose kind is
 * damaged. What the kind is, is libc's own: it is the word that initialisation sets. */
static int rb_learn_lock(rb_ring *r) {
    pthread_mutex_t fresh;
    memset(&fresh, 0, sizeof fresh);
    int failed = rb_init_lock(&fresh);
    const rb_half *words = (const rb_half *)&fresh;
    r->lock_word = 0;
    while (!words[r->lock_word] && r->lock_word < sizeof fresh / sizeof *words - 1) r->lock_word++;
    r->lock_kind = words[r->lock_word];
    return failed ? failed : pthread_mutex_destroy(&fresh);
}

static int rb_lock_fits(const rb_ring *r, const rb_side *side) {
    const rb_half *words = (const rb_half *)&side->lock;
    return __atomic_load_n(&words[r->lock_word], __ATOMIC_RELAXED) == r->lock_kind;
}

typedef struct {
    rb_ring *ring;
    rb_side *side;
    int repaired;
} rb_guard;

/* patience_ns 0: one try. A stopped holder is never robbed: RB_BUSY. */
static int rb_lock(rb_guard *guard, rb_ring *r, rb_side *side, int64_t patience_ns) {
    *guard = (rb_guard){.ring = r, .side = side};
    if (!rb_lock_fits(r, side)) return RB_BROKEN;
    int got = pthread_mutex_trylock(&side->lock);
    if (got == EBUSY && patience_ns > 0) {
        struct timespec until = rb_timespec(rb_deadline(patience_ns));
        got = pthread_mutex_clocklock(&side->lock, CLOCK_MONOTONIC, &until);
    }
    if (got == EOWNERDEAD) rb_repair(r, side), guard->repaired = 1, got = 0;
    if (got == 0) return RB_OK;
    return got == EBUSY || got == ETIMEDOUT || got == EAGAIN ? RB_BUSY : RB_BROKEN;
}

static void rb_unlock(const rb_guard *guard) {
    pthread_mutex_unlock(&guard->side->lock);
    if (!guard->repaired) return;
    /* The dead holder may have published without waking anybody. */
    RB_STEP(unlock.repaired);
    rb_signal(&guard->ring->shared->readers.event);
    RB_STEP(unlock.signalled);
    rb_signal(&guard->ring->shared->writers.event);
}

/* ---- looking ------------------------------------------------------------------------------ */

static uint64_t rb_head(const rb_ring *r) {
    return atomic_load_explicit(&r->shared->readers.cursor, memory_order_acquire);
}

static uint64_t rb_tail(const rb_ring *r) {
    return atomic_load_explicit(&r->shared->writers.cursor, memory_order_acquire);
}

static int rb_closed(const rb_ring *r) {
    return (int)atomic_load_explicit(&r->shared->closed, memory_order_acquire);
}

static uint64_t rb_depth(const rb_ring *r) {
    uint64_t head = rb_head(r), tail = rb_tail(r);
    uint64_t depth = tail - head; /* head may have moved in between: clamp */
    return depth > r->capacity ? r->capacity : depth;
}

static int rb_span_fits(const rb_ring *r, uint64_t head, uint64_t tail) {
    return head <= tail && tail - head <= r->capacity && tail <= RB_SEQUENCE_MAX;
}

/* Neither cursor alone says it: both move. While head stood still, tail was within capacity of it. */
static int rb_cursors_fit(const rb_ring *r) {
    for (uint64_t head = rb_head(r), tail;;) {
        tail = rb_tail(r);
        uint64_t again = rb_head(r);
        if (again == head) return rb_span_fits(r, head, tail);
        head = again;
    }
}

/* In this order: a put that came before close is then seen in tail. */
static int rb_closed_and_empty(const rb_ring *r) {
    if (!rb_closed(r)) return 0;
    uint64_t tail = rb_tail(r);
    return tail == rb_head(r);
}

static uint32_t rb_data_bytes(const rb_ring *r, const rb_slot *slot) {
    uint64_t bytes = (uint64_t)slot->payload_bytes + slot->header_bytes;
    return bytes > rb_room(r) ? rb_room(r) : (uint32_t)bytes; /* lengths may be damaged */
}

static uint32_t rb_entry_crc(const rb_entry *e) {
    rb_slot fixed = {.accepted_ns = e->accepted_ns,
                     .payload_bytes = e->payload_bytes,
                     .header_bytes = e->header_bytes,
                     .header_version = e->header_version,
                     .round = e->round};
    memcpy(fixed.key, e->key, 16);
    uint32_t crc = rb_crc(~0u, fixed.key, offsetof(rb_slot, crc) - offsetof(rb_slot, key));
    crc = rb_crc(crc, e->header, e->header_bytes);
    return rb_crc(crc, e->payload, e->payload_bytes);
}

/* `head` is private, with the stamp that it was published with; its data may lie in a hand. */
static int rb_intact(const rb_ring *r, const rb_slot *head, const uint8_t *data, uint64_t stamp) {
    if ((uint64_t)head->payload_bytes + head->header_bytes > rb_room(r)) return 0;
    uint32_t crc = rb_crc(~0u, head->key, offsetof(rb_slot, crc) - offsetof(rb_slot, key));
    crc = rb_crc(crc, data, rb_data_bytes(r, head));
    return rb_crc(crc, &stamp, 8) == head->crc;
}

/* Reads, in whole words, what others may be changing: the one race in here. What it reads counts only
 * once a guard that stood still has vouched for it. Their stores are plain, so by the letter of C11
 * this is undefined; a thread sanitizer, which goes by the letter, leaves out this function alone. */
__attribute__((no_sanitize("thread"))) static void rb_peek(void *to, const void *from, size_t bytes) {
    rb_word *into = to;
    const volatile rb_word *words = from;
    for (size_t i = 0; i < (bytes + 7) / 8; i++) into[i] = words[i];
}

/* Copies a slot that others may be changing: whole and with that stamp, or not at all. */
static int rb_copy_guarded(const rb_ring *r, _Atomic uint64_t *guard, uint64_t stamp,
                           const rb_slot *from, rb_slot *to) {
    if (atomic_load_explicit(guard, memory_order_acquire) != stamp) return 0;
    rb_peek(to, from, sizeof *to);
    rb_peek(to + 1, from + 1, rb_data_bytes(r, to));
    atomic_thread_fence(memory_order_acquire);
    return atomic_load_explicit(guard, memory_order_relaxed) == stamp;
}

/* Where a look at what waits begins and ends: never more than fits, whatever the cursors say. */
static uint64_t rb_waiting(const rb_ring *r, uint64_t *end) {
    *end = rb_tail(r);
    uint64_t head = rb_head(r);
    if (*end > head && *end - head > r->capacity) *end = head + r->capacity;
    return head;
}

typedef struct {
    uint32_t attempts, crashes, slow;
} rb_marks;

static rb_marks rb_marks_of(rb_cell *cell) {
    return (rb_marks){atomic_load_explicit(&cell->attempts, memory_order_relaxed),
                      atomic_load_explicit(&cell->crashes, memory_order_relaxed),
                      atomic_load_explicit(&cell->slow, memory_order_relaxed)};
}

typedef struct {
    const uint8_t *key;
    rb_slot *copy; /* slot_bytes of private memory */
    uint64_t stamp;
    uint32_t reader;
    rb_marks marks;
} rb_search;

static int rb_has_key(const rb_slot *slot, const uint8_t *key) {
    uint64_t seen[2];
    rb_peek(seen, slot->key, sizeof seen);
    return !memcmp(seen, key, sizeof seen); /* a torn look is judged by the copy */
}

/* Goes with the flow: slots first, hands after, so that a moving item is met at least once. */
static int rb_search_slots(const rb_ring *r, rb_search *s) {
    uint64_t end;
    for (uint64_t at = rb_waiting(r, &end); at < end; at++) {
        rb_slot *slot = rb_slot_at(r, at);
        if (!rb_has_key(slot, s->key)) continue;
        if (!rb_copy_guarded(r, &slot->stamp, at + 1, slot, s->copy)) continue;
        if (memcmp(s->copy->key, s->key, 16)) continue;
        s->stamp = at + 1;
        return 1;
    }
    atomic_thread_fence(memory_order_acquire); /* whoever overwrote a slot saw its item in a hand */
    return 0;
}

static int rb_search_hands(const rb_ring *r, rb_search *s) {
    for (uint32_t i = 0; i < r->readers * r->hand; i++) {
        rb_cell *cell = rb_cell_at(r, i / r->hand, i % r->hand);
        uint64_t stamp = atomic_load_explicit(&cell->stamp, memory_order_acquire);
        if (!stamp || !rb_has_key(&cell->slot, s->key)) continue;
        if (!rb_copy_guarded(r, &cell->stamp, stamp, &cell->slot, s->copy)) continue;
        if (memcmp(s->copy->key, s->key, 16)) continue;
        s->stamp = stamp, s->reader = i / r->hand;
        s->marks = rb_marks_of(cell);
        return 1;
    }
    return 0;
}

/* ---- put ---------------------------------------------------------------------------------- */

static void rb_fill(rb_ring *r, uint64_t sequence, const rb_entry *e) {
    rb_slot *slot = rb_slot_at(r, sequence);
    uint64_t stamp = sequence + 1;
    RB_STEP(put.filling);
    atomic_store_explicit(&slot->stamp, 0, memory_order_relaxed);
    atomic_thread_fence(memory_order_release); /* lookers see the 0 before any changed byte */
    RB_STEP(put.unstamped);
    memcpy(slot->key, e->key, 16);
    slot->accepted_ns = e->accepted_ns;
    slot->payload_bytes = e->payload_bytes;
    slot->header_bytes = e->header_bytes;
    slot->header_version = e->header_version;
    slot->round = e->round;
    slot->crc = rb_crc(e->crc, &stamp, 8);
    uint8_t *data = (uint8_t *)(slot + 1);
    memcpy(data, e->header, e->header_bytes);
    RB_STEP(put.half_copied);
    memcpy(data + e->header_bytes, e->payload, e->payload_bytes);
    RB_STEP(put.copied);
    atomic_store_explicit(&slot->stamp, stamp, memory_order_release);
    RB_STEP(put.stamped);
}

/* Puts as many of `entries` as fit, one lock and one store of tail for all of them. */
static int rb_put(rb_ring *r, const rb_entry *entries, uint32_t count, int64_t patience_ns,
                  uint64_t *first, uint32_t *put) {
    rb_guard guard;
    rb_side *side = &r->shared->writers;
    RB_STEP(put.begun);
    int status = rb_lock(&guard, r, side, patience_ns);
    *put = 0;
    if (status != RB_OK) return status;
    RB_STEP(put.locked);
    uint64_t tail = atomic_load_explicit(&side->cursor, memory_order_relaxed);
    if (atomic_load_explicit(&r->shared->closed, memory_order_relaxed)) {
        rb_unlock(&guard);
        return RB_CLOSED;
    }
    uint64_t waiting = tail - side->cached; /* at most: head may have moved on */
    if (waiting > r->capacity || r->capacity - waiting < count) side->cached = rb_head(r);
    if (!rb_span_fits(r, side->cached, tail)) {
        rb_unlock(&guard);
        return RB_DAMAGED;
    }
    uint64_t room = r->capacity - (tail - side->cached);
    uint32_t fits = room < count ? (uint32_t)room : count;
    for (uint32_t i = 0; i < fits; i++) rb_fill(r, tail + i, &entries[i]);
    RB_STEP(put.publishing);
    if (fits) atomic_store_explicit(&side->cursor, tail + fits, memory_order_release);
    RB_STEP(put.published);
    rb_unlock(&guard);
    RB_STEP(put.unlocked);
    *first = tail;
    *put = fits;
    if (fits) rb_signal(&r->shared->readers.event);
    return fits ? RB_OK : RB_FULL;
}

static int rb_set_closed(rb_ring *r, uint32_t closed, int64_t patience_ns) {
    rb_guard guard;
    int status = rb_lock(&guard, r, &r->shared->writers, patience_ns);
    if (status != RB_OK) return status;
    RB_STEP(close.locked);
    atomic_store_explicit(&r->shared->closed, closed, memory_order_release);
    RB_STEP(close.stored);
    rb_unlock(&guard);
    RB_STEP(close.unlocked);
    rb_signal(&r->shared->readers.event);
    RB_STEP(close.signalled);
    rb_signal(&r->shared->writers.event);
    return RB_OK;
}

/* ---- take --------------------------------------------------------------------------------- */

static uint32_t rb_living_readers(const rb_ring *r) {
    uint32_t living = 0;
    for (uint32_t i = 0; i < r->readers; i++)
        living += atomic_load_explicit(&r->participants[i].identity, memory_order_relaxed) != 0;
    return living ? living : 1;
}

static void rb_copy_to_hand(rb_ring *r, uint64_t sequence, rb_cell *cell) {
    const rb_slot *slot = rb_slot_at(r, sequence);
    atomic_thread_fence(memory_order_release); /* lookers see the cell free before it changes */
    memcpy(&cell->slot, slot, sizeof *slot);
    RB_STEP(take.half_copied);
    memcpy(&cell->slot + 1, slot + 1, rb_data_bytes(r, &cell->slot));
    atomic_store_explicit(&cell->attempts, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->crashes, 0, memory_order_relaxed);
    atomic_store_explicit(&cell->slow, 0, memory_order_relaxed);
    RB_STEP(take.copied);
    atomic_store_explicit(&cell->stamp, sequence + 1, memory_order_release);
    RB_STEP(take.stamped);
}

/* Moves up to `max` items into the cells named by `cells`, the last of these first: they are a stack.
 * Everybody else's share is left. */
static int rb_take(rb_ring *r, uint32_t reader, const uint32_t *cells, uint32_t max,
                   int64_t patience_ns, uint64_t *first, uint32_t *taken) {
    rb_guard guard;
    rb_side *side = &r->shared->readers;
    *taken = 0;
    RB_STEP(take.begun);
    int status = rb_lock(&guard, r, side, patience_ns);
    if (status != RB_OK) return status;
    RB_STEP(take.locked);
    uint64_t head = atomic_load_explicit(&side->cursor, memory_order_relaxed);
    uint64_t waiting = side->cached - head; /* at least: tail may have moved on */
    if (waiting < max || waiting > r->capacity) waiting = (side->cached = rb_tail(r)) - head;
    if (!rb_span_fits(r, head, side->cached)) {
        rb_unlock(&guard);
        return RB_DAMAGED;
    }
    if (!waiting) {
        status = rb_closed_and_empty(r) ? RB_CLOSED : RB_EMPTY;
        rb_unlock(&guard);
        return status;
    }
    uint32_t living = rb_living_readers(r);
    uint64_t share = (waiting + living - 1) / living;
    uint32_t count = share < max ? (uint32_t)share : max;
    atomic_store_explicit(&side->owner, reader + 1, memory_order_relaxed);
    atomic_signal_fence(memory_order_seq_cst); /* named before the first cell is marked */
    RB_STEP(take.named);
    for (uint32_t i = 0; i < count; i++)
        rb_copy_to_hand(r, head + i, rb_cell_at(r, reader, cells[max - 1 - i]));
    RB_STEP(take.publishing);
    atomic_store_explicit(&side->cursor, head + count, memory_order_release);
    RB_STEP(take.published);
    atomic_store_explicit(&side->owner, 0, memory_order_release);
    RB_STEP(take.disowned);
    rb_unlock(&guard);
    RB_STEP(take.unlocked);
    *first = head;
    *taken = count;
    rb_signal(&r->shared->writers.event);
    return RB_OK;
}

static int rb_release(rb_ring *r, uint32_t reader, uint32_t cell, uint64_t sequence) {
    uint64_t held = sequence + 1;
    RB_STEP(release.begun);
    int freed = atomic_compare_exchange_strong(&rb_cell_at(r, reader, cell)->stamp, &held, 0);
    RB_STEP(release.freed);
    return freed ? RB_OK : RB_NOTHELD;
}

/* ---- the mapping -------------------------------------------------------------------------- */

static uint64_t rb_align(uint64_t n) { return (n + RB_PAGE - 1) / RB_PAGE * RB_PAGE; }

/* Fills in offsets from the geometry; base may be NULL to learn file_bytes only. */
static void rb_lay_out(rb_ring *r, uint8_t *base) {
    uint64_t people = (uint64_t)r->readers + r->writers, at = RB_PAGE;
    uintptr_t from = (uintptr_t)base; /* offsets from NULL are undefined for pointers */
    r->base = base;
    r->shared = (rb_shared *)(from + at), at += rb_align(sizeof(rb_shared));
    r->participants = (rb_participant *)(from + at), at += rb_align(people * sizeof(rb_participant));
    r->stats = (uint8_t *)(from + at), at += people * RB_PAGE; /* one page each, one writer each */
    r->notes = (rb_note *)(from + at), at += (uint64_t)r->readers * RB_PAGE;
    r->slots = (uint8_t *)(from + at), at += rb_align(r->capacity * r->slot_bytes);
    r->cell_bytes = sizeof(rb_cell) - sizeof(rb_slot) + r->slot_bytes;
    r->hands = (uint8_t *)(from + at), at += rb_align((uint64_t)r->readers * r->hand * r->cell_bytes);
    r->file_bytes = at;
}

static uint32_t rb_header_crc(const rb_header *h) {
    return rb_crc(~0u, h, offsetof(rb_header, crc));
}

/* The file is all zeros but for what is written here. */
static int rb_initialise(rb_ring *r, const uint8_t *boot_id, const char *label, uint32_t bytes) {
    rb_header *h = (rb_header *)r->base;
    int failed = rb_init_lock(&r->shared->writers.lock);
    if (failed || (failed = rb_init_lock(&r->shared->readers.lock))) return failed;
    h->layout = RB_LAYOUT, h->mutex_bytes = sizeof(pthread_mutex_t);
    h->file_bytes = r->file_bytes, h->capacity = r->capacity;
    h->slot_bytes = r->slot_bytes, h->readers = r->readers;
    h->writers = r->writers, h->hand = r->hand, h->epoch = r->epoch;
    memcpy(h->boot_id, boot_id, 16);
    memcpy(h->label, label, bytes);
    h->label_bytes = bytes;
    h->magic = RB_MAGIC;
    h->crc = rb_header_crc(h);
    return 0;
}

#endif
