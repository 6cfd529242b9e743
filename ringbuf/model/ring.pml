/* The ring's protocol as ringbuf/kernel.h has it, for Spin. The method, what is covered and what is
 * not: README.md. Run it with check.py, which sets the size and the variant by -D.
 *
 * A STEP is one access that another process can see (or several that it cannot tell apart), and
 * before each of them the process may be killed. Its successor has the same seat and knows nothing.
 * The names in front of a step are the kernel's RB_STEPs that lie between the access before it and
 * this one: to be killed there is to be killed before this step. Steps of the kernel that have none
 * here: adopt.counted (attempts are not kept), bump.counted (commits are not), entry.swapping and
 * entry.swapped (seats are given, not fought for).
 *
 *   WRITERS READERS CLOSERS      seats (a closer closes, then asks whether all is drained)
 *   CAPACITY HAND TAKE BATCH     slots, cells per hand, most items per take and per put
 *   PUTS                         how many items are put in all; killed tries do not count
 *   MORTAL_W MORTAL_R MORTAL_C   whether processes of that kind are killed, any number of times
 *   GONE                         a killed process may also stay without a successor
 *   TWICE                        readers release again what they released before
 *   LOOKERS                      seats that look for an item from outside (slots, then hands)
 *   WAIT                         sleeping by event words; without it a waiter sees what it waits for
 *   TSO                          stores pass through a buffer per process
 *   BUG_...                      one seeded mistake each
 */
#ifndef CLOSERS
#define CLOSERS 0
#endif
#ifndef LOOKERS
#define LOOKERS 0
#endif
#ifndef BATCH
#define BATCH 1
#endif
#ifndef MORTAL_W
#define MORTAL_W 1
#endif
#ifndef MORTAL_R
#define MORTAL_R 1
#endif
#ifndef MORTAL_C
#define MORTAL_C CLOSERS
#endif
#ifdef KILLS
#define ONE_LESS kills--
#else
#define KILLS 1
#define ONE_LESS skip
#endif

/* ---- memory ------------------------------------------------------------------------------- */

#define TAIL 0
#define HEAD 1
#define CLOSED 2
#define OWNER 3
#define LOCK_W 4
#define LOCK_R 5
#define SLOT(s) (6 + 3 * ((s) % CAPACITY))            /* stamp, and the two halves of an item */
#define CELL(r, c) (6 + 3 * CAPACITY + 3 * ((r) * HAND + (c))) /* stamp and two halves */
#define WORDS (6 + 3 * CAPACITY + 3 * READERS * HAND)

#define FREE 0
#define DEAD 255 /* the kernel: its holder died, the next one gets EOWNERDEAD */

#define SEATS (WRITERS + READERS + CLOSERS)
#define WRITERS_SIDE 0
#define READERS_SIDE 1
#define SIDE(seat) ((seat) >= WRITERS && (seat) < WRITERS + READERS)

byte mem[WORDS];
byte cached_head, cached_tail; /* each seen by the holders of one lock only */

/* What must be true, kept beside: never read by the protocol. */
bool want[PUTS];        /* what was put under this sequence is to be handed on */
bool over;              /* somebody was told "closed and drained" */
byte kills = 1;         /* 0: nobody is killed from here on */
byte ended_w, ended_r;
bool gone[SEATS];

#ifdef TSO
/* One FIFO of stores per process. A locked instruction or a full fence waits until it is empty; a
 * kill empties it in order, for the kernel's exit path is a barrier. */
