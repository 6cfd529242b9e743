/* The Python face of kernel.h: arguments in, items out, the GIL released around every wait.
 * One interpreter per process; the surface for users is ringbuf/ring.py, writer.py, reader.py. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <math.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "kernel.h"

#define FOREVER INT64_MAX

static PyObject *RingError, *Closed, *Empty, *HandFull, *Misfit, *NotHeld, *TooLarge;
static PyTypeObject *ItemType;
static unsigned forks; /* counts forks: what was attached before is not ours any more */

static void on_fork(void) { forks++; }

/* ---- arguments ---------------------------------------------------------------------------- */

static int gather(const char *call, const char *const *names, int required, PyObject *const *args,
                  Py_ssize_t nargs, PyObject *kwnames, PyObject **out) {
    int count = 0;
    while (names[count]) out[count++] = NULL;
    if (nargs > count)
        return PyErr_Format(PyExc_TypeError, "%s() takes at most %d arguments (%zd given)", call,
                            count, nargs), -1;
    for (Py_ssize_t i = 0; i < nargs; i++) out[i] = args[i];
    for (Py_ssize_t k = 0; kwnames && k < PyTuple_Size(kwnames); k++) {
        PyObject *name = PyTuple_GetItem(kwnames, k);
        int at = 0;
        while (names[at] && PyUnicode_CompareWithASCIIString(name, names[at])) at++;
        if (!names[at] || out[at])
            return PyErr_Format(PyExc_TypeError, "%s() got an unexpected argument %R", call, name), -1;
        out[at] = args[nargs + k];
    }
    for (int i = 0; i < required; i++)
        if (!out[i])
            return PyErr_Format(PyExc_TypeError, "%s() misses argument '%s'", call, names[i]), -1;
    return 0;
}

static int to_deadline(PyObject *timeout, int64_t *deadline) {
    *deadline = FOREVER;
    if (!timeout || timeout == Py_None) return 0;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred()) return -1;
    if (isnan(seconds)) return PyErr_SetString(PyExc_ValueError, "timeout is NaN"), -1;
    if (seconds < 1e9) *deadline = rb_deadline(seconds > 0 ? (int64_t)(seconds * 1e9) : 0);
    return 0;
}

/* ---- Mapping ------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    rb_ring ring;
    char label[RB_LABEL_MAX + 1];
    int open; /* 0: detached; calls are refused, those inside end, the last of them unmaps */
    _Atomic uint32_t users, leaving; /* changed with the GIL held; waits look without it */
    unsigned forks;
    Py_ssize_t parked; /* pending puts of this process: nobody overtakes them */
} Mapping;

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    int closed;
} Putter;

typedef struct {
    PyObject_HEAD
    Mapping *mapping;
    int closed; /* as far as here it is a Putter */
    uint32_t index, free_count, undelivered;
    uint64_t *stamps; /* per cell: what lies there; 0: free */
    uint8_t *delivered;
    uint32_t *free;  /* a stack of cells */
    uint32_t *order; /* the cells of the take at work, oldest item first */
    int busy;
} Taker;

static PyTypeObject *MappingType, *PutterType, *TakerType;

static PyObject *new_object(PyTypeObject *type) {
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return alloc(type, 0);
}

