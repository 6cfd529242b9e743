/* Preloaded into every process of a service: what it asks of the disk under one directory, and what
 * it answers, as events in one order over all of them.
 *
 * An event has two numbers of that order, before and after the call. A sync keeps what was written
 * by calls that had returned before it was called. An answer's number is taken before it is sent, so
 * an order is held to be promised a little too early, never too late.
 *
 *     RECORD_UNDER   the directory
 *     RECORD_INTO    a directory for one log per process, and the counter that they share
 *
 * SQLite's -shm is written through a mapping and means nothing after a restart: not recorded.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum kind { CREATE = 1, WRITE, TRUNCATE, RENAME, UNLINK, SYNC, SENT, MKDIR };

struct event { /* then `first` and `second` bytes */
    uint64_t before, after, inode;
    int64_t offset, result;
    uint32_t kind, first, second, unused;
};

static _Atomic uint64_t *counter;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static char under[PATH_MAX];
static size_t under_bytes;

__attribute__((constructor)) static void begin(void) {
    const char *watched = getenv("RECORD_UNDER"), *into = getenv("RECORD_INTO");
    char path[PATH_MAX];
    if (!watched || !into) return;
    snprintf(path, sizeof path, "%s/order", into);
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0 || syscall(SYS_ftruncate, fd, 4096)) _exit(99);
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page == MAP_FAILED) _exit(99);
    syscall(SYS_close, fd);
    snprintf(path, sizeof path, "%s/%d-%llu.log", into, (int)getpid(),
             (unsigned long long)atomic_fetch_add((_Atomic uint64_t *)page, 1));
    log_fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log_fd < 0) _exit(99);
    counter = page;
    under_bytes = (size_t)snprintf(under, sizeof under, "%s/", watched);
}

static uint64_t tick(void) { return atomic_fetch_add(counter, 1) + 1; }

static void note(struct event event, const void *first, const void *second) {
    int kept = errno;
    struct iovec parts[3] = {{&event, sizeof event},
                             {(void *)first, event.first},
                             {(void *)second, event.second}};
    size_t all = sizeof event + event.first + event.second;
    pthread_mutex_lock(&lock);
    if (syscall(SYS_writev, log_fd, parts, 3) != (long)all) _exit(99); /* a gap would be believed */
    pthread_mutex_unlock(&lock);
    errno = kept;
}

static int is_watched_path(const char *path) {
    size_t bytes = strlen(path);
    if (!counter || (bytes > 4 && !strcmp(path + bytes - 4, "-shm"))) return 0;
    return !strncmp(path, under, under_bytes) ||
           (bytes == under_bytes - 1 && !strncmp(path, under, bytes));
}

/* -> the inode of a file or directory that is watched, 0 for others */
static uint64_t watched(int fd) {
    char link[64], path[PATH_MAX];
    struct stat found;
    if (!counter) return 0;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t bytes = readlink(link, path, sizeof path - 1);
    path[bytes > 0 ? bytes : 0] = 0;
    if (bytes > 10 && !strcmp(path + bytes - 10, " (deleted)")) path[bytes - 10] = 0;
    int is = is_watched_path(path) && !fstat(fd, &found);
    errno = kept;
    return is ? found.st_ino : 0;
}

/* ---- names -------------------------------------------------------------------------------- */

/* `offset` is the inode of the directory that has the name; nobody moves names between two. */
static void note_path(enum kind kind, uint64_t before, uint64_t inode, const char *path, const char *to) {
    struct event event = {.before = before, .after = tick(), .inode = inode, .kind = kind};
    struct stat found;
    const char *end = strrchr(path, '/');
    char parent[PATH_MAX];
    snprintf(parent, sizeof parent, "%.*s", (int)(end - path), path);
    if (to && strncmp(path, to, (size_t)(end - path) + 1)) _exit(97);
    if (stat(parent, &found)) _exit(97);
    event.offset = (int64_t)found.st_ino;
    event.first = (uint32_t)strlen(path);
    event.second = to ? (uint32_t)strlen(to) : 0;
    note(event, path, to);
}

static int opened(int directory, const char *path, int flags, mode_t mode) {
    struct stat found;
    int fresh = (flags & O_CREAT) && is_watched_path(path) && stat(path, &found);
    uint64_t before = fresh ? tick() : 0;
    int fd = (int)syscall(SYS_openat, directory, path, flags, mode);
    if (fd >= 0 && fresh && !fstat(fd, &found)) note_path(CREATE, before, found.st_ino, path, NULL);
    return fd;
}

#define OPEN_MODE(flags) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list arguments; \
        va_start(arguments, flags); \
        mode = va_arg(arguments, mode_t); \
        va_end(arguments); \
    }