#define DEPTH 14
byte buf_at[SEATS * DEPTH], buf_value[SEATS * DEPTH], buffered[SEATS];
#define DRAINED (buffered[me] == 0)
#define FORGET(at) skip
inline flush_one(p) {
    mem[buf_at[(p) * DEPTH]] = buf_value[(p) * DEPTH];
    buffered[p]--;
    z = 0;
    do
    :: z < buffered[p] ->
        buf_at[(p) * DEPTH + z] = buf_at[(p) * DEPTH + z + 1];
        buf_value[(p) * DEPTH + z] = buf_value[(p) * DEPTH + z + 1];
        z++
    :: else -> break
    od;
    buf_at[(p) * DEPTH + buffered[p]] = 0;
    buf_value[(p) * DEPTH + buffered[p]] = 0;
    z = 0
}
inline store(at, value) {
    d_step {
        assert(buffered[me] < DEPTH - 1);
        buf_at[me * DEPTH + buffered[me]] = at;
        buf_value[me * DEPTH + buffered[me]] = value;
        buffered[me]++
    }
}
inline load(into, from) { /* a process sees its own stores at once */
    d_step {
        into = mem[from];
        z = 0;
        do
        :: z < buffered[me] ->
            if
            :: buf_at[me * DEPTH + z] == from -> into = buf_value[me * DEPTH + z]
            :: else
            fi;
            z++
        :: else -> break
        od;
        z = 0
    }
}
inline flush_all() {
    do
    :: buffered[me] -> flush_one(me)
    :: else -> break
    od
}
proctype Memory(byte p) {
    byte z;
end:
    do
    :: d_step { buffered[p] -> flush_one(p) }
    od
}
#else
#define DRAINED true
#define FORGET(at) forget_bytes(at)
#define store(x, v) mem[x] = v
#define load(into, x) into = mem[x]
#define flush_all() skip
#endif

/* ---- a step, a kill ----------------------------------------------------------------------- */

#define MORTAL \
    (me < WRITERS -> MORTAL_W : (me < WRITERS + READERS -> MORTAL_R : \
                                 (me < WRITERS + READERS + CLOSERS && MORTAL_C)))
#define STEP(...) \
    if \
    :: atomic { __VA_ARGS__ } \
    :: atomic { MORTAL && kills -> goto killed } \
    fi

#define LOCALS bool repaired, seen, owes, asked; byte waking, h, t, n, i, c, x, z, mine[HAND], old, old_cell

#ifdef WAIT
/* The event word counts in all but bit 0. Nobody looks at the count but to see whether it is still
 * the one that he saw, so this is what is kept; that it comes round to it is not covered. */
bool bit0[2];
bool still[SEATS];   /* unchanged since this one announced its sleep */
byte racing[SEATS];  /* side + 1: unchanged since this one loaded it to signal that side */
bool asleep[SEATS];
bool excused[SEATS]; /* a waker was killed before it woke: the re-check may help */

/* Who was killed owed a wake to this seat, or had just cleared the bit that would bring it one. */
#define OWED(seat) \
    (repaired || waking == SIDE(seat) + 1 || \
     owes && (me >= WRITERS + READERS || SIDE(me) != SIDE(seat)))

/* Killed before unlocking is no excuse: whoever repairs after it wakes everybody. Without a
 * successor there may be nobody who comes to that lock: all others sleep. */
#ifdef GONE
#define REPAIRED_LATER false
#else
#define REPAIRED_LATER (mem[LOCK_W] == me + 1 || mem[LOCK_R] == me + 1)
#endif

inline die_waiting() {
    still[me] = false; racing[me] = 0; asleep[me] = false; excused[me] = false;
    z = 0;
    do
    :: z < SEATS && !REPAIRED_LATER ->
        excused[z] = excused[z] || OWED(z) && (still[z] || asleep[z]); z++
    :: else -> break
    od;
    z = 0
}
#else
#define die_waiting() skip
#endif

/* Bytes that nobody reads any more are put to 0, so that states differ in what matters only: in
 * slots not below tail, and in cells without a stamp. Whoever read them all the same would find no
 * item there, and be caught. But lookers may still be copying them. */
inline forget_bytes(at) {
#if LOOKERS
    skip
#else
    mem[at + 1] = 0; mem[at + 2] = 0
#endif
}

inline leave_slots() {
    z = 0;
    do
    :: mem[TAIL] == t && z < n -> forget_bytes(SLOT(t + z)); z++
    :: else -> break
    od
}

inline leave_cells() {
    z = 0;
    do
    :: SIDE(me) && z < HAND && !mem[CELL(me - WRITERS, z)] -> forget_bytes(CELL(me - WRITERS, z)); z++
    :: SIDE(me) && z < HAND && mem[CELL(me - WRITERS, z)] -> z++
    :: else -> break
    od
}