static void free_object(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int detached(void) { return PyErr_SetString(RingError, "this ring is detached"), -1; }

static int enter_leaving(Mapping *m) {
    if (m->forks != forks) {
        PyErr_SetString(RingError, "this ring was attached before a fork: attach it anew here");
        return -1;
    }
    if (!m->open) return detached();
    m->users++;
    return 0;
}

static int enter(Mapping *m) { return m->leaving ? detached() : enter_leaving(m); }

static void leave(Mapping *m) {
    if (--m->users) {
        return;
    } else if (m->open) {
        if (m->leaving) syscall(SYS_futex, &m->users, FUTEX_WAKE_PRIVATE, INT32_MAX, NULL, NULL, 0);
    } else if (m->ring.base) {
        munmap(m->ring.base, m->ring.file_bytes);
        m->ring.base = NULL;
    }
}

static PyObject *fail(int status) {
    switch (status) {
    case RB_CLOSED: PyErr_SetString(Closed, "the ring is closed"); break;
    case RB_BUSY:
        PyErr_SetString(RingError, "the ring's lock is held by a process that does not go on "
                                   "(stopped?); it is never robbed: let it go on, or end it");
        break;
    case RB_DAMAGED:
        PyErr_SetString(RingError, "the ring's memory is damaged: its cursors lie further apart "
                                   "than its capacity, or beyond any count of puts");
        break;
    default: PyErr_Format(RingError, "the ring's lock is beyond repair (status %d)", status);
    }
    return NULL;
}

static Mapping *new_mapping(void) {
    Mapping *m = (Mapping *)new_object(MappingType);
    if (m) m->forks = forks;
    return m;
}

static int map_file(Mapping *m, int fd, uint64_t bytes) {
    int error = rb_learn_lock(&m->ring);
    if (error) {
        PyErr_Format(RingError, "cannot make a robust lock: %s", strerror(error));
        return -1;
    }
    void *base = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (base == MAP_FAILED) return PyErr_SetFromErrno(PyExc_OSError), -1;
    rb_lay_out(&m->ring, base);
    m->open = 1;
    return 0;
}

static const char *geometry_fault(const rb_ring *r) {
    if (r->capacity < 1 || r->capacity > RB_CAPACITY_MAX) return "capacity";
    if (r->slot_bytes < 128 || r->slot_bytes > RB_SLOT_BYTES_MAX || r->slot_bytes % 64)
        return "slot_bytes";
    if (r->readers < 1 || r->readers > RB_PARTICIPANTS_MAX) return "readers";
    if (r->writers < 1 || r->writers > RB_PARTICIPANTS_MAX) return "writers";
    if (r->hand < 1 || r->hand > RB_HAND_MAX) return "hand";
    return NULL;
}

static PyObject *mapping_bytes_needed(PyObject *type, PyObject *args) {
    (void)type;
    PyObject *given[5];
    uint32_t n[5];
    if (!PyArg_ParseTuple(args, "OOOOO", &given[0], &given[1], &given[2], &given[3], &given[4]))
        return NULL;
    for (int i = 0; i < 5; i++) { /* what is too large for its field becomes 0: out of range, too */
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(given[i], &overflow);
        if (PyErr_Occurred()) return NULL;
        n[i] = overflow || value < 0 || value > UINT32_MAX ? 0 : (uint32_t)value;
    }
    rb_ring r = {.capacity = n[0], .slot_bytes = n[1], .readers = n[2], .writers = n[3], .hand = n[4]};
    const char *fault = geometry_fault(&r);
    if (fault)
        return PyErr_Format(PyExc_ValueError,
                            "%s is out of range: capacity %R (1..%u), slot_bytes %R (multiple of "
                            "64 in 128..%u), readers %R and writers %R (1..%u), hand %R (1..%u)",
                            fault, given[0], RB_CAPACITY_MAX, given[1], RB_SLOT_BYTES_MAX, given[2],
                            given[3], RB_PARTICIPANTS_MAX, given[4], RB_HAND_MAX);
    rb_lay_out(&r, NULL);
    return PyLong_FromUnsignedLongLong(r.file_bytes);
}

static PyObject *mapping_create(PyObject *type, PyObject *args) {
    (void)type;
    int fd;
    unsigned long long capacity, epoch;
    const char *boot_id, *label;
    Py_ssize_t boot_bytes, label_bytes;
    Mapping *m = new_mapping();
    if (!m) return NULL;
    rb_ring *r = &m->ring;
    if (!PyArg_ParseTuple(args, "iKIIIIKy#s#", &fd, &capacity, &r->slot_bytes, &r->readers,
                          &r->writers, &r->hand, &epoch, &boot_id, &boot_bytes, &label,
                          &label_bytes))
        goto failed;
    r->capacity = capacity, r->epoch = epoch;
    if (boot_bytes != 16 || label_bytes > RB_LABEL_MAX || geometry_fault(r)) {
        PyErr_Format(PyExc_ValueError, "label of %zd bytes (at most %u), boot id of %zd (16)",
                     label_bytes, RB_LABEL_MAX, boot_bytes);
        goto failed;
    }
    rb_lay_out(r, NULL);
    if (map_file(m, fd, r->file_bytes)) goto failed;
    memset(r->base, 0, r->file_bytes); /* every page is there before anybody relies on it */
    int error = rb_initialise(r, (const uint8_t *)boot_id, label, (uint32_t)label_bytes);
    if (error) {
        PyErr_Format(RingError, "cannot make a robust lock: %s", strerror(error));
        goto failed;
    }
    memcpy(m->label, label, label_bytes);
    return (PyObject *)m;
failed:
    Py_DECREF(m);
    return NULL;
}

static int is_text(const char *bytes, uint32_t count) {
    PyObject *text = PyUnicode_DecodeUTF8(bytes, count, NULL);
    if (!text) PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

/* Says why the header can't be used, NULL when it can; fills in the ring's geometry. */
static PyObject *header_fault(const rb_header *h, uint64_t file_bytes, const uint8_t *boot_id,
                              rb_ring *r) {
#define REFUSE(...) return PyUnicode_FromFormat(__VA_ARGS__)
    if (h->magic != RB_MAGIC) REFUSE("not a ring, or half made (no magic number)");
    if (h->layout != RB_LAYOUT) REFUSE("layout %u found, %u wanted", h->layout, RB_LAYOUT);
    if (h->crc != rb_header_crc(h)) REFUSE("the header's checksum is wrong");
    if (h->mutex_bytes != sizeof(pthread_mutex_t))
        REFUSE("locks of %u bytes found, %zu wanted", h->mutex_bytes, sizeof(pthread_mutex_t));
    r->capacity = h->capacity, r->slot_bytes = h->slot_bytes, r->readers = h->readers;
    r->writers = h->writers, r->hand = h->hand, r->epoch = h->epoch;
    if (geometry_fault(r)) REFUSE("%s is out of range", geometry_fault(r));
    if (h->label_bytes > RB_LABEL_MAX) REFUSE("a label of %u bytes", h->label_bytes);
    if (!is_text(h->label, h->label_bytes)) REFUSE("a label that is no text");
    rb_lay_out(r, NULL);
    if (h->file_bytes != r->file_bytes || file_bytes != r->file_bytes)
        REFUSE("%llu bytes found, %llu wanted", (unsigned long long)file_bytes,
               (unsigned long long)r->file_bytes);
    if (memcmp(h->boot_id, boot_id, 16)) REFUSE("made in another boot of this machine");
    return NULL;
#undef REFUSE
}

static PyObject *mapping_attach(PyObject *type, PyObject *args) {
    (void)type;
    int fd;
    const char *boot_id;
    Py_ssize_t boot_bytes;
    struct stat info;
    rb_header header;
    if (!PyArg_ParseTuple(args, "iy#", &fd, &boot_id, &boot_bytes)) return NULL;
    if (boot_bytes != 16) return PyErr_SetString(PyExc_ValueError, "a boot id has 16 bytes"), NULL;
    if (fstat(fd, &info)) return PyErr_SetFromErrno(PyExc_OSError);
    ssize_t got = pread(fd, &header, sizeof header, 0);
    if (got < 0) return PyErr_SetFromErrno(PyExc_OSError);
    if (got < (ssize_t)sizeof header)
        return PyErr_Format(Misfit, "%zd bytes are no ring (its header has %zu)", got,
                            sizeof header);
    Mapping *m = new_mapping();
    if (!m) return NULL;
    PyObject *fault =
        header_fault(&header, (uint64_t)info.st_size, (const uint8_t *)boot_id, &m->ring);
    if (fault) {
        PyErr_SetObject(Misfit, fault);
        Py_DECREF(fault);
    } else if (!PyErr_Occurred() && !map_file(m, fd, m->ring.file_bytes)) {
        const rb_ring *r = &m->ring;
        int locks_fit = rb_lock_fits(r, &r->shared->writers) && rb_lock_fits(r, &r->shared->readers);
        if (locks_fit && rb_cursors_fit(r)) {
            memcpy(m->label, header.label, header.label_bytes);
            return (PyObject *)m;
        }
        PyErr_SetString(Misfit, locks_fit ? "the cursors lie further apart than the capacity"
                                          : "the locks are damaged, or another libc's");
    }
    Py_DECREF(m);
    return NULL;
}

/* leave(patience_s) -> bool: refuses new calls, ends the waits; True when nobody is inside. */
static PyObject *mapping_leave(PyObject *self, PyObject *patience_s) {
    Mapping *m = (Mapping *)self;
    double seconds = PyFloat_AsDouble(patience_s);
    if (PyErr_Occurred() || enter_leaving(m)) return NULL;
    m->leaving = 1;
    rb_shared *shared = m->ring.shared;
    rb_signal(&shared->writers.event);
    rb_signal(&shared->readers.event);
    rb_signal(&shared->commit_event);
    leave(m);
    int64_t deadline = rb_deadline((int64_t)(seconds * 1e9)), left = 1;
    Py_BEGIN_ALLOW_THREADS
    for (uint32_t seen; (seen = m->users) && left > 0;) {
        struct timespec t = rb_timespec(left = deadline - rb_clock_ns(CLOCK_MONOTONIC));
        if (left > 0) syscall(SYS_futex, &m->users, FUTEX_WAIT_PRIVATE, seen, &t, NULL, 0);
    }
    Py_END_ALLOW_THREADS
    return PyBool_FromLong(!m->users);
}

static PyObject *mapping_detach(PyObject *self, PyObject *none) {
    (void)none;
    Mapping *m = (Mapping *)self;
    if (m->open) {
        m->open = 0;
        m->users++;
        leave(m);
    }
    Py_RETURN_NONE;
}

static void mapping_dealloc(PyObject *self) {
    Py_XDECREF(mapping_detach(self, NULL));
    free_object(self);
}

/* ---- items -------------------------------------------------------------------------------- */

/* Not tracked by the garbage collector: it refers to two bytes objects, which refer to nothing. The
 * numbers become objects when they are asked for. */
typedef struct {
    PyObject_HEAD
    PyObject *payload, *header;
    unsigned long long sequence, accepted_ns;
    unsigned int attempts, crashes, slow, round;
    int cell;
    char damaged;
    uint8_t key[16];
} Item;

static PyMemberDef item_members[] = {
    {"payload", T_OBJECT_EX, offsetof(Item, payload), READONLY, "the message"},
    {"sequence", T_ULONGLONG, offsetof(Item, sequence), READONLY,
     "its place in the ring's history, from 0"},
    {"attempts", T_UINT, offsetof(Item, attempts), READONLY,
     "deliveries after the death of a reader that held it"},
    {"crashes", T_UINT, offsetof(Item, crashes), READONLY,
     "readers that ended by themselves while they worked on it alone"},
    {"slow", T_UINT, offsetof(Item, slow), READONLY,
     "readers whose time for it was up before its own was"},
    {"accepted_ns", T_ULONGLONG, offsetof(Item, accepted_ns), READONLY,
     "CLOCK_REALTIME at put, nanoseconds"},
    {"header", T_OBJECT_EX, offsetof(Item, header), READONLY, "the record header given to put"},
    {"round", T_UINT, offsetof(Item, round), READONLY, "the number given to put"},
    {"damaged", T_BOOL, offsetof(Item, damaged), READONLY,
     "the checksum does not fit: payload holds the raw bytes"},
    {"cell", T_INT, offsetof(Item, cell), READONLY, "where it lies in the hand; -1 for a copy"},
    {NULL, 0, 0, 0, NULL}};

static PyObject *item_key(PyObject *self, void *unused) {
    (void)unused;
    return PyBytes_FromStringAndSize((const char *)((Item *)self)->key, 16);
}

static PyGetSetDef item_fields[] = {{"key", item_key, NULL, "16 bytes that name it", NULL},
                                    {NULL, NULL, NULL, NULL, NULL}};

static void item_dealloc(PyObject *self) {
    Py_XDECREF(((Item *)self)->payload);
    Py_XDECREF(((Item *)self)->header);
    free_object(self);
}

static PyObject *make_item(const rb_ring *r, const rb_slot *slot, uint64_t stamp, rb_marks marks,
                           int cell) {
    const rb_slot fixed = *slot; /* lengths that have been checked must not change any more */
    const char *data = (const char *)(slot + 1);
    int intact = rb_intact(r, &fixed, (const uint8_t *)data, stamp);
    uint32_t head = intact ? fixed.header_bytes : 0;
    Item *item = (Item *)new_object(ItemType);
    if (!item) return NULL;
    item->payload = PyBytes_FromStringAndSize(data + head, rb_data_bytes(r, &fixed) - head);
    item->header = PyBytes_FromStringAndSize(data, head);
    item->sequence = stamp - 1, item->accepted_ns = fixed.accepted_ns;
    item->attempts = marks.attempts, item->crashes = marks.crashes, item->slow = marks.slow;
    item->round = fixed.round;
    item->cell = cell, item->damaged = !intact;
    memcpy(item->key, fixed.key, 16);
    if (!item->payload || !item->header) Py_CLEAR(item);
    return (PyObject *)item;
}

/* The same message, wherever it lies. */
static PyObject *item_compare(PyObject *self, PyObject *other, int operation) {
    if ((operation != Py_EQ && operation != Py_NE) || !PyObject_TypeCheck(other, ItemType))
        return Py_NewRef(Py_NotImplemented);
    const Item *a = (const Item *)self, *b = (const Item *)other;
    int alike = a->sequence == b->sequence && a->accepted_ns == b->accepted_ns &&
                a->attempts == b->attempts && a->crashes == b->crashes && a->slow == b->slow &&
                a->round == b->round && a->damaged == b->damaged &&
                !memcmp(a->key, b->key, 16);
    alike = alike ? PyObject_RichCompareBool(a->payload, b->payload, Py_EQ) : 0;
    alike = alike > 0 ? PyObject_RichCompareBool(a->header, b->header, Py_EQ) : alike;
    return alike < 0 ? NULL : PyBool_FromLong(alike == (operation == Py_EQ));
}

static Py_hash_t item_hash(PyObject *self) { return (Py_hash_t)(((Item *)self)->sequence & INT64_MAX); }

static PyObject *item_repr(PyObject *self) {
    const Item *item = (const Item *)self;
    return PyUnicode_FromFormat("Item(sequence=%llu, attempts=%u, cell=%d, payload=%R%s)",
                                item->sequence, item->attempts, item->cell, item->payload,
                                item->damaged ? ", damaged" : "");
}

static PyObject *item_reduce(PyObject *self, PyObject *none) {
    (void)none;
    const Item *item = (const Item *)self;
    return Py_BuildValue("O(Oy#KIKOIOiII)", (PyObject *)ItemType, item->payload,
                         (const char *)item->key, (Py_ssize_t)16, item->sequence, item->attempts,
                         item->accepted_ns, item->header, item->round,
                         item->damaged ? Py_True : Py_False, item->cell, item->crashes, item->slow);
}

static PyMethodDef item_methods[] = {{"__reduce__", item_reduce, METH_NOARGS, NULL},
                                     {NULL, NULL, 0, NULL}};

/* For stand-ins of a ring: what take and find return is made by make_item. */
static PyObject *item_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"payload", "key",   "sequence", "attempts", "accepted_ns",
                            "header",  "round", "damaged",  "cell",     "crashes",
                            "slow",    NULL};
    Item *item = (Item *)new_object(type);
    const char *key;
    Py_ssize_t key_bytes;
    int damaged = 0;
    if (!item) return NULL;
    item->cell = -1;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Sy#|KIKSIpiII", names, &item->payload, &key,
                                     &key_bytes, &item->sequence, &item->attempts,
                                     &item->accepted_ns, &item->header, &item->round, &damaged,
                                     &item->cell, &item->crashes, &item->slow))
        key_bytes = -1;
    else if (key_bytes != 16)
        PyErr_Format(PyExc_ValueError, "a key has 16 bytes; this one has %zd", key_bytes);
    Py_XINCREF(item->payload); /* borrowed until here, whether parsing succeeded or not */
    item->header = item->header ? Py_NewRef(item->header) : PyBytes_FromStringAndSize("", 0);
    item->damaged = (char)damaged;
    if (key_bytes == 16) memcpy(item->key, key, 16);
    if (PyErr_Occurred()) Py_CLEAR(item);
    return (PyObject *)item;
}

