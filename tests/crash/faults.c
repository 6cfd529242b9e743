/* Preloaded into every process of the program: makes the system calls on files below one directory
 * fail as a disk would, when and where a test says so, and counts them.
 *
 * FAULTS_CONTROL names a file that the test and all processes map; its layout is `control`, known
 * to faults.py by the same names in the same order. FAULTS_UNDER is the directory.
 *
 * A sync that is made to fail takes back what its process wrote to that file since the last good
 * one: the kernel reports such an error once and may have dropped the pages, so a program that goes
 * on as if they were there has lost them. Other processes' writes stay. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum kind { JOURNAL, HALF, DATABASE, WAL, ROLLBACK, DATA_DIR, JOURNAL_DIR, OTHER, KINDS,
            NONE = KINDS };
enum filling { ROOMY, FULL, FULL_EVERYWHERE };

typedef struct {
    /* Said by the test. The N-th of those that count fails, 0: none; kinds: which count, as bits. */
    uint64_t fail_sync, fail_write;
    uint32_t sync_kinds, write_kinds;
    uint32_t full;      /* FULL: what would grow; FULL_EVERYWHERE: every write */
    uint32_t full_kinds;
    uint32_t read_only; /* nothing is opened for writing, made, renamed or removed */
    uint32_t unused;
    int64_t clock_ns; /* added to the time of day */
    /* Said by the processes. */
    _Atomic uint64_t syncs, writes; /* that counted */
    _Atomic uint64_t syncs_of[KINDS], writes_of[KINDS];
    _Atomic uint64_t refused;  /* calls that met no room, or found all read-only */
    _Atomic uint64_t failed_ns; /* CLOCK_MONOTONIC when a sync or write was made to fail */
    _Atomic uint32_t failed_pid, failed_kind;
    _Atomic uint64_t taken_back;  /* bytes that the failed sync has lost */
    _Atomic uint64_t after;       /* syncs and writes of that process after its error */
    _Atomic uint64_t answers;     /* 202s of all processes */
    _Atomic uint64_t last_answer_ns;
} control;

/* What was in a file before a write that is not synced yet. */
typedef struct change {
    struct change *earlier;
    dev_t device;
    ino_t inode;
    off_t offset, size; /* size: of the file */
    size_t count;
    char before[];
} change;

static control *said;
static char under[4096];
static size_t under_bytes;
static change *changes;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))
static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("FAULTS_CONTROL"), *directory = getenv("FAULTS_UNDER");
    if (!path || !directory || strlen(directory) >= sizeof under) return;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0) abort();
    void *mapped = mmap(NULL, sizeof *said, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (mapped == MAP_FAILED) abort();
    strcpy(under, directory);
    under_bytes = strlen(under);
    said = mapped;
}