/* Its stores end, its locks go to the next one, its memory is forgotten. */
inline die() {
    d_step {
        flush_all();
        die_waiting();
        if
        :: mem[LOCK_W] == me + 1 -> leave_slots(); mem[LOCK_W] = DEAD
        :: else
        fi;
        if
        :: mem[LOCK_R] == me + 1 -> mem[LOCK_R] = DEAD
        :: else
        fi;
        ONE_LESS;
        leave_cells();
        repaired = false; seen = false; owes = false; waking = 0; asked = false;
        h = 0; t = 0; n = 0; i = 0; c = 0; x = 0; old = 0; old_cell = 0; z = 0;
        do
        :: z < HAND -> mine[z] = 0; z++
        :: else -> break
        od;
        z = 0
    }
}

#ifdef GONE
#define KILLED atomic { true; killed: die(); if :: goto start :: gone[me] = true; goto finish fi }
#else
#define KILLED atomic { true; killed: die(); goto start }
#endif

/* ---- sleeping and waking ------------------------------------------------------------------ */

#ifdef WAIT
inline word_changes(side) {
    bit0[side] = false;
    z = 0;
    do
    :: z < SEATS ->
        still[z] = still[z] && SIDE(z) != side;
        racing[z] = (racing[z] == side + 1 -> 0 : racing[z]);
        z++
    :: else -> break
    od;
    z = 0
}

inline wake(side) {
    z = 0;
    do
    :: z < SEATS -> asleep[z] = asleep[z] && SIDE(z) != side; z++
    :: else -> break
    od;
    z = 0
}

#ifdef BUG_NO_SECOND_LOOK
#define LOOK_AGAIN sleep(); asked = false
#else
#define LOOK_AGAIN skip
#endif

inline wake_one(side) {
    z = 0;
    do
    :: z < SEATS && !(asleep[z] && SIDE(z) == side) -> z++
    :: else -> break
    od;
    if
    :: z < SEATS -> asleep[z] = false
    :: else
    fi;
    z = 0
}

inline announce(side) {
    STEP(DRAINED -> bit0[side] = true; still[me] = true; excused[me] = false)
}

inline sleep() {
    /* sleep.begun */
    STEP(asleep[me] = still[me]; still[me] = false);
    STEP(!asleep[me] || excused[me] -> asleep[me] = false; excused[me] = false)
    /* sleep.woken */
}

#ifdef BUG_NO_FENCE
#define FENCE true
#else
#define FENCE DRAINED
#endif

/* `pays`: after this one everybody was told of what this process published. */
inline signal(side, pays) {
    STEP(FENCE -> seen = bit0[side]; racing[me] = (seen -> side + 1 : 0); owes = owes && (seen || !(pays)));
    if
    :: seen ->
        /* signal.seen */
        STEP(DRAINED -> d_step {
            if
            :: racing[me] -> word_changes(side); waking = side + 1
            :: else
            fi;
        });
        /* signal.cleared */
#ifdef BUG_WAKE_ONE
        STEP(d_step { wake_one(side); seen = false; waking = 0; owes = owes && !(pays) })
#else
        STEP(d_step { wake(side); seen = false; waking = 0; owes = owes && !(pays) })
#endif
    :: else
    fi
}
#else
#ifdef TSO
#define signal(side, pays) STEP(DRAINED -> owes = false) /* its fence */
#else
#define signal(side, pays) owes = false
#endif
#endif

/* ---- locks and repair --------------------------------------------------------------------- */

#ifdef BUG_LOCK_NOT_ROBUST
#define HANDED_ON FREE
#else
#define HANDED_ON DEAD
#endif

inline lock(word) {
    STEP(DRAINED && (mem[word] == FREE || mem[word] == HANDED_ON) ->
        repaired = (mem[word] == DEAD); mem[word] = me + 1)
}

/* That the lock is declared consistent is no step: whether its holder dies before or after, the
 * next one gets EOWNERDEAD. The counters are left out. */
inline repair() {
    /* repair.begun */
    STEP(load(x, OWNER); load(h, HEAD)); /* only holders of this lock change them */
#ifdef BUG_REPAIR_DISOWNS_FIRST
    STEP(store(OWNER, 0));
#endif
    c = 0;
    do
    :: x && c < HAND ->
        STEP(load(t, CELL(x - 1, c))); /* one after a cleared one: repair.cleared */
        if
#if defined(BUG_REPAIR_OFF_BY_ONE)
        :: t && t - 1 > h ->
#elif defined(BUG_REPAIR_CLEARS_ALL)
        :: t ->
#else
        :: t && t - 1 >= h ->
#endif
            /* repair.found */
            STEP(store(CELL(x - 1, c), 0); FORGET(CELL(x - 1, c)))
        :: else
        fi;
        c++
    :: else -> break
    od;
    STEP(store(OWNER, 0); x = 0; c = 0; t = 0; h = 0)
    /* repair.disowned repair.counted repair.consistent */
}