/* ---- Mapping: looking --------------------------------------------------------------------- */

enum field { CAPACITY, SLOT_BYTES, ROOM, READERS, WRITERS, HAND, EPOCH, FILE_BYTES, HEAD, TAIL,
             DEPTH, CLOSED, EMPTY_AND_CLOSED, COMMITS, PARKED, SLOTS_AT, HANDS_AT, STATS_AT,
             CELL_BYTES, REPAIRS, CLEARED, RESCUES };

static uint64_t counted(const _Atomic uint64_t *a, const _Atomic uint64_t *b) {
    return atomic_load_explicit(a, memory_order_relaxed) +
           atomic_load_explicit(b, memory_order_relaxed);
}

static uint64_t field_value(const Mapping *m, enum field field) {
    const rb_ring *r = &m->ring;
    rb_side *w = &r->shared->writers, *d = &r->shared->readers;
    switch (field) {
    case CAPACITY: return r->capacity;
    case SLOT_BYTES: return r->slot_bytes;
    case ROOM: return rb_room(r);
    case READERS: return r->readers;
    case WRITERS: return r->writers;
    case HAND: return r->hand;
    case EPOCH: return r->epoch;
    case FILE_BYTES: return r->file_bytes;
    case HEAD: return rb_head(r);
    case TAIL: return rb_tail(r);
    case DEPTH: return rb_depth(r);
    case CLOSED: return (uint64_t)rb_closed(r);
    case EMPTY_AND_CLOSED: return (uint64_t)rb_closed_and_empty(r);
    case COMMITS: return atomic_load_explicit(&r->shared->commits, memory_order_acquire);
    case PARKED: return (uint64_t)m->parked;
    case SLOTS_AT: return (uint64_t)(r->slots - r->base);
    case HANDS_AT: return (uint64_t)(r->hands - r->base);
    case STATS_AT: return (uint64_t)(r->stats - r->base);
    case CELL_BYTES: return r->cell_bytes;
    case REPAIRS: return counted(&w->repairs, &d->repairs);
    case CLEARED: return counted(&w->cleared, &d->cleared);
    case RESCUES: return counted(&w->rescues, &d->rescues);
    }
    return 0;
}

