/* Syncer: one thread that writes bytes to a file and syncs it, without the interpreter's lock.
 *
 * A thread of Python's would wait for that lock up to 5 ms after each sync, for as long as the event
 * loop is busy, and cost the loop two changes of hands. This one never takes it: who submitted hears
 * of the end through an eventfd, which an event loop watches like any other descriptor.
 *
 *     idle --submit--> busy (the thread writes, then syncs) --> done --result--> idle
 *                                                                 \--> failed, for good
 *
 * A sync is never tried again, for the kernel may have dropped the pages: after the first error
 * every submit raises.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

enum state { IDLE, BUSY, DONE, FAILED, STOPPED };

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;
    pthread_cond_t changed;
    pthread_t thread;
    int running; /* there is a thread */
    pid_t pid;   /* it is in this process: a fork has a copy of all but the thread */
    int wake_fd;
    enum state state; /* of what follows, under the lock */
    int fd;
    int64_t offset;
    PyObject *data; /* kept for the thread, touched only by holders of the interpreter's lock */
    const char *bytes;
    size_t count;
    int error; /* errno of the last submission, 0: written and synced */
    int64_t sync_ns;
} Syncer;

static int64_t clock_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int write_all(int fd, const char *bytes, size_t count, int64_t offset) {
    while (count) {
        ssize_t written = pwrite(fd, bytes, count, (off_t)offset);
        if (written < 0 && errno == EINTR) continue;
        if (written <= 0) return written < 0 ? errno : EIO;
        bytes += written, count -= (size_t)written, offset += written;
    }
    return 0;
}

static void *work(void *argument) {
    Syncer *self = argument;
    pthread_mutex_lock(&self->lock);
    for (;;) {
        while (self->state != BUSY && self->state != STOPPED)
            pthread_cond_wait(&self->changed, &self->lock);
        if (self->state == STOPPED) break;
        pthread_mutex_unlock(&self->lock);
        int error = write_all(self->fd, self->bytes, self->count, self->offset);
        int64_t begun = clock_ns();
        if (!error && fdatasync(self->fd)) error = errno;
        int64_t sync_ns = clock_ns() - begun;
        pthread_mutex_lock(&self->lock);
        self->error = error;
        self->sync_ns = sync_ns;
        self->state = DONE;
        pthread_cond_broadcast(&self->changed);
        uint64_t one = 1;
        while (write(self->wake_fd, &one, sizeof one) < 0 && errno == EINTR) continue;
    }
    pthread_mutex_unlock(&self->lock);
    return NULL;
}

static int forked(const Syncer *self) { return self->pid != getpid(); }

static PyObject *syncer_new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    (void)keywords;
    if (!PyArg_ParseTuple(args, "")) return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Syncer *self = (Syncer *)allocate(type, 0);
    if (!self) return NULL;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->changed, NULL);
    self->pid = getpid();
    self->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    sigset_t all, before; /* signals are for the threads that Python knows */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = self->wake_fd < 0 ? errno : pthread_create(&self->thread, NULL, work, self);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error) {
        errno = error;
        PyErr_SetFromErrno(PyExc_OSError);
        Py_DECREF(self);
        return NULL;
    }
    self->running = 1;
    return (PyObject *)self;
}

/* Waits for what it is at: a write that was begun can't be called off. -> whether it is over; not
 * where another thread is at this, and the thread that works has need of the eventfd. */
static int stop(Syncer *self) {
    if (forked(self)) return 1; /* no thread, and the lock may have been held when it forked */
    if (!self->running) return 0;
    self->running = 0; /* under the interpreter's lock: nobody else comes here */
    Py_BEGIN_ALLOW_THREADS;
    pthread_mutex_lock(&self->lock);
    while (self->state == BUSY) pthread_cond_wait(&self->changed, &self->lock);
    self->state = STOPPED;
    pthread_cond_broadcast(&self->changed);
    pthread_mutex_unlock(&self->lock);
    pthread_join(self->thread, NULL);
    Py_END_ALLOW_THREADS;
    return 1;
}