inline lock_readers() {
    lock(LOCK_R);
#ifndef BUG_NO_REPAIR
    if
    :: repaired -> repair()
    :: else
    fi
#endif
}

#ifdef BUG_NO_WAKE_AFTER_REPAIR
#define WAKE_AFTER_REPAIR skip
#else
#define WAKE_AFTER_REPAIR \
    /* unlock.repaired */ \
    signal(READERS_SIDE, false); \
    /* unlock.signalled */ \
    signal(WRITERS_SIDE, false)
#endif

/* A release store: no more is asked of it, though glibc's unlock on x86 is a locked instruction. */
inline unlock(word) {
    STEP(store(word, FREE));
    if
    :: repaired -> WAKE_AFTER_REPAIR; repaired = false
    :: else
    fi
}

/* ---- writers ------------------------------------------------------------------------------ */

inline fill(s) {
#if LOOKERS && !defined(BUG_SLOT_NOT_MARKED)
    /* put.filling */
    STEP(store(SLOT(s), 0));
#endif
    /* put.unstamped */
    STEP(store(SLOT(s) + 1, s + 1));
    /* put.half_copied */
    STEP(store(SLOT(s) + 2, s + 1));
#if LOOKERS
    /* put.copied */
    STEP(store(SLOT(s), s + 1))
#endif
}

inline publish_tail() {
    /* put.stamped put.publishing */
    STEP(
        d_step {
            assert(!over && t + n - mem[HEAD] <= CAPACITY);
            do
            :: i < n -> assert(!want[t + i]); want[t + i] = true; i++
            :: else -> break
            od;
            i = 0;
            owes = true
        };
        store(TAIL, t + n)
    )
}

inline copy_in() {
    do
    :: i < n -> fill(t + i); i++
    :: else -> i = 0; break
    od
}

#ifdef BUG_CLOSED_LOOKED_EARLY
#define LOOK_EARLY STEP(load(c, CLOSED))
#define LOOK_CLOSED x = c; c = 0
#else
#define LOOK_EARLY skip
#define LOOK_CLOSED load(x, CLOSED)
#endif

#ifdef BUG_ONE_TOO_MANY
#define MOST (CAPACITY + 1)
#else
#define MOST CAPACITY
#endif

#ifdef BUG_NO_WAKE_AFTER_PUT
#define WAKE_READERS skip
#else
#define WAKE_READERS signal(READERS_SIDE, true)
#endif

proctype Writer(byte me) {
    LOCALS;
start:
    LOOK_EARLY;
    /* put.begun */
    lock(LOCK_W);
    /* put.locked */
    STEP(
        load(t, TAIL); LOOK_CLOSED;
        if
        :: x || t == PUTS -> n = 0; x = 1
        :: else ->
            n = 1;
            if
            :: BATCH > 1 && t + 1 < PUTS -> n = 2
            :: true
            fi;
            if
            :: MOST - (t - cached_head) < n -> load(cached_head, HEAD)
            :: else
            fi;
            assert(t - cached_head <= MOST);
            n = (MOST - (t - cached_head) < n -> MOST - (t - cached_head) : n)
        fi
    );
    if
    :: n ->
#ifdef BUG_TAIL_FIRST
        publish_tail();
        copy_in();
#else
        copy_in();
        publish_tail();
#endif
        t = 0;
        /* put.published */
        unlock(LOCK_W);
        n = 0;
        /* put.unlocked */
        WAKE_READERS;
        goto start
    :: else ->
        t = 0;
        unlock(LOCK_W)
    fi;
    if
    :: x -> x = 0; goto finish /* closed, or enough was put */
    :: else
    fi;
#ifdef WAIT
look:
    STEP(load(x, CLOSED));
    if
    :: x -> x = 0; asked = false; goto start
    :: else
    fi;
    STEP(load(h, HEAD));
    STEP(load(t, TAIL));
    if
    :: t - h < CAPACITY ->
        h = 0; t = 0; asked = false;
        lock(LOCK_W);
        /* room.locked */
        unlock(LOCK_W);
        goto start
    :: else -> h = 0; t = 0
    fi;
    if
    :: !asked -> announce(WRITERS_SIDE); asked = true; LOOK_AGAIN /* sleep.announced */
    :: else -> sleep(); asked = false
    fi;
    goto look;
#else
    STEP(mem[TAIL] - mem[HEAD] < CAPACITY || mem[CLOSED]);
    goto start;
#endif
    KILLED;
finish:
    ended_w++
}