static PyObject *mapping_get(PyObject *self, void *field) {
    Mapping *m = (Mapping *)self;
    if (enter(m)) return NULL;
    uint64_t value = field_value(m, (enum field)(intptr_t)field);
    leave(m);
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *mapping_get_label(PyObject *self, void *unused) {
    (void)unused;
    return PyUnicode_FromString(((Mapping *)self)->label);
}

/* park(n): so many puts of this process wait. */
static PyObject *mapping_park(PyObject *self, PyObject *pending) {
    long count = PyLong_AsLong(pending);
    if (PyErr_Occurred()) return NULL;
    ((Mapping *)self)->parked = count;
    Py_RETURN_NONE;
}

static int to_key(PyObject *object, const uint8_t **key) {
    char *bytes;
    Py_ssize_t count;
    if (PyBytes_AsStringAndSize(object, &bytes, &count)) return -1;
    if (count != 16)
        return PyErr_Format(PyExc_ValueError, "a key has 16 bytes; this one has %zd", count), -1;
    *key = (const uint8_t *)bytes;
    return 0;
}

/* find(key) -> (item, position or None when in a hand) or None */
static PyObject *mapping_find(PyObject *self, PyObject *key) {
    Mapping *m = (Mapping *)self;
    rb_search s = {0};
    PyObject *answer = NULL;
    if (to_key(key, &s.key) || enter(m)) return NULL;
    s.copy = malloc(m->ring.slot_bytes);
    if (s.copy) {
        int in_ring, found;
        uint64_t head;
        Py_BEGIN_ALLOW_THREADS
        in_ring = rb_search_slots(&m->ring, &s);
        head = rb_head(&m->ring);
        in_ring = in_ring && s.stamp - 1 >= head; /* else it has moved on meanwhile */
        found = in_ring || rb_search_hands(&m->ring, &s);
        Py_END_ALLOW_THREADS
        if (!found) {
            answer = Py_NewRef(Py_None);
        } else {
            PyObject *item = make_item(&m->ring, s.copy, s.stamp, s.marks, -1);
            if (item && in_ring) answer = Py_BuildValue("NK", item, s.stamp - 1 - head);
            else if (item) answer = Py_BuildValue("NO", item, Py_None);
        }
        free(s.copy);
    } else {
        PyErr_NoMemory();
    }
    leave(m);
    return answer;
}

static int append_copy(PyObject *list, const Mapping *m, rb_slot *copy, _Atomic uint64_t *guard,
                       const rb_slot *from, uint64_t stamp, rb_marks marks, long reader) {
    if (!rb_copy_guarded(&m->ring, guard, stamp, from, copy)) return 0;
    PyObject *item = make_item(&m->ring, copy, stamp, marks, -1);
    PyObject *row = item && reader >= 0 ? Py_BuildValue("lN", reader, item) : item;
    int failed = !row || PyList_Append(list, row);
    Py_XDECREF(row);
    return failed ? -1 : 0;
}

static int collect_waiting(const Mapping *m, rb_slot *copy, PyObject *list) {
    const rb_ring *r = &m->ring;
    uint64_t end;
    for (uint64_t at = rb_waiting(r, &end); at < end; at++) {
        rb_slot *slot = rb_slot_at(r, at);
        if (append_copy(list, m, copy, &slot->stamp, slot, at + 1, (rb_marks){0}, -1))
            return -1;
    }
    atomic_thread_fence(memory_order_acquire); /* as in rb_search_slots */
    return 0;
}

static int collect_held(const Mapping *m, rb_slot *copy, PyObject *list) {
    const rb_ring *r = &m->ring;
    for (uint32_t i = 0; i < r->readers * r->hand; i++) {
        rb_cell *cell = rb_cell_at(r, i / r->hand, i % r->hand);
        uint64_t stamp = atomic_load_explicit(&cell->stamp, memory_order_acquire);
        rb_marks marks = rb_marks_of(cell);
        if (stamp && append_copy(list, m, copy, &cell->stamp, &cell->slot, stamp, marks,
                                 (long)(i / r->hand)))
            return -1;
    }
    return 0;
}

/* snapshot() -> ([item, ...] waiting, [(reader, item), ...] held), slots read before hands */
static PyObject *mapping_snapshot(PyObject *self, PyObject *none) {
    (void)none;
    Mapping *m = (Mapping *)self;
    if (enter(m)) return NULL;
    rb_slot *copy = malloc(m->ring.slot_bytes);
    PyObject *waiting = PyList_New(0), *held = PyList_New(0), *answer = NULL;
    if (!copy) PyErr_NoMemory();
    else if (waiting && held && !collect_waiting(m, copy, waiting) && !collect_held(m, copy, held))
        answer = Py_BuildValue("OO", waiting, held);
    Py_XDECREF(waiting);
    Py_XDECREF(held);
    free(copy);
    leave(m);
    return answer;
}

static PyObject *mapping_held_count(PyObject *self, PyObject *index) {
    Mapping *m = (Mapping *)self;
    unsigned long reader = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || enter(m)) return NULL;
    unsigned long count = 0;
    if (reader < m->ring.readers)
        for (uint32_t i = 0; i < m->ring.hand; i++)
            count += atomic_load_explicit(&rb_cell_at(&m->ring, (uint32_t)reader, i)->stamp,
                                          memory_order_acquire) != 0;
    else PyErr_Format(PyExc_ValueError, "reader %lu of %u", reader, m->ring.readers);
    leave(m);
    return PyErr_Occurred() ? NULL : PyLong_FromUnsignedLong(count);
}

/* Counts the death of a reader, which nobody has followed yet, for the item that it had begun. Killed
 * in here, it is counted or not; the next owner of the hand begins with none. */
static int rb_blame(rb_ring *r, uint32_t reader, int late, const char *text, uint32_t bytes) {
    _Atomic uint64_t *begun = &r->participants[reader].begun;
    rb_note *note = &r->notes[reader];
    uint64_t seen = atomic_load(begun), stamp = seen & ~RB_TRIAL;
    int found = 0;
    for (uint32_t i = 0; stamp && !found && i < r->hand; i++) {
        rb_cell *cell = rb_cell_at(r, reader, i);
        if (atomic_load_explicit(&cell->stamp, memory_order_acquire) != stamp) continue;
        memcpy(note->text, text, bytes);
        note->bytes = bytes;
        atomic_fetch_add(late && (seen & RB_TRIAL) ? &cell->slow : &cell->crashes, 1);
        found = 1;
    }
    atomic_store(begun, 0);
    return found;
}

/* blame(reader, late, note) -> whether there was an item to blame; note(reader) -> the last note */
static PyObject *mapping_blame(PyObject *self, PyObject *args) {
    Mapping *m = (Mapping *)self;
    unsigned int reader;
    int late, found = 0;
    const char *text;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "Ipy#", &reader, &late, &text, &bytes) || enter(m)) return NULL;
    if (bytes > (Py_ssize_t)sizeof m->ring.notes->text) bytes = sizeof m->ring.notes->text;
    if (reader < m->ring.readers) found = rb_blame(&m->ring, reader, late, text, (uint32_t)bytes);
    else PyErr_Format(PyExc_ValueError, "reader %u of %u", reader, m->ring.readers);
    leave(m);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(found);
}

/* acquit(reader): nothing that it had begun is to be blamed */
static PyObject *mapping_acquit(PyObject *self, PyObject *index) {
    Mapping *m = (Mapping *)self;
    unsigned long reader = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || enter(m)) return NULL;
    if (reader < m->ring.readers) atomic_store(&m->ring.participants[reader].begun, 0);
    else PyErr_Format(PyExc_ValueError, "reader %lu of %u", reader, m->ring.readers);
    leave(m);
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_NONE;
}

static PyObject *mapping_note(PyObject *self, PyObject *index) {
    Mapping *m = (Mapping *)self;
    PyObject *text = NULL;
    unsigned long reader = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || enter(m)) return NULL;
    if (reader < m->ring.readers) {
        const rb_note *note = &m->ring.notes[reader];
        uint32_t bytes = note->bytes; /* may be damaged */
        if (bytes > sizeof note->text) bytes = sizeof note->text;
        text = PyBytes_FromStringAndSize(note->text, bytes);
    } else {
        PyErr_Format(PyExc_ValueError, "reader %lu of %u", reader, m->ring.readers);
    }
    leave(m);
    return text;
}

/* participant(i) -> identity; swap_participant(i, seen, wanted) -> bool */
static _Atomic uint64_t *identity_of(const Mapping *m, unsigned int i) {
    if (i < m->ring.readers + m->ring.writers) return &m->ring.participants[i].identity;
    PyErr_Format(PyExc_ValueError, "participant %u of %u", i, m->ring.readers + m->ring.writers);
    return NULL;
}

static PyObject *mapping_participant(PyObject *self, PyObject *args) {
    Mapping *m = (Mapping *)self;
    unsigned int i;
    if (!PyArg_ParseTuple(args, "I", &i) || enter(m)) return NULL;
    _Atomic uint64_t *identity = identity_of(m, i);
    uint64_t value = identity ? atomic_load(identity) : 0;
    leave(m);
    return identity ? PyLong_FromUnsignedLongLong(value) : NULL;
}

