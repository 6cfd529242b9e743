/* Two threads put, take, release and close on one ring, and a third one looks for what they put:
 * for a run under the thread sanitizer.
 *
 *   threads one FILE ITEMS    all through one mapping
 *   threads apart FILE ITEMS  too, but one only puts and one only takes: no lock orders them
 *   threads own FILE ITEMS    each through a mapping of its own, as processes would
 *
 * The sanitizer goes by addresses. Through one mapping it sees every pair of accesses, and whether
 * a lock or a release and an acquire orders them. Through more than one it takes the same bytes for
 * different ones and sees no race; what then counts is that each item still comes out once: nothing
 * in the kernel may rest on everybody having the same address. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* gcc 12 and clang 14 do not know that this locks, but know its older sister. */
static int clocklock(pthread_mutex_t *lock, clockid_t clock, const struct timespec *until) {
    struct timespec now, real;
    clock_gettime(clock, &now);
    clock_gettime(CLOCK_REALTIME, &real);
    long long ns = (until->tv_sec - now.tv_sec + real.tv_sec) * 1000000000ll + until->tv_nsec -
                   now.tv_nsec + real.tv_nsec;
    real.tv_sec = ns / 1000000000ll, real.tv_nsec = ns % 1000000000ll;
    return pthread_mutex_timedlock(lock, &real);
}
#define pthread_mutex_clocklock clocklock

#include "kernel.h"

#define PLAYERS 2
#define BATCH 2
#define PAYLOAD_MAX 56u
#define SLEEP_NS 1000000ll
#define CHECK(true)                                                                                \
    do                                                                                             \
        if (!(true)) fprintf(stderr, "line %d: %s\n", __LINE__, #true), _exit(3);                  \
    while (0)

typedef struct {
    rb_ring ring;
    uint32_t me;
    int puts, takes;
    _Atomic uint64_t put; /* the looker goes by it */
    uint64_t sleeps;
    pthread_t thread;
} player;

static uint64_t items, all; /* each one that puts puts `items` */
static _Atomic uint64_t taken;
static _Atomic uint32_t *seen;
static player players[PLAYERS];

static int over(void) {
    return atomic_load_explicit(&taken, memory_order_relaxed) == all;
}

static uint64_t puts_of(const player *p) {
    return atomic_load_explicit(&p->put, memory_order_relaxed);
}

static void put_some(player *p) {
    uint8_t keys[BATCH][16] = {{0}}, payload[PAYLOAD_MAX];
    rb_entry entries[BATCH];
    uint64_t first, done = puts_of(p);
    uint32_t count = items - done < BATCH ? (uint32_t)(items - done) : BATCH, put;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t n = p->me * items + done + i;
        memcpy(keys[i], &n, sizeof n);
        memset(payload, (int)p->me, sizeof payload);
        entries[i] = (rb_entry){.key = keys[i], .header = payload, .payload = payload,
                                .payload_bytes = n % PAYLOAD_MAX, .header_version = 1};
        entries[i].crc = rb_entry_crc(&entries[i]);
    }
    int status = count ? rb_put(&p->ring, entries, count, SLEEP_NS, &first, &put) : RB_FULL;
    CHECK(status == RB_OK || status == RB_FULL || status == RB_BUSY);
    if (status == RB_OK) atomic_store_explicit(&p->put, done + put, memory_order_relaxed);
}

static void take_some(player *p) {
    static const uint32_t cells[BATCH] = {1, 0};
    uint32_t count;
    uint64_t first, n;
    int status = rb_take(&p->ring, p->me, cells, BATCH, SLEEP_NS, &first, &count);
    CHECK(status == RB_OK || status == RB_EMPTY || status == RB_BUSY);
    for (uint32_t i = 0; status == RB_OK && i < count; i++) {
        uint32_t used = cells[BATCH - 1 - i];
        rb_cell *cell = rb_cell_at(&p->ring, p->me, used);
        const uint8_t *data = (const uint8_t *)(&cell->slot + 1);
        CHECK(rb_intact(&p->ring, &cell->slot, data, first + i + 1));
        memcpy(&n, cell->slot.key, sizeof n);
        atomic_fetch_add_explicit(&seen[n], 1, memory_order_relaxed);
        CHECK(rb_release(&p->ring, p->me, used, first + i) == RB_OK);
        CHECK(rb_release(&p->ring, p->me, used, first + i) == RB_NOTHELD);
        atomic_fetch_add_explicit(&taken, 1, memory_order_relaxed);
    }
}

typedef struct {
    rb_ring ring;
    uint64_t looks, in_ring, in_hand;
    pthread_t thread;
} looker;