static int64_t monotonic_ns(void) {
    struct timespec now;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int ends_with(const char *path, const char *suffix) {
    size_t a = strlen(path), b = strlen(suffix);
    return a >= b && !strcmp(path + a - b, suffix);
}

static enum kind kind_of_path(const char *path) {
    if (!said || strncmp(path, under, under_bytes) ||
        (path[under_bytes] && path[under_bytes] != '/'))
        return NONE;
    if (ends_with(path, ".journal") || ends_with(path, ".sealed")) return JOURNAL;
    if (ends_with(path, ".new") && strstr(path, "/journal/")) return HALF;
    if (ends_with(path, ".db")) return DATABASE;
    if (ends_with(path, "-wal")) return WAL;
    if (ends_with(path, "-journal")) return ROLLBACK;
    struct stat about;
    if (stat(path, &about) || !S_ISDIR(about.st_mode)) return OTHER;
    return ends_with(path, "/journal") ? JOURNAL_DIR : DATA_DIR;
}

static enum kind kind_of(int fd) {
    char name[64], path[4096];
    if (!said) return NONE;
    int errno_before = errno;
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t count = readlink(name, path, sizeof path - 1);
    enum kind found = NONE;
    if (count > 0) path[count] = 0, found = kind_of_path(path);
    errno = errno_before;
    return found;
}

/* ---- what is not synced yet ------------------------------------------------------------------ */

static void remember(int fd, size_t count, off_t offset) {
    struct stat about;
    change *one = malloc(sizeof *one + count);
    if (!one || fstat(fd, &about)) abort();
    ssize_t there = pread(fd, one->before, count, offset);
    one->device = about.st_dev, one->inode = about.st_ino;
    one->offset = offset, one->size = about.st_size;
    one->count = there > 0 ? (size_t)there : 0;
    pthread_mutex_lock(&lock);
    one->earlier = changes, changes = one;
    pthread_mutex_unlock(&lock);
}

/* The newest first, so that each finds what was there after the one before it. */
static void forget(int fd, int take_back) {
    struct stat about;
    if (fstat(fd, &about)) return;
    pthread_mutex_lock(&lock);
    for (change **link = &changes; *link;) {
        change *one = *link;
        if (one->device != about.st_dev || one->inode != about.st_ino) {
            link = &one->earlier;
            continue;
        }
        if (take_back) {
            said->taken_back += one->count;
            if (REAL(pwrite)(fd, one->before, one->count, one->offset) < 0) abort();
            if (one->offset + (off_t)one->count == one->size && REAL(ftruncate)(fd, one->size))
                abort();
        }
        *link = one->earlier;
        free(one);
    }
    pthread_mutex_unlock(&lock);
}

/* ---- failing --------------------------------------------------------------------------------- */

static void note_after(void) {
    if (said->failed_pid == (uint32_t)getpid()) said->after++;
}

static int fails(enum kind kind, uint32_t kinds, _Atomic uint64_t *counted, uint64_t which) {
    if (!(kinds >> kind & 1) || ++*counted != which) return 0;
    said->failed_kind = kind;
    said->failed_pid = (uint32_t)getpid();
    return 1;
}

static int failed(void) {
    said->failed_ns = (uint64_t)monotonic_ns();
    errno = EIO;
    return -1;
}

static int no_room(int fd, enum kind kind, off_t until) {
    struct stat about;
    if (!said->full || !(said->full_kinds >> kind & 1)) return 0;
    if (said->full == FULL && !fstat(fd, &about) && until <= about.st_size) return 0;
    said->refused++;
    errno = ENOSPC;
    return 1;
}

static int synced(int fd, int (*sync)(int)) {
    enum kind kind = kind_of(fd);
    if (kind == NONE) return sync(fd);
    note_after();
    said->syncs_of[kind]++;
    if (fails(kind, said->sync_kinds, &said->syncs, said->fail_sync)) {
        forget(fd, 1);
        return failed();
    }
    int result = sync(fd);
    if (!result) forget(fd, 0);
    return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

static ssize_t placed(int fd, const void *data, size_t count, off_t offset,
                      ssize_t (*put)(int, const void *, size_t, off_t)) {
    enum kind kind = kind_of(fd);
    if (kind == NONE) return put(fd, data, count, offset);
    note_after();
    said->writes_of[kind]++;
    if (fails(kind, said->write_kinds, &said->writes, said->fail_write)) return failed();
    if (no_room(fd, kind, offset + (off_t)count)) return -1;
    remember(fd, count, offset);
    return put(fd, data, count, offset);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) {
    return placed(fd, data, count, offset, REAL(pwrite));
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    return placed(fd, data, count, offset, REAL(pwrite64));
}

int posix_fallocate(int fd, off_t offset, off_t count) {
    enum kind kind = kind_of(fd);
    if (kind != NONE && no_room(fd, kind, offset + count)) return ENOSPC;
    return REAL(posix_fallocate)(fd, offset, count);
}

int posix_fallocate64(int fd, off64_t offset, off64_t count) {
    return posix_fallocate(fd, offset, count);
}

int ftruncate(int fd, off_t size) {
    enum kind kind = kind_of(fd);
    return kind != NONE && no_room(fd, kind, size) ? -1 : REAL(ftruncate)(fd, size);
}

int ftruncate64(int fd, off64_t size) { return ftruncate(fd, size); }

/* ---- plain writes, and what clients are told ------------------------------------------------- */

static void note_answer(const void *data, size_t count) {
    static const char accepted[] = "HTTP/1.1 202";
    if (!said || count < sizeof accepted || memcmp(data, accepted, sizeof accepted - 1)) return;
    said->answers++;
    said->last_answer_ns = (uint64_t)monotonic_ns();
}

/* SQLite is built to seek and write on some systems. */
static ssize_t appended(int fd, const void *data, size_t count, off_t offset) {
    (void)offset;
    return REAL(write)(fd, data, count);
}

ssize_t write(int fd, const void *data, size_t count) {
    note_answer(data, count);
    int before = errno;
    off_t at = said ? lseek(fd, 0, SEEK_CUR) : -1;
    errno = before;
    if (at < 0) return REAL(write)(fd, data, count); /* a pipe, a socket */
    return placed(fd, data, count, at, appended);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (count > 0) note_answer(parts[0].iov_base, parts[0].iov_len);
    return REAL(writev)(fd, parts, count);
}

ssize_t send(int fd, const void *data, size_t count, int flags) {
    note_answer(data, count);
    return REAL(send)(fd, data, count, flags);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    if (message->msg_iovlen)
        note_answer(message->msg_iov[0].iov_base, message->msg_iov[0].iov_len);
    return REAL(sendmsg)(fd, message, flags);
}

/* ---- read-only ------------------------------------------------------------------------------- */

static int is_refused(const char *path) {
    if (!said || !said->read_only || kind_of_path(path) == NONE) return 0;
    said->refused++;
    errno = EROFS;
    return 1;
}

static int may_not_open(const char *path, int flags) {
    int writes = (flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC;
    int makes = flags & O_CREAT && access(path, F_OK);
    return (writes || makes) && is_refused(path);
}

#define MODE(flags, mode)                                    \
    mode_t mode = 0;                                         \
    if (flags & (O_CREAT | (O_TMPFILE & ~O_DIRECTORY))) {    \
        va_list rest;                                        \
        va_start(rest, flags);                               \
        mode = va_arg(rest, mode_t);                         \
        va_end(rest);                                        \
    }

int open(const char *path, int flags, ...) {
    MODE(flags, mode);
    return may_not_open(path, flags) ? -1 : REAL(open)(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE(flags, mode);
    return may_not_open(path, flags) ? -1 : REAL(open64)(path, flags, mode);
}

int mkdir(const char *path, mode_t mode) {
    return is_refused(path) ? -1 : REAL(mkdir)(path, mode);
}

int rename(const char *from, const char *to) {
    return is_refused(to) ? -1 : REAL(rename)(from, to);
}

int unlink(const char *path) { return is_refused(path) ? -1 : REAL(unlink)(path); }

/* ---- the clock ------------------------------------------------------------------------------- */

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (result || !said || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
        return result;
    int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + said->clock_ns;
    now->tv_sec = ns / 1000000000, now->tv_nsec = ns % 1000000000;
    return 0;
}

time_t time(time_t *result) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (result) *result = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec, now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