static PyObject *mapping_swap_participant(PyObject *self, PyObject *args) {
    Mapping *m = (Mapping *)self;
    unsigned int i;
    unsigned long long seen, wanted;
    if (!PyArg_ParseTuple(args, "IKK", &i, &seen, &wanted) || enter_leaving(m)) return NULL;
    _Atomic uint64_t *identity = identity_of(m, i);
    uint64_t expected = seen;
    RB_STEP(entry.swapping);
    int swapped = identity && atomic_compare_exchange_strong(identity, &expected, wanted);
    RB_STEP(entry.swapped);
    leave(m);
    return identity ? PyBool_FromLong(swapped) : NULL;
}

static PyObject *mapping_set_closed(PyObject *self, PyObject *args) {
    Mapping *m = (Mapping *)self;
    int closed, status;
    double patience_s;
    if (!PyArg_ParseTuple(args, "pd", &closed, &patience_s) || enter(m)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    status = rb_set_closed(&m->ring, (uint32_t)closed, (int64_t)(patience_s * 1e9));
    Py_END_ALLOW_THREADS
    leave(m);
    if (status != RB_OK) return fail(status);
    Py_RETURN_NONE;
}

/* ---- waiting ------------------------------------------------------------------------------ */

typedef struct {
    const Mapping *mapping;
    _Atomic uint32_t *event;
    _Atomic uint64_t *rescues;
    int (*look)(void *, int64_t patience_ns); /* RB_EMPTY, RB_FULL, RB_BUSY: go on waiting */
    void *context;
} Wait;

static int undecided(int status) {
    return status == RB_EMPTY || status == RB_FULL || status == RB_BUSY;
}

/* The sleep ran out and there was something after all: was the wake lost, or only late? */
static void note_rescue(const Wait *w, uint32_t seen) {
    if (atomic_load(w->event) != seen) return;
    rb_futex_wait(w->event, seen, RB_CONFIRM_NS);
    if (atomic_load(w->event) == seen) atomic_fetch_add(w->rescues, 1);
}

/* Looks, sleeps at most one slice, looks again. Runs without the GIL. */
static int wait_round(const Wait *w, int64_t slice_ns) {
    int status = w->look(w->context, slice_ns < RB_PATIENCE_NS ? slice_ns : RB_PATIENCE_NS);
    if (!undecided(status)) return status;
    if (status == RB_BUSY) return w->look(w->context, slice_ns); /* sleeps at the lock */
    uint32_t seen = rb_announce(w->event);
    RB_STEP(sleep.announced);
    status = w->look(w->context, slice_ns);
    if (!undecided(status) || status == RB_BUSY || w->mapping->leaving) return status;
    RB_STEP(sleep.begun);
    int error = rb_futex_wait(w->event, seen, slice_ns);
    if (error != ETIMEDOUT) {
        RB_STEP(sleep.woken);
        return status;
    }
    status = w->look(w->context, 0);
    if (!undecided(status)) note_rescue(w, seen);
    return status;
}

/* -1 with an exception set when a signal handler raised; else a status. The GIL is held. */
static int wait_until(const Wait *w, int64_t deadline) {
    for (;;) {
        int64_t left = deadline == FOREVER ? RB_RECHECK_NS
                                           : deadline - rb_clock_ns(CLOCK_MONOTONIC);
        int64_t slice = left < 0 ? 0 : left < RB_RECHECK_NS ? left : RB_RECHECK_NS;
        int status;
        Py_BEGIN_ALLOW_THREADS
        status = slice ? wait_round(w, slice) : w->look(w->context, RB_PATIENCE_NS);
        Py_END_ALLOW_THREADS
        if (!undecided(status)) return status;
        if (PyErr_CheckSignals()) return -1;
        if (w->mapping->leaving) return detached();
        if (!slice) return status;
    }
}

/* Room or closed, and a lock that can be had: whoever waits here then makes its own try. */
static int look_for_room(void *context, int64_t patience_ns) {
    rb_ring *r = context;
    rb_guard guard;
    /* Whoever waits for damaged cursors gets to know it by its own try. */
    if (!rb_closed(r) && rb_depth(r) >= r->capacity && rb_cursors_fit(r)) return RB_FULL;
    int status = rb_lock(&guard, r, &r->shared->writers, patience_ns);
    if (status != RB_OK) return status;
    RB_STEP(room.locked);
    rb_unlock(&guard);
    return RB_OK;
}

/* wait_room(timeout) -> bool */
static PyObject *mapping_wait_room(PyObject *self, PyObject *timeout) {
    Mapping *m = (Mapping *)self;
    int64_t deadline;
    if (to_deadline(timeout, &deadline) || enter(m)) return NULL;
    rb_side *side = &m->ring.shared->writers;
    Wait w = {m, &side->event, &side->rescues, look_for_room, &m->ring};
    int status = wait_until(&w, deadline);
    leave(m);
    if (status == RB_BROKEN) return fail(status);
    return status < 0 ? NULL : PyBool_FromLong(status == RB_OK);
}

typedef struct {
    rb_ring *ring;
    uint64_t seen;
} CommitWait;

static int look_for_commit(void *context, int64_t patience_ns) {
    (void)patience_ns;
    CommitWait *c = context;
    return atomic_load(&c->ring->shared->commits) != c->seen ? RB_OK : RB_EMPTY;
}

/* wait_commits(seen, timeout) -> the counter, changed or not */
static PyObject *mapping_wait_commits(PyObject *self, PyObject *args) {
    Mapping *m = (Mapping *)self;
    unsigned long long seen;
    PyObject *timeout = Py_None;
    int64_t deadline;
    if (!PyArg_ParseTuple(args, "K|O", &seen, &timeout) || to_deadline(timeout, &deadline))
        return NULL;
    if (enter(m)) return NULL;
    CommitWait c = {&m->ring, seen};
    rb_shared *shared = m->ring.shared;
    Wait w = {m, &shared->commit_event, &shared->readers.rescues, look_for_commit, &c};
    int status = wait_until(&w, deadline);
    uint64_t commits = atomic_load(&shared->commits);
    leave(m);
    return status < 0 ? NULL : PyLong_FromUnsignedLongLong(commits);
}

static PyObject *mapping_bump_commits(PyObject *self, PyObject *none) {
    (void)none;
    Mapping *m = (Mapping *)self;
    if (enter(m)) return NULL;
    atomic_fetch_add(&m->ring.shared->commits, 1);
    RB_STEP(bump.counted);
    rb_signal(&m->ring.shared->commit_event);
    leave(m);
    Py_RETURN_NONE;
}

/* ---- Putter ------------------------------------------------------------------------------- */

static int too_large(const rb_ring *r, Py_ssize_t payload, Py_ssize_t header) {
    if (payload + header <= (Py_ssize_t)rb_room(r) && header <= UINT16_MAX) return 0;
    PyErr_Format(TooLarge,
                 "payload of %zd bytes and header of %zd do not fit a slot: room for %u together "
                 "(slot_bytes %u)",
                 payload, header, rb_room(r), r->slot_bytes);
    return -1;
}

/* What somebody may write to is copied first: the checksum must be of what is put. Only bytes are
 * surely fixed: a read-only view may be of a writable buffer, or of a file that is cut short. */
static PyObject *to_payload(PyObject *object) {
    Py_buffer view;
    if (PyBytes_Check(object)) return Py_NewRef(object);
    if (PyObject_GetBuffer(object, &view, PyBUF_SIMPLE)) return NULL;
    PyObject *bytes = PyBytes_FromStringAndSize(view.buf, view.len);
    PyBuffer_Release(&view);
    return bytes;
}

static uint64_t now_ns(void) { return (uint64_t)rb_clock_ns(CLOCK_REALTIME); }

static int to_entry(const rb_ring *r, PyObject *payload, PyObject *key, PyObject *header,
                    rb_entry *e) {
    char *body, *head = "";
    Py_ssize_t body_bytes, head_bytes = 0;
    if (PyBytes_AsStringAndSize(payload, &body, &body_bytes) || to_key(key, &e->key)) return -1;
    if (header && PyBytes_AsStringAndSize(header, &head, &head_bytes)) return -1;
    if (too_large(r, body_bytes, head_bytes)) return -1;
    e->header = (const uint8_t *)head, e->header_bytes = (uint16_t)head_bytes;
    e->payload = (const uint8_t *)body, e->payload_bytes = (uint32_t)body_bytes;
    e->header_version = 1;
    e->crc = rb_entry_crc(e);
    return 0;
}

/* How a put is marked. accepted_ns is given only by who moves an item from another ring. */
static int to_marks(PyObject *round, PyObject *accepted_ns, rb_entry *e) {
    unsigned long number = round ? PyLong_AsUnsignedLong(round) : 0;
    uint64_t given_ns = accepted_ns ? PyLong_AsUnsignedLongLong(accepted_ns) : 0;
    if ((round || accepted_ns) && PyErr_Occurred()) return -1;
    if (number > UINT32_MAX)
        return PyErr_Format(PyExc_ValueError, "round %lu is above %u", number, UINT32_MAX), -1;
    e->round = (uint32_t)number;
    e->accepted_ns = given_ns ? given_ns : now_ns();
    return 0;
}

/* One try: without waiting while the lock is free, else patiently and without the GIL. */
static int try_entries(rb_ring *r, const rb_entry *entries, uint32_t count, uint64_t *first,
                       uint32_t *put) {
    int status = rb_put(r, entries, count, 0, first, put);
    if (status != RB_BUSY) return status;
    Py_BEGIN_ALLOW_THREADS
    status = rb_put(r, entries, count, RB_PATIENCE_NS, first, put);
    Py_END_ALLOW_THREADS
    return status;
}

static int nothing_put(const rb_ring *r) { return rb_closed(r) ? RB_CLOSED : RB_FULL; }

static int enter_open(PyObject *self) {
    if (!((Putter *)self)->closed) return enter(((Putter *)self)->mapping);
    return PyErr_SetString(RingError, "this writer or reader is closed"), -1;
}

static PyObject *putter_shut(PyObject *self, PyObject *none) {
    (void)none;
    ((Putter *)self)->closed = 1;
    Py_RETURN_NONE;
}

static PyObject *put_one(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                         PyObject *kwnames, int in_turn) {
    static const char *const names[] = {"payload", "key",         "header",
                                        "round",   "accepted_ns", NULL};
    PyObject *given[5], *answer = NULL;
    Mapping *m = ((Putter *)self)->mapping;
    rb_entry entry;
    uint64_t sequence;
    uint32_t put;
    if (gather("try_put", names, 2, args, nargs, kwnames, given)) return NULL;
    if (to_marks(given[3], given[4], &entry) || enter_open(self)) return NULL;
    PyObject *payload = to_payload(given[0]);
    if (payload && !to_entry(&m->ring, payload, given[1], given[2], &entry)) {
        int status = m->parked && !in_turn ? nothing_put(&m->ring)
                                           : try_entries(&m->ring, &entry, 1, &sequence, &put);
        if (status == RB_OK) answer = PyLong_FromUnsignedLongLong(sequence);
        else if (undecided(status)) answer = Py_NewRef(Py_None);
        else fail(status);
    }
    Py_XDECREF(payload);
    leave(m);
    return answer;
}

static PyObject *putter_try_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames) {
    return put_one(self, args, nargs, kwnames, 0);
}