static void drop(Syncer *self) {
    if (self->wake_fd >= 0) close(self->wake_fd);
    self->wake_fd = -1;
    Py_CLEAR(self->data);
}

static PyObject *syncer_close(PyObject *object, PyObject *unused) {
    (void)unused;
    if (stop((Syncer *)object)) drop((Syncer *)object);
    Py_RETURN_NONE;
}

static void syncer_dealloc(PyObject *object) {
    Syncer *self = (Syncer *)object;
    PyTypeObject *type = Py_TYPE(object);
    stop(self);
    drop(self);
    if (!forked(self)) pthread_cond_destroy(&self->changed), pthread_mutex_destroy(&self->lock);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static int refuse_forked(const Syncer *self) {
    if (forked(self)) PyErr_SetString(PyExc_RuntimeError, "the syncer was made before a fork");
    return PyErr_Occurred() != NULL;
}

static PyObject *syncer_submit(PyObject *object, PyObject *args) {
    Syncer *self = (Syncer *)object;
    int fd;
    long long offset;
    PyObject *data;
    char *bytes;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "iLS", &fd, &offset, &data)) return NULL;
    if (PyBytes_AsStringAndSize(data, &bytes, &count)) return NULL;
    if (refuse_forked(self)) return NULL;
    pthread_mutex_lock(&self->lock);
    int refused = self->state != IDLE || !self->running;
    if (!refused) {
        self->fd = fd, self->offset = offset, self->bytes = bytes, self->count = (size_t)count;
        self->data = Py_NewRef(data);
        self->state = BUSY;
        pthread_cond_broadcast(&self->changed);
    }
    pthread_mutex_unlock(&self->lock);
    if (refused) {
        PyErr_SetString(PyExc_RuntimeError, "the syncer is busy, has failed, or is closed");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *syncer_result(PyObject *object, PyObject *unused) {
    Syncer *self = (Syncer *)object;
    (void)unused;
    uint64_t ends;
    if (refuse_forked(self)) return NULL; /* the eventfd is the other process's, too */
    if (self->wake_fd >= 0 && read(self->wake_fd, &ends, sizeof ends) < 0 && errno != EAGAIN)
        return PyErr_SetFromErrno(PyExc_OSError);
    pthread_mutex_lock(&self->lock);
    int done = self->state == DONE, error = self->error;
    int64_t sync_ns = self->sync_ns;
    if (done) self->state = error ? FAILED : IDLE;
    pthread_mutex_unlock(&self->lock);
    if (!done) Py_RETURN_NONE;
    Py_CLEAR(self->data);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromLongLong(sync_ns);
}

static PyObject *syncer_fileno(PyObject *object, PyObject *unused) {
    (void)unused;
    return PyLong_FromLong(((Syncer *)object)->wake_fd);
}

static PyMethodDef syncer_methods[] = {
    {"submit", syncer_submit, METH_VARARGS,
     "submit(fd, offset, data): begin to write data there and to sync the file"},
    {"result", syncer_result, METH_NOARGS,
     "result() -> None while busy or idle; ns that the sync took; raises OSError once, for good"},
    {"fileno", syncer_fileno, METH_NOARGS, "fileno() -> readable when there is a result"},
    {"close", syncer_close, METH_NOARGS, "close(): ends the thread, after what it is at"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot syncer_slots[] = {{Py_tp_new, syncer_new},
                                     {Py_tp_dealloc, syncer_dealloc},
                                     {Py_tp_methods, syncer_methods},
                                     {0, NULL}};
static PyType_Spec syncer_spec = {"ringbuf._journal.Syncer", sizeof(Syncer), 0, Py_TPFLAGS_DEFAULT,
                                  syncer_slots};
static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_journal", NULL, -1, NULL,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__journal(void) {
    PyObject *module = PyModule_Create(&module_def);
    PyObject *type = module ? PyType_FromSpec(&syncer_spec) : NULL;
    if (!type || PyModule_AddType(module, (PyTypeObject *)type)) Py_CLEAR(module);
    Py_XDECREF(type);
    return module;
}