/* ---- readers ------------------------------------------------------------------------------ */

/* What the reader passes on: whole, what was put, not released before, in no other hand. */
inline deliver(s) {
    load(x, CELL(r, c));
    assert(x == s + 1 && want[s]);
    load(x, CELL(r, c) + 1);
    assert(x == s + 1);
    load(x, CELL(r, c) + 2);
    assert(x == s + 1);
    do
    :: i < READERS * HAND -> load(x, CELL(0, i)); assert(i / HAND == r || x != s + 1); i++
    :: else -> i = 0; break
    od;
    x = 0
}

inline adopt() {
#ifndef BUG_ADOPT_UNLOCKED
    lock_readers();
    /* adopt.locked */
    unlock(LOCK_R);
#endif
    c = 0;
    do
    :: c < HAND ->
        /* adopt.unlocked */
        STEP(d_step {
            load(x, CELL(r, c));
            mine[c] = x;
            if
            :: x -> deliver(mine[c] - 1)
            :: else
            fi
        });
        c++
    :: else -> c = 0; break
    od
}

/* First in, first out: nothing from here on lies in another hand. */
inline publish_head() {
    /* take.stamped take.publishing */
    STEP(d_step {
        assert(h + n <= mem[TAIL]);
        do
        :: i < READERS * HAND -> load(x, CELL(0, i)); assert(i / HAND == r || x <= h); i++
        :: else -> i = 0; break
        od;
        x = 0;
        owes = true
    }; store(HEAD, h + n))
}

inline next_free() {
    do
    :: mine[c] -> c++
    :: else -> break
    od
}

inline copy_out() {
    do
    :: i < n ->
        d_step { next_free() };
        /* take.named */
        STEP(d_step { load(x, SLOT(h + i) + 1); store(CELL(r, c) + 1, x); x = 0 });
        /* take.half_copied */
        STEP(d_step { load(x, SLOT(h + i) + 2); store(CELL(r, c) + 2, x); x = 0 });
        /* take.copied */
        STEP(store(CELL(r, c), h + i + 1); i++; c++)
    :: else -> i = 0; c = 0; break
    od
}

/* Reads its own cells back, where the items that it passes on lie. */
inline keep() {
    STEP(d_step {
        c = 0;
        do
        :: n ->
            next_free();
            load(x, CELL(r, c));
            mine[c] = x;
            assert(x == h + 1);
            deliver(h);
            h++; n--
        :: else -> break
        od;
        c = 0; h = 0
    })
}

#ifdef TWICE
#define REMEMBER(cell) old = mine[cell]; old_cell = cell
#else
#define REMEMBER(cell) skip
#endif

/* HELD(sequence) -> EMPTY by compare-and-swap. */
inline release(cell) {
    /* release.begun */
    STEP(DRAINED -> d_step {
#ifndef BUG_RELEASE_BLIND
        assert(mem[CELL(r, cell)] == mine[cell]);
#endif
        mem[CELL(r, cell)] = 0;
        forget_bytes(CELL(r, cell));
        want[mine[cell] - 1] = false;
        REMEMBER(cell);
        mine[cell] = 0
    })
    /* release.freed */
}

/* What was released last, once more: refused, whoever lies there now. */
inline release_again() {
    STEP(DRAINED -> d_step {
#ifdef BUG_RELEASE_BLIND
        mem[CELL(r, old_cell)] = 0;
#else
        assert(mem[CELL(r, old_cell)] != old);
#endif
        old = 0; old_cell = 0
    })
}