static void look(looker *l, uint64_t n) {
    uint8_t copy[128] __attribute__((aligned(64))), key[16] = {0};
    rb_search search = {.key = key, .copy = (rb_slot *)copy};
    memcpy(key, &n, sizeof n);
    l->looks++;
    CHECK(rb_cursors_fit(&l->ring));
    int in_ring = rb_search_slots(&l->ring, &search);
    if (!in_ring && !rb_search_hands(&l->ring, &search)) return;
    CHECK(rb_intact(&l->ring, search.copy, (const uint8_t *)(search.copy + 1), search.stamp));
    l->in_ring += in_ring, l->in_hand += !in_ring;
}

/* Looks for the last that somebody put, and for what he is about to put. */
static void *watch(void *context) {
    looker *l = context;
    while (!over()) {
        uint64_t who = l->looks % PLAYERS, at = puts_of(&players[who]);
        look(l, who * items + (l->looks & PLAYERS && at ? at - 1 : at));
    }
    return NULL;
}

static void sleep_until_something_comes(player *p) {
    rb_side *side = &p->ring.shared->readers;
    uint32_t event = rb_announce(&side->event);
    if (rb_depth(&p->ring)) return;
    rb_futex_wait(&side->event, event, SLEEP_NS);
    p->sleeps++;
}

static void *play(void *context) {
    player *p = context;
    while (!over()) {
        if (p->puts) put_some(p);
        if (p->takes) take_some(p);
        if (puts_of(p) == items * p->puts && !rb_depth(&p->ring)) sleep_until_something_comes(p);
    }
    uint32_t count;
    uint64_t first;
    static const uint32_t cells[1] = {0};
    CHECK(rb_set_closed(&p->ring, 1, RB_RECHECK_NS) == RB_OK);
    CHECK(rb_put(&p->ring, NULL, 0, RB_RECHECK_NS, &first, &count) == RB_CLOSED);
    CHECK(rb_take(&p->ring, p->me, cells, 1, RB_RECHECK_NS, &first, &count) == RB_CLOSED);
    return NULL;
}

static void attach(rb_ring *ring, int fd) {
    rb_lay_out(ring, NULL);
    void *base = mmap(NULL, ring->file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    CHECK(base != MAP_FAILED);
    rb_lay_out(ring, base);
    CHECK(rb_learn_lock(ring) == 0);
}

/* The fast way and the portable one: one sum. */
static void check_sums(void) {
    uint8_t bytes[1100];
    for (uint32_t i = 0; i < sizeof bytes; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (uint32_t n = 0; n <= sizeof bytes; n++)
        CHECK(rb_crc(n, bytes + sizeof bytes - n, n) ==
              rb_crc_portable(n, bytes + sizeof bytes - n, n));
}

int main(int argc, char **argv) {
    static looker third;
    static const uint8_t boot_id[16];
    rb_ring ring = {.capacity = 3, .slot_bytes = 128, .readers = PLAYERS, .writers = 1, .hand = BATCH};
    CHECK(argc == 4);
    int fd = open(argv[2], O_RDWR | O_CREAT | O_EXCL, 0600), own = !strcmp(argv[1], "own");
    int apart = !strcmp(argv[1], "apart");
    items = strtoull(argv[3], NULL, 10), all = apart ? items : PLAYERS * items;
    seen = calloc(all, sizeof *seen);
    rb_crc_init();
    check_sums();
    rb_lay_out(&ring, NULL);
    CHECK(fd >= 0 && seen && ftruncate(fd, (off_t)ring.file_bytes) == 0);
    attach(&ring, fd);
    CHECK(rb_initialise(&ring, boot_id, "", 0) == 0);
    third.ring = players[0].ring = players[1].ring = ring;
    if (own) attach(&players[1].ring, fd), attach(&third.ring, fd);
    for (uint32_t i = 0; i < PLAYERS; i++) {
        players[i].me = i, players[i].puts = !apart || !i, players[i].takes = !apart || i;
        CHECK(pthread_create(&players[i].thread, NULL, play, &players[i]) == 0);
    }
    CHECK(pthread_create(&third.thread, NULL, watch, &third) == 0);
    for (uint32_t i = 0; i < PLAYERS; i++) CHECK(pthread_join(players[i].thread, NULL) == 0);
    CHECK(pthread_join(third.thread, NULL) == 0);
    for (uint64_t n = 0; n < all; n++) CHECK(seen[n] == 1);
    printf("{\"items\": %llu, \"looks\": %llu, \"in_ring\": %llu, \"in_hand\": %llu, "
           "\"sleeps\": %llu}\n", (unsigned long long)taken, (unsigned long long)third.looks,
           (unsigned long long)third.in_ring, (unsigned long long)third.in_hand,
           (unsigned long long)(players[0].sleeps + players[1].sleeps));
    return 0;
}