static PyObject *putter_put_in_turn(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames) {
    return put_one(self, args, nargs, kwnames, 1);
}

/* put_batch(payloads: list[bytes], keys: list[bytes], headers: list[bytes] | None) -> (first, n) */
static PyObject *putter_put_batch(PyObject *self, PyObject *args) {
    Mapping *m = ((Putter *)self)->mapping;
    PyObject *payloads, *keys, *headers;
    if (!PyArg_ParseTuple(args, "OOO", &payloads, &keys, &headers) || enter_open(self)) return NULL;
    Py_ssize_t count = PyList_Size(payloads), made = 0;
    uint64_t first = 0, accepted_ns = now_ns();
    uint32_t put = 0;
    int status = RB_OK;
    if (count > (Py_ssize_t)m->ring.capacity) count = (Py_ssize_t)m->ring.capacity;
    rb_entry *entries = count > 0 ? malloc((size_t)count * sizeof *entries) : NULL;
    if (count > 0 && !entries) PyErr_NoMemory();
    for (; entries && made < count; made++) {
        rb_entry *entry = &entries[made];
        PyObject *header = headers == Py_None ? NULL : PyList_GetItem(headers, made);
        entry->round = 0, entry->accepted_ns = accepted_ns;
        if (to_entry(&m->ring, PyList_GetItem(payloads, made), PyList_GetItem(keys, made), header,
                     entry))
            break;
    }
    if (entries && made == count && !m->parked)
        status = try_entries(&m->ring, entries, (uint32_t)count, &first, &put);
    else status = nothing_put(&m->ring);
    free(entries);
    leave(m);
    if (PyErr_Occurred()) return NULL;
    if (status != RB_OK && !undecided(status)) return fail(status);
    return Py_BuildValue("KI", (unsigned long long)first, put);
}

static PyObject *with_mapping(PyTypeObject *type, PyObject *mapping) {
    if (!PyObject_TypeCheck(mapping, MappingType))
        return PyErr_SetString(PyExc_TypeError, "a Mapping is wanted"), NULL;
    PyObject *self = new_object(type);
    if (self) ((Putter *)self)->mapping = (Mapping *)Py_NewRef(mapping); /* Taker begins alike */
    return self;
}

static PyObject *putter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *mapping;
    return PyArg_ParseTuple(args, "O", &mapping) ? with_mapping(type, mapping) : NULL;
}

static void putter_dealloc(PyObject *self) {
    Py_XDECREF((PyObject *)((Putter *)self)->mapping);
    free_object(self);
}

/* ---- Taker -------------------------------------------------------------------------------- */

/* What lies in the hand is this reader's now; `died` says that its last owner did not leave it. */
static int adopt(Taker *t, int died, double patience_s) {
    rb_ring *r = &t->mapping->ring;
    rb_guard guard;
    int status;
    Py_BEGIN_ALLOW_THREADS
    status = rb_lock(&guard, r, &r->shared->readers, (int64_t)(patience_s * 1e9));
    if (status == RB_OK) { /* any repair has happened now */
        RB_STEP(adopt.locked);
        rb_unlock(&guard);
    }
    Py_END_ALLOW_THREADS
    if (status != RB_OK) return fail(status), -1;
    RB_STEP(adopt.unlocked);
    atomic_store(&r->participants[t->index].begun, 0); /* by another, of which nobody knows more */
    for (uint32_t i = r->hand; i-- > 0;) { /* so that the first cells are used first */
        rb_cell *cell = rb_cell_at(r, t->index, i);
        t->stamps[i] = atomic_load_explicit(&cell->stamp, memory_order_acquire);
        if (!t->stamps[i]) t->free[t->free_count++] = i;
        else t->undelivered++;
        if (!t->stamps[i] || !died) continue;
        atomic_fetch_add(&cell->attempts, 1);
        RB_STEP(adopt.counted);
    }
    return 0;
}

static PyObject *taker_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    (void)kwargs;
    PyObject *mapping;
    unsigned int index;
    int died;
    double patience_s;
    if (!PyArg_ParseTuple(args, "OIpd", &mapping, &index, &died, &patience_s)) return NULL;
    Taker *t = (Taker *)with_mapping(type, mapping);
    if (!t) return NULL;
    if (enter(t->mapping)) return Py_DECREF(t), NULL;
    uint32_t hand = t->mapping->ring.hand;
    t->index = index;
    t->stamps = calloc(hand, sizeof *t->stamps);
    t->delivered = calloc(hand, 1);
    t->free = calloc(hand, sizeof *t->free);
    t->order = calloc(hand, sizeof *t->order);
    if (!t->stamps || !t->delivered || !t->free || !t->order) PyErr_NoMemory();
    else if (index >= t->mapping->ring.readers)
        PyErr_Format(PyExc_ValueError, "reader %u of %u", index, t->mapping->ring.readers);
    else adopt(t, died, patience_s);
    leave(t->mapping);
    if (PyErr_Occurred()) Py_CLEAR(t);
    return (PyObject *)t;
}