#define HOLDS (mine[0] || mine[HAND - 1])
#define SOME_FREE (!mine[0] || !mine[HAND - 1])

/* Truly closed, and nothing waits. What a hand holds is not asked here. */
inline say_closed() {
    over = true;
    assert(mem[CLOSED]);
    z = h;
    do
    :: z < PUTS -> assert(!want[z]); z++
    :: else -> break
    od;
    z = 0
}

inline ask_closed() {
#ifdef BUG_CLOSED_READ_LAST
    STEP(load(t, TAIL));
    STEP(d_step { load(x, CLOSED); x = x && t == h; t = 0; if :: x -> say_closed() :: else fi })
#else
    STEP(load(x, CLOSED));
    if
    :: x -> STEP(d_step { load(t, TAIL); x = (t == h); t = 0; if :: x -> say_closed() :: else fi })
    :: else
    fi
#endif
}

#ifdef BUG_NO_WAKE_AFTER_TAKE
#define WAKE_WRITERS skip
#else
#define WAKE_WRITERS signal(WRITERS_SIDE, true)
#endif

proctype Reader(byte me; byte r) {
    LOCALS;
start:
    adopt();
work:
    if
    :: mine[0] -> release(0); goto work
    :: HAND > 1 && mine[HAND - 1] -> release(HAND - 1); goto work
#ifdef TWICE
    :: old -> release_again(); goto work
#endif
    :: SOME_FREE
    fi;
    /* take.begun */
    lock_readers();
    /* take.locked */
    STEP(
        load(h, HEAD);
        x = (HAND > 1 && TAKE > 1 && !HOLDS -> 2 : 1);
        if
        :: cached_tail - h < x -> load(cached_tail, TAIL)
        :: else
        fi;
        assert(cached_tail >= h);
        if
        :: cached_tail == h -> n = 0
        :: cached_tail != h -> n = 1
        :: x > 1 && cached_tail - h > 1 -> n = 2
        fi;
        x = 0
    );
    if
    :: !n ->
        ask_closed();
        h = 0;
        unlock(LOCK_R);
        if
        :: HOLDS -> x = 0; goto work
        :: !HOLDS && x -> x = 0; goto finish
        :: else
        fi;
#ifdef WAIT
        if
        :: !asked -> announce(READERS_SIDE); asked = true; LOOK_AGAIN /* sleep.announced */
        :: else -> sleep(); asked = false
        fi;
#else
        STEP(mem[TAIL] != mem[HEAD] || mem[CLOSED]);
#endif
        goto work
    :: else
    fi;
    asked = false;
#ifndef BUG_NO_OWNER
    STEP(store(OWNER, r + 1));
#endif
#ifdef BUG_HEAD_FIRST
    publish_head();
    copy_out();
#else
    copy_out();
#ifdef BUG_OWNER_CLEARED_FIRST
    STEP(store(OWNER, 0));
#endif
    publish_head();
#endif
    /* take.published */
    STEP(store(OWNER, 0));
    /* take.disowned */
    unlock(LOCK_R);
    /* take.unlocked */
    WAKE_WRITERS;
    keep();
    goto work;
    KILLED;
finish:
    ended_r++
}

/* ---- the others --------------------------------------------------------------------------- */

#if CLOSERS
#ifdef BUG_NO_WAKE_AFTER_CLOSE
#define WAKE_ALL skip
#else
#define WAKE_ALL \
    signal(READERS_SIDE, false); \
    /* close.signalled */ \
    signal(WRITERS_SIDE, true)
#endif

#ifdef BUG_HANDS_NOT_ASKED
#define ASKED 0
#else
#define ASKED (READERS * HAND)
#endif

inline ask_hands() {
    do
    :: x && c < ASKED ->
        STEP(load(n, CELL(0, c)); x = !n; n = 0; c++)
    :: else -> break
    od
}