int open(const char *path, int flags, ...) { OPEN_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { OPEN_MODE(flags) return opened(AT_FDCWD, path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { OPEN_MODE(flags) return opened(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { OPEN_MODE(flags) return opened(at, path, flags, mode); }

int mkdir(const char *path, mode_t mode) {
    uint64_t before = is_watched_path(path) ? tick() : 0;
    int result = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    struct stat found;
    if (before && !result && !stat(path, &found)) note_path(MKDIR, before, found.st_ino, path, NULL);
    return result;
}

int unlink(const char *path) {
    uint64_t before = is_watched_path(path) ? tick() : 0;
    int result = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (before && !result) note_path(UNLINK, before, 0, path, NULL);
    return result;
}

int rename(const char *path, const char *to) {
    uint64_t before = is_watched_path(path) ? tick() : 0;
    int result = (int)syscall(SYS_renameat2, AT_FDCWD, path, AT_FDCWD, to, 0);
    if (before && !result) note_path(RENAME, before, 0, path, to);
    return result;
}

/* ---- contents ----------------------------------------------------------------------------- */

static void note_write(uint64_t before, uint64_t inode, int64_t offset, const void *data, ssize_t count) {
    if (count <= 0) return;
    struct event event = {.before = before, .after = tick(), .inode = inode, .offset = offset,
                          .kind = WRITE, .first = (uint32_t)count};
    note(event, data, NULL);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off64_t offset) {
    uint64_t inode = watched(fd), before = inode ? tick() : 0;
    ssize_t written = syscall(SYS_pwrite64, fd, data, count, offset);
    if (inode) note_write(before, inode, offset, data, written);
    return written;
}
ssize_t pwrite(int fd, const void *data, size_t count, off_t offset) { return pwrite64(fd, data, count, offset); }

static void note_answers(const char *data, size_t count) {
    static const char answer[] = "HTTP/1.1 202", place[] = "location: /orders/";
    const char *end = data + count;
    while (data < end && (data = memmem(data, (size_t)(end - data), answer, sizeof answer - 1))) {
        data = memmem(data, (size_t)(end - data), place, sizeof place - 1);
        if (!data || end - data < (ptrdiff_t)sizeof place - 1 + 36) return;
        data += sizeof place - 1;
        uint64_t before = tick();
        struct event event = {.before = before, .after = before, .kind = SENT, .first = 36};
        note(event, data, NULL);
    }
}

ssize_t write(int fd, const void *data, size_t count) {
    uint64_t inode = watched(fd), before = 0;
    int64_t offset = 0;
    if (inode) {
        offset = lseek(fd, 0, fcntl(fd, F_GETFL) & O_APPEND ? SEEK_END : SEEK_CUR);
        before = tick();
    } else if (counter && fd != log_fd) {
        note_answers(data, count);
    }
    ssize_t written = syscall(SYS_write, fd, data, count);
    if (inode) note_write(before, inode, offset, data, written);
    return written;
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (watched(fd)) _exit(98); /* nobody does; if somebody will, this must learn it */
    for (int i = 0; counter && i < count; i++) note_answers(parts[i].iov_base, parts[i].iov_len);
    return syscall(SYS_writev, fd, parts, count);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    for (size_t i = 0; counter && i < message->msg_iovlen; i++)
        note_answers(message->msg_iov[i].iov_base, message->msg_iov[i].iov_len);
    return syscall(SYS_sendmsg, fd, message, flags);
}

ssize_t send(int fd, const void *data, size_t count, int flags) {
    if (counter) note_answers(data, count);
    return syscall(SYS_sendto, fd, data, count, flags, NULL, 0);
}

static void note_size(uint64_t before, uint64_t inode, int64_t size) {
    struct event event = {.before = before, .after = tick(), .inode = inode, .offset = size, .kind = TRUNCATE};
    note(event, NULL, NULL);
}

int ftruncate64(int fd, off64_t size) {
    uint64_t inode = watched(fd), before = inode ? tick() : 0;
    int result = (int)syscall(SYS_ftruncate, fd, size);
    if (inode && !result) note_size(before, inode, size);
    return result;
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int posix_fallocate64(int fd, off64_t offset, off64_t bytes) {
    uint64_t inode = watched(fd), before = inode ? tick() : 0;
    struct stat found;
    long failed = syscall(SYS_fallocate, fd, 0, offset, bytes);
    if (failed) return errno;
    if (inode && !fstat(fd, &found)) note_size(before, inode, found.st_size);
    return 0;
}
int posix_fallocate(int fd, off_t offset, off_t bytes) { return posix_fallocate64(fd, offset, bytes); }

static int synced(int fd, long call) {
    uint64_t inode = watched(fd), before = inode ? tick() : 0;
    int result = (int)syscall(call, fd);
    if (inode) {
        struct event event = {.before = before, .after = tick(), .inode = inode, .result = result, .kind = SYNC};
        note(event, NULL, NULL);
    }
    return result;
}
int fsync(int fd) { return synced(fd, SYS_fsync); }
int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
