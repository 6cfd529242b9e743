/* The one answer that every accepted order gets, made in one go. What it says is fixed by
 * answers.order_answer and FrontProtocol._plain; a test holds the two to the same bytes. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <string.h>

#define KEY_BYTES 16
#define ID_BYTES 36
#define NUMBER_BYTES_MAX 20 /* of 2^64 */
#define STAYS(text) (sizeof(text) - 1)

#define LENGTH "\r\ncontent-length: "
#define BODY "\r\n\r\n{\"order_id\":\""
#define BODY_AT 4 /* its first byte, behind the empty line */
#define STATUS "\",\"status\":\"queued\",\"position\":"

static char *add(char *to, const char *text, size_t bytes) {
    memcpy(to, text, bytes);
    return to + bytes;
}

static char *add_id(char *to, const uint8_t *key) {
    static const char digits[] = "0123456789abcdef";
    for (int i = 0; i < KEY_BYTES; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10) *to++ = '-';
        *to++ = digits[key[i] >> 4];
        *to++ = digits[key[i] & 15];
    }
    return to;
}

/* Its decimal digits, at the end of `into`; where they begin. */
static const char *decimal(unsigned long long number, char into[NUMBER_BYTES_MAX]) {
    char *at = into + NUMBER_BYTES_MAX;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    return at;
}

static PyObject *render_queued(PyObject *module, PyObject *const *args, Py_ssize_t nargs) {
    (void)module;
    char *head, *key, position[NUMBER_BYTES_MAX], length[NUMBER_BYTES_MAX];
    Py_ssize_t head_bytes, key_bytes;
    if (nargs != 3)
        return PyErr_Format(PyExc_TypeError, "render_queued() takes 3 arguments (%zd given)", nargs);
    if (PyBytes_AsStringAndSize(args[0], &head, &head_bytes) ||
        PyBytes_AsStringAndSize(args[1], &key, &key_bytes))
        return NULL;
    if (key_bytes != KEY_BYTES)
        return PyErr_Format(PyExc_ValueError, "a key has 16 bytes; this one has %zd", key_bytes);
    unsigned long long number = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred()) return NULL;

    const char *position_at = decimal(number, position);
    size_t position_bytes = (size_t)(position + NUMBER_BYTES_MAX - position_at);
    size_t body_bytes = STAYS(BODY) - BODY_AT + ID_BYTES + STAYS(STATUS) + position_bytes + 1;
    const char *length_at = decimal(body_bytes, length);
    size_t length_bytes = (size_t)(length + NUMBER_BYTES_MAX - length_at);
    size_t bytes = (size_t)head_bytes + ID_BYTES + STAYS(LENGTH) + length_bytes + BODY_AT + body_bytes;

    PyObject *answer = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)bytes);
    if (!answer) return NULL;
    char *to = add(PyBytes_AsString(answer), head, (size_t)head_bytes);
    const char *id = to;
    to = add_id(to, (const uint8_t *)key);
    to = add(to, LENGTH, STAYS(LENGTH));
    to = add(to, length_at, length_bytes);
    to = add(to, BODY, STAYS(BODY));
    to = add(to, id, ID_BYTES);
    to = add(to, STATUS, STAYS(STATUS));
    to = add(to, position_at, position_bytes);
    *to = '}';
    return answer;
}

static PyMethodDef methods[] = {
    {"render_queued", (PyCFunction)(void (*)(void))render_queued, METH_FASTCALL,
     "render_queued(head, key, position) -> the whole answer\n\n"
     "head: bytes, everything before the order id in its location; key: 16 bytes."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_lane", NULL, 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__lane(void) { return PyModuleDef_Init(&module_def); }