static void taker_dealloc(PyObject *self) {
    Taker *t = (Taker *)self;
    free(t->stamps);
    free(t->delivered);
    free(t->free);
    free(t->order);
    putter_dealloc(self);
}

static PyObject *item_of_cell(const Taker *t, uint32_t i) {
    rb_cell *cell = rb_cell_at(&t->mapping->ring, t->index, i);
    return make_item(&t->mapping->ring, &cell->slot, t->stamps[i], rb_marks_of(cell), (int)i);
}

/* The lowest sequences among the cells that were not handed out yet. */
static uint32_t order_undelivered(const Taker *t, uint32_t max) {
    uint32_t count = 0, *cells = t->order;
    for (uint32_t i = 0; i < t->mapping->ring.hand; i++) {
        if (!t->stamps[i] || t->delivered[i]) continue;
        uint32_t at = count < max ? count++ : max;
        if (at == max && t->stamps[cells[--at]] < t->stamps[i]) continue;
        for (; at && t->stamps[cells[at - 1]] > t->stamps[i]; at--) cells[at] = cells[at - 1];
        cells[at] = i;
    }
    return count;
}

/* All the items, or none: what was not handed out comes out of the next take. */
static PyObject *deliver(Taker *t, uint32_t count) {
    PyObject *list = PyList_New(count);
    for (uint32_t i = 0; list && i < count; i++) {
        PyObject *item = item_of_cell(t, t->order[i]);
        if (item) PyList_SetItem(list, i, item);
        else Py_CLEAR(list);
    }
    for (uint32_t i = 0; list && i < count; i++) t->delivered[t->order[i]] = 1;
    if (list) t->undelivered -= count;
    return list;
}

typedef struct {
    Taker *taker;
    uint32_t max, taken;
    uint64_t first;
} TakeWait;

/* Free cells are used from the end of the list; the last `taken` of them are then filled. */
static int look_for_items(void *context, int64_t patience_ns) {
    TakeWait *w = context;
    Taker *t = w->taker;
    return rb_take(&t->mapping->ring, t->index, t->free + t->free_count - w->max, w->max,
                   patience_ns, &w->first, &w->taken);
}

static void keep_taken(Taker *t, const TakeWait *w) {
    for (uint32_t i = 0; i < w->taken; i++) {
        uint32_t cell = t->free[--t->free_count];
        t->stamps[cell] = w->first + i + 1;
        t->delivered[cell] = 0;
        t->order[i] = cell;
    }
    t->undelivered += w->taken;
}

static int take_from_ring(Taker *t, uint32_t max, int64_t deadline) {
    rb_side *side = &t->mapping->ring.shared->readers;
    TakeWait w = {.taker = t, .max = max < t->free_count ? max : t->free_count};
    int status = look_for_items(&w, 0);
    if (undecided(status)) {
        Wait wait = {t->mapping, &side->event, &side->rescues, look_for_items, &w};
        status = wait_until(&wait, deadline);
    }
    if (status == RB_OK) keep_taken(t, &w);
    return status;
}

static PyObject *take_some(Taker *t, uint32_t max, int64_t deadline) {
    if (t->undelivered) return deliver(t, order_undelivered(t, max));
    if (!t->free_count)
        return PyErr_Format(HandFull, "all %u cells of hand %u are held: release before the next take",
                            t->mapping->ring.hand, t->index);
    int status = take_from_ring(t, max, deadline);
    if (status < 0) return NULL;
    if (undecided(status)) return PyErr_SetString(Empty, "nothing came in time"), NULL;
    return status == RB_OK ? deliver(t, t->undelivered) : fail(status);
}

static int begin(Taker *t) {
    if (enter_open((PyObject *)t)) return -1;
    if (!t->busy++) return 0;
    t->busy--;
    leave(t->mapping);
    return PyErr_SetString(RingError, "a reader serves one thread at a time"), -1;
}

static void end(Taker *t) {
    t->busy--;
    leave(t->mapping);
}

/* Its hand may have another owner from then on: no call may be inside, none may follow. */
static PyObject *taker_shut(PyObject *self, PyObject *none) {
    if (!((Taker *)self)->busy) return putter_shut(self, none);
    return PyErr_SetString(RingError, "this reader is at work in another call: end that first"), NULL;
}

static PyObject *taker_take(PyObject *self, PyObject *const *args, Py_ssize_t nargs,
                            PyObject *kwnames) {
    static const char *const names[] = {"max_items", "timeout", NULL};
    Taker *t = (Taker *)self;
    PyObject *given[2];
    int64_t deadline;
    if (gather("take", names, 0, args, nargs, kwnames, given)) return NULL;
    long max = given[0] ? PyLong_AsLong(given[0]) : 64;
    if (PyErr_Occurred() || to_deadline(given[1], &deadline)) return NULL;
    if (max < 1) return PyErr_Format(PyExc_ValueError, "max_items is %ld; at least 1", max);
    if (begin(t)) return NULL;
    PyObject *items = take_some(t, max > RB_HAND_MAX ? RB_HAND_MAX : (uint32_t)max, deadline);
    end(t);
    return items;
}

static PyObject *taker_held(PyObject *self, PyObject *none) {
    (void)none;
    Taker *t = (Taker *)self;
    if (begin(t)) return NULL;
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < t->mapping->ring.hand; i++) {
        if (!t->stamps[i]) continue;
        PyObject *item = item_of_cell(t, i);
        if (!item || PyList_Append(list, item)) Py_CLEAR(list);
        Py_XDECREF(item);
    }
    end(t);
    return list;
}

static int held_cell(const Taker *t, PyObject *object, uint32_t *cell) {
    if (!PyObject_TypeCheck(object, ItemType))
        return PyErr_SetString(PyExc_TypeError, "release takes items that take returned"), -1;
    const Item *item = (const Item *)object;
    if (item->cell >= 0 && item->cell < (int)t->mapping->ring.hand &&
        t->stamps[item->cell] == item->sequence + 1 && t->delivered[item->cell] == 1)
        return *cell = (uint32_t)item->cell, 0;
    PyErr_Format(NotHeld, "sequence %llu is not held by this reader: nothing was released",
                 item->sequence);
    return -1;
}

