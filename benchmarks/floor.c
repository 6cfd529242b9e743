/* The floor: how fast a ring in shared memory can be that has one writer, one reader, and no safety.
 *
 * No locks, no checksums, no keys, no wake-ups (whoever waits spins), nothing survives a death. Each
 * side keeps a copy of the other's cursor and looks again only when that copy says full or empty;
 * cursors lie on lines of their own and are stored once for a batch. Frozen: it is a yardstick, and
 * a yardstick that improves measures nothing.
 *
 * Two pairs of calls: floor_send and floor_receive run in C alone, message after message between two
 * buffers; floor_put_list and floor_take_list are what a Python program could call, bytes in and
 * bytes out.
 *
 * benchmarks/ends.py compiles this with `cc -O2` at run time and calls it through ctypes.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

#define LINE 64
#define SPINS_BEFORE_YIELD 1000

typedef struct {
    uint64_t capacity;
    uint64_t stride; /* of a slot: 8 bytes of length, then the message */
    char pad_0[LINE - 16];
    _Atomic uint64_t tail; /* the writer's */
    uint64_t seen_head;
    char pad_1[LINE - 16];
    _Atomic uint64_t head; /* the reader's */
    uint64_t seen_tail;
    char pad_2[LINE - 16];
    char slots[];
} floor_ring;

static uint64_t stride_of(uint64_t message_bytes)
{
    return (8 + message_bytes + LINE - 1) / LINE * LINE;
}

uint64_t floor_bytes(uint64_t capacity, uint64_t message_bytes)
{
    return sizeof(floor_ring) + capacity * stride_of(message_bytes);
}

/* `memory` is zeroed. */
void floor_init(floor_ring *ring, uint64_t capacity, uint64_t message_bytes)
{
    ring->capacity = capacity;
    ring->stride = stride_of(message_bytes);
}

static void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void pause_a_little(unsigned *spins)
{
    if (++*spins % SPINS_BEFORE_YIELD == 0)
        sched_yield();
    else
        relax();
}

/* At least one and at most `want` free slots, as many as there are. */
static uint64_t wait_room(floor_ring *ring, uint64_t tail, uint64_t want)
{
    unsigned spins = 0;
    while (ring->capacity - (tail - ring->seen_head) < want) {
        ring->seen_head = atomic_load_explicit(&ring->head, memory_order_acquire);
        if (tail - ring->seen_head < ring->capacity)
            break;
        pause_a_little(&spins);
    }
    uint64_t room = ring->capacity - (tail - ring->seen_head);
    return room < want ? room : want;
}

static uint64_t wait_items(floor_ring *ring, uint64_t head, uint64_t want)
{
    unsigned spins = 0;
    while (ring->seen_tail - head < want) {
        ring->seen_tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
        if (ring->seen_tail != head)
            break;
        pause_a_little(&spins);
    }
    uint64_t items = ring->seen_tail - head;
    return items < want ? items : want;
}

static char *slot_at(floor_ring *ring, uint64_t sequence)
{
    return ring->slots + sequence % ring->capacity * ring->stride;
}

static void write_slot(floor_ring *ring, uint64_t sequence, const char *message, uint64_t length)
{
    char *slot = slot_at(ring, sequence);
    memcpy(slot, &length, 8);
    memcpy(slot + 8, message, length);
}

/* Sends `count` messages of `length` bytes, from a pool that is gone through again and again. */
void floor_send(floor_ring *ring, const char *pool, uint64_t pool_messages, uint64_t length,
                uint64_t count, uint64_t batch)
{
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    uint64_t next = 0;
    while (count) {
        uint64_t some = wait_room(ring, tail, count < batch ? count : batch);
        for (uint64_t i = 0; i < some; i++) {
            write_slot(ring, tail + i, pool + next * length, length);
            next = next + 1 == pool_messages ? 0 : next + 1;
        }
        tail += some;
        count -= some;
        atomic_store_explicit(&ring->tail, tail, memory_order_release);
    }
}

/* Receives `count` messages into `into`; returns the sum of their first bytes. */
uint64_t floor_receive(floor_ring *ring, char *into, uint64_t count, uint64_t batch)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t sum = 0;
    while (count) {
        uint64_t some = wait_items(ring, head, count < batch ? count : batch);
        for (uint64_t i = 0; i < some; i++) {
            uint64_t length;
            char *slot = slot_at(ring, head + i);
            memcpy(&length, slot, 8);
            memcpy(into, slot + 8, length);
            __asm__ volatile("" ::: "memory"); /* the copy is the work: none is left out */
            sum += (unsigned char)into[0];
        }
        head += some;
        count -= some;
        atomic_store_explicit(&ring->head, head, memory_order_release);
    }
    return sum;
}

/* Puts a list of bytes, all of it. */
PyObject *floor_put_list(floor_ring *ring, PyObject *messages)
{
    uint64_t count = (uint64_t)PyList_Size(messages), done = 0;
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    while (done < count) {
        uint64_t some = wait_room(ring, tail, count - done);
        for (uint64_t i = 0; i < some; i++) {
            PyObject *message = PyList_GET_ITEM(messages, (Py_ssize_t)(done + i));
            write_slot(ring, tail + i, PyBytes_AS_STRING(message),
                       (uint64_t)PyBytes_GET_SIZE(message));
        }
        tail += some;
        done += some;
        atomic_store_explicit(&ring->tail, tail, memory_order_release);
    }
    Py_RETURN_NONE;
}

/* A list of 1 to `most` messages. */
PyObject *floor_take_list(floor_ring *ring, uint64_t most)
{
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t some = wait_items(ring, head, most);
    PyObject *taken = PyList_New((Py_ssize_t)some);
    for (uint64_t i = 0; taken && i < some; i++) {
        uint64_t length;
        char *slot = slot_at(ring, head + i);
        memcpy(&length, slot, 8);
        PyObject *message = PyBytes_FromStringAndSize(slot + 8, (Py_ssize_t)length);
        if (!message) {
            Py_CLEAR(taken);
            break;
        }
        PyList_SET_ITEM(taken, (Py_ssize_t)i, message);
    }
    if (taken)
        atomic_store_explicit(&ring->head, head + some, memory_order_release);
    return taken;
}