/* Closes; then asks, as the supervisor does, whether every hand is empty too. */
proctype Closer(byte me) {
    LOCALS;
start:
#ifdef BUG_CLOSE_UNLOCKED
    STEP(store(CLOSED, 1); owes = true);
#else
    lock(LOCK_W);
    /* close.locked */
    STEP(store(CLOSED, 1); owes = true);
    /* close.stored */
    unlock(LOCK_W);
#endif
    /* close.unlocked */
    WAKE_ALL;
#ifdef BUG_HANDS_ASKED_FIRST
    x = true;
    ask_hands();
    STEP(load(n, CLOSED); x = x && n; n = 0);
    STEP(load(t, TAIL));
    STEP(load(h, HEAD); x = x && t == h);
#else
    STEP(load(x, CLOSED));
    STEP(load(t, TAIL));
    STEP(load(h, HEAD); x = x && t == h);
    ask_hands();
#endif
    if
    :: x -> d_step { h = 0; say_closed() }
    :: else
    fi;
    goto finish;
    KILLED;
finish:
    skip
}
#endif

#if LOOKERS
/* Looks for an item that is in: slots first, then hands, each copied between two equal stamps. */
inline look_in_slots() {
    x = mem[TAIL];
    atomic { h = mem[HEAD]; x = s >= h && s < x; h = 0 }
    if
    :: x && mem[SLOT(s)] == s + 1 ->
        a = mem[SLOT(s) + 1] == s + 1;
        b = mem[SLOT(s) + 2] == s + 1;
        if
        :: atomic { mem[SLOT(s)] == s + 1 -> assert(a && b) }
            if
            :: mem[HEAD] <= s -> goto found
            :: else /* it has moved on */
            fi
        :: else
        fi
    :: else
    fi
}

inline look_in_hands() {
    do
    :: c < READERS * HAND ->
        x = mem[CELL(0, c)];
        if
        :: x ->
            a = mem[CELL(0, c) + 1] == s + 1;
            b = mem[CELL(0, c) + 2] == s + 1;
            if
            :: atomic { mem[CELL(0, c)] == x && a -> assert(b) }; goto found
            :: else
            fi
        :: else
        fi;
        c++
    :: else -> break
    od
}

#define PROMISED(s) (want[s] && mem[TAIL] > s)

proctype Looker() {
    byte s, h, x, c;
    bool a, b;
    atomic { /* it has heard of the item, so it sees it: no store overtakes the one of tail */
        if
        :: PROMISED(0) -> s = 0
        :: PROMISED(PUTS / 2) -> s = PUTS / 2
        :: PROMISED(PUTS - 1) -> s = PUTS - 1
        fi
    }
#ifdef BUG_HANDS_FIRST
    look_in_hands();
    look_in_slots();
#else
    look_in_slots();
    look_in_hands();
#endif
    assert(!want[s]); /* not found: then it was released meanwhile */
found:
    skip;
    d_step { s = 0; x = 0; c = 0; a = false; b = false }
}
#endif

/* Whoever can't go on now never will. */
inline judge() {
    living = 0; i = 0;
    do
    :: i < READERS -> living = living || !gone[WRITERS + i]; i++
    :: else -> break
    od;
    assert(!living || ended_w == WRITERS && mem[HEAD] == mem[TAIL]);
    assert(!living || !mem[CLOSED] || ended_r == READERS);
    i = 0;
    do
    :: i < READERS * HAND && gone[WRITERS + i / HAND] && mem[CELL(0, i)] ->
        want[mem[CELL(0, i)] - 1] = false; i++ /* it waits there for a successor */
    :: i < READERS * HAND && !(gone[WRITERS + i / HAND] && mem[CELL(0, i)]) -> i++
    :: else -> break
    od;
    i = 0;
    do
    :: i < PUTS -> assert(!want[i] || i >= mem[HEAD] && i < mem[TAIL]); i++
    :: else -> break
    od
}

#ifdef BUG_HAND_SHARED /* given away while its owner lives */
#define HAND_OF(i) 0
#else
#define HAND_OF(i) i
#endif

init {
    byte i;
    bool living;
    atomic {
#ifdef TSO
        do
        :: i < SEATS -> run Memory(i); i++
        :: else -> i = 0; break
        od;
#endif
        do
        :: i < WRITERS -> run Writer(i); i++
        :: else -> i = 0; break
        od;
        do
        :: i < READERS -> run Reader(WRITERS + i, HAND_OF(i)); i++
        :: else -> i = 0; break
        od;
#if CLOSERS
        run Closer(WRITERS + READERS);
#endif
#if LOOKERS
        run Looker();
#endif
        kills = KILLS
    }
    kills = 0;
    timeout;
    d_step { judge() }
}