/* begin(item or None, trial=False) */
static PyObject *taker_begin(PyObject *self, PyObject *args) {
    Taker *t = (Taker *)self;
    PyObject *item;
    int trial = 0;
    uint32_t cell;
    uint64_t stamp = 0;
    if (!PyArg_ParseTuple(args, "O|p", &item, &trial) || begin(t)) return NULL;
    int failed = item != Py_None && held_cell(t, item, &cell);
    if (!failed && item != Py_None) stamp = t->stamps[cell] | (trial ? RB_TRIAL : 0);
    if (!failed) atomic_store(&t->mapping->ring.participants[t->index].begun, stamp);
    end(t);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* Checks all of them first (2 marks those seen: a doubled item is refused), then frees the cells. */
static int release_all(Taker *t, PyObject *list) {
    Py_ssize_t count = PyList_Size(list), checked = 0;
    uint32_t cell = 0;
    for (; checked < count; checked++) {
        if (held_cell(t, PyList_GetItem(list, checked), &cell)) break;
        t->delivered[cell] = 2;
    }
    int failed = checked < count;
    for (Py_ssize_t i = 0; i < checked; i++) {
        cell = (uint32_t)((const Item *)PyList_GetItem(list, i))->cell;
        t->delivered[cell] = 1;
        if (failed) continue;
        failed = rb_release(&t->mapping->ring, t->index, cell, t->stamps[cell] - 1) != RB_OK;
        if (failed) {
            PyErr_Format(NotHeld, "cell %u of hand %u was taken away from its owner", cell, t->index);
            continue;
        }
        t->stamps[cell] = 0, t->delivered[cell] = 0;
        t->free[t->free_count++] = cell;
    }
    return failed ? -1 : 0;
}

static PyObject *taker_release(PyObject *self, PyObject *items) {
    Taker *t = (Taker *)self;
    PyObject *list = PySequence_List(items);
    if (!list) return NULL;
    int failed = begin(t);
    if (!failed) {
        failed = release_all(t, list);
        end(t);
    }
    Py_DECREF(list);
    if (failed) return NULL;
    Py_RETURN_NONE;
}

/* ---- the module --------------------------------------------------------------------------- */

#define FIELD(name, field) {name, mapping_get, NULL, NULL, (void *)(intptr_t)(field)}
static PyGetSetDef mapping_fields[] = {
    FIELD("capacity", CAPACITY), FIELD("slot_bytes", SLOT_BYTES), FIELD("room", ROOM),
    FIELD("readers", READERS), FIELD("writers", WRITERS), FIELD("hand", HAND),
    FIELD("epoch", EPOCH), FIELD("file_bytes", FILE_BYTES), FIELD("head", HEAD),
    FIELD("tail", TAIL), FIELD("depth", DEPTH), FIELD("closed", CLOSED),
    FIELD("closed_and_empty", EMPTY_AND_CLOSED), FIELD("commits", COMMITS),
    FIELD("parked", PARKED), FIELD("slots_at", SLOTS_AT), FIELD("hands_at", HANDS_AT),
    FIELD("stats_at", STATS_AT), FIELD("cell_bytes", CELL_BYTES), FIELD("repairs", REPAIRS),
    FIELD("cleared", CLEARED), FIELD("rescues", RESCUES),
    {"label", mapping_get_label, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyMethodDef mapping_methods[] = {
    {"bytes_needed", mapping_bytes_needed, METH_VARARGS | METH_STATIC, NULL},
    {"create", mapping_create, METH_VARARGS | METH_STATIC, NULL},
    {"attach", mapping_attach, METH_VARARGS | METH_STATIC, NULL},
    {"leave", mapping_leave, METH_O, NULL},
    {"detach", mapping_detach, METH_NOARGS, NULL},
    {"park", mapping_park, METH_O, NULL},
    {"find", mapping_find, METH_O, NULL},
    {"snapshot", mapping_snapshot, METH_NOARGS, NULL},
    {"held_count", mapping_held_count, METH_O, NULL},
    {"blame", mapping_blame, METH_VARARGS, NULL},
    {"acquit", mapping_acquit, METH_O, NULL},
    {"note", mapping_note, METH_O, NULL},
    {"participant", mapping_participant, METH_VARARGS, NULL},
    {"swap_participant", mapping_swap_participant, METH_VARARGS, NULL},
    {"set_closed", mapping_set_closed, METH_VARARGS, NULL},
    {"wait_room", mapping_wait_room, METH_O, NULL},
    {"wait_commits", mapping_wait_commits, METH_VARARGS, NULL},
    {"bump_commits", mapping_bump_commits, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL}};

#define WITH_KEYWORDS(f) ((PyCFunction)(void (*)(void))(f))
static PyMethodDef putter_methods[] = {
    {"try_put", WITH_KEYWORDS(putter_try_put), METH_FASTCALL | METH_KEYWORDS,
     "try_put(payload, key, header=b'', round=0) -> sequence, or None when full"},
    {"put_in_turn", WITH_KEYWORDS(putter_put_in_turn), METH_FASTCALL | METH_KEYWORDS,
     "try_put for the put that is first in this process's line"},
    {"put_batch", putter_put_batch, METH_VARARGS, NULL},
    {"shut", putter_shut, METH_NOARGS, "shut(): every later call raises"},
    {NULL, NULL, 0, NULL}};

static PyMethodDef taker_methods[] = {
    {"take", WITH_KEYWORDS(taker_take), METH_FASTCALL | METH_KEYWORDS,
     "take(max_items=64, timeout=None) -> items, oldest first, never []\n\n"
     "Raises Empty after `timeout` seconds, Closed when closed and drained, HandFull."},
    {"release", taker_release, METH_O,
     "release(items): done with them, for good\n\nRaises NotHeld, and then releases none."},
    {"held", taker_held, METH_NOARGS, "held() -> the items in this hand"},
    {"begin", taker_begin, METH_VARARGS,
     "begin(item, trial=False): this one is worked on alone from now on; None: none is\n\n"
     "Of a death until then, Ring.blame blames it."},
    {"shut", taker_shut, METH_NOARGS, "shut(): every later call raises"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot item_slots[] = {{Py_tp_doc, "One message of the ring."},
                                   {Py_tp_new, item_new},
                                   {Py_tp_dealloc, item_dealloc},
                                   {Py_tp_richcompare, item_compare},
                                   {Py_tp_hash, item_hash},
                                   {Py_tp_repr, item_repr},
                                   {Py_tp_members, item_members},
                                   {Py_tp_getset, item_fields},
                                   {Py_tp_methods, item_methods},
                                   {0, NULL}};
static PyType_Slot mapping_slots[] = {{Py_tp_dealloc, mapping_dealloc},
                                      {Py_tp_methods, mapping_methods},
                                      {Py_tp_getset, mapping_fields},
                                      {0, NULL}};
static PyType_Slot putter_slots[] = {{Py_tp_new, putter_new},
                                     {Py_tp_dealloc, putter_dealloc},
                                     {Py_tp_methods, putter_methods},
                                     {0, NULL}};
static PyType_Slot taker_slots[] = {{Py_tp_new, taker_new},
                                    {Py_tp_dealloc, taker_dealloc},
                                    {Py_tp_methods, taker_methods},
                                    {0, NULL}};

static PyType_Spec item_spec = {"ringbuf.Item", sizeof(Item), 0, Py_TPFLAGS_DEFAULT, item_slots};
static PyType_Spec mapping_spec = {"ringbuf._kernel.Mapping", sizeof(Mapping), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                   mapping_slots};
static PyType_Spec putter_spec = {"ringbuf._kernel.Putter", sizeof(Putter), 0,
                                  Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, putter_slots};
static PyType_Spec taker_spec = {"ringbuf._kernel.Taker", sizeof(Taker), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, taker_slots};

/* For what lies beside the ring: one sum, one implementation of it. */
static PyObject *crc32c(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer data;
    unsigned int crc = 0;
    if (!PyArg_ParseTuple(args, "y*|I", &data, &crc)) return NULL;
    crc = ~rb_crc(~crc, data.buf, (size_t)data.len);
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

static PyMethodDef module_methods[] = {
    {"crc32c", crc32c, METH_VARARGS, "crc32c(data, crc=0) -> the sum (Castagnoli) of what went before and data"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_kernel", NULL, -1, module_methods,
                                        NULL, NULL, NULL, NULL};

static int import_errors(void) {
    struct {
        const char *name;
        PyObject **into;
    } wanted[] = {{"RingError", &RingError}, {"Closed", &Closed},     {"Empty", &Empty},
                  {"HandFull", &HandFull},   {"Misfit", &Misfit},     {"NotHeld", &NotHeld},
                  {"TooLarge", &TooLarge}};
    PyObject *errors = PyImport_ImportModule("ringbuf.errors");
    for (size_t i = 0; errors && i < sizeof wanted / sizeof *wanted; i++)
        if (!(*wanted[i].into = PyObject_GetAttrString(errors, wanted[i].name))) return -1;
    Py_XDECREF(errors);
    return errors ? 0 : -1;
}

static PyTypeObject *add_type(PyObject *module, PyType_Spec *spec) {
    PyTypeObject *type = (PyTypeObject *)PyType_FromSpec(spec);
    if (type && PyModule_AddType(module, type)) Py_CLEAR(type);
    return type;
}

PyMODINIT_FUNC PyInit__kernel(void) {
    PyObject *module = PyModule_Create(&module_def);
    if (!module || import_errors()) goto failed;
    rb_crc_init();
    if (pthread_atfork(NULL, NULL, on_fork)) {
        PyErr_SetString(PyExc_ImportError, "pthread_atfork refused");
        goto failed;
    }
    if (!(ItemType = add_type(module, &item_spec))) goto failed;
    if (!(MappingType = add_type(module, &mapping_spec))) goto failed;
    if (!(PutterType = add_type(module, &putter_spec))) goto failed;
    if (!(TakerType = add_type(module, &taker_spec))) goto failed;
    return module;
failed:
    Py_XDECREF(module);
    return NULL;
}
