/* What a bulk does for each of its lines, for many lines in one call.
 *
 * `pack_orders` reads an order and writes what lies in a slot, without making an object of anything
 * between. It only says yes or "look again", as the fast way of processors/schema.py does: whatever
 * is not plain (an id, a character beyond ASCII, an escape, a name twice, anything that may be
 * wrong) is left to decode_order. What it does take, it takes to the same bytes; tests hold it to
 * that. It reads no byte beyond the end that bytes objects have, a NUL, which no rule lets pass. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define KEY_BYTES 16
#define ID_BYTES 36
#define CUSTOMER_MAX 200
#define REFERENCE_MAX 100
#define SKU_MAX 64
#define LINES_MAX 100
#define PAIRS_MAX 16
#define METADATA_MAX 1024
#define QUANTITY_MAX 1000000000000ull /* thousandths */
#define RAND_B_MAX ((1ull << 62) - 1)
#define VARIANT (2ull << 62)
#define NUMBER_BYTES_MAX 20 /* of 2^64 */

typedef struct {
    const char *at;
    size_t bytes;
} text;

typedef struct {
    text sku;
    uint64_t thousandths;
} order_line;

typedef struct {
    text customer, reference; /* at: NULL where there is none */
    int has_lines, has_metadata;
    uint32_t lines, pairs;
    order_line line[LINES_MAX];
    text names[PAIRS_MAX], values[PAIRS_MAX];
} order;

/* ---- reading: each returns where it ended, or NULL: look again ------------------------------ */

static const char *skip(const char *at) {
    while (*at == ' ' || *at == '\t' || *at == '\r') at++;
    return at;
}

static const char *read_mark(const char *at, char mark) {
    at = skip(at);
    return *at == mark ? skip(at + 1) : NULL;
}

/* Text of what prints in ASCII, without escapes. */
static const char *read_text(const char *at, text *found) {
    if (*at++ != '"') return NULL;
    found->at = at;
    while (*at >= ' ' && *at < 0x7f && *at != '"' && *at != '\\') at++;
    found->bytes = (size_t)(at - found->at);
    return *at == '"' ? at + 1 : NULL;
}

static int same(text a, text b) { return a.bytes == b.bytes && !memcmp(a.at, b.at, a.bytes); }

static int is(text found, const char *name) {
    return found.bytes == strlen(name) && !memcmp(found.at, name, found.bytes);
}

static const char *read_name(const char *at, text *name) {
    at = read_text(at, name);
    return at ? read_mark(at, ':') : NULL;
}

static int is_sku(text found) {
    for (size_t i = 0; i < found.bytes; i++) {
        char one = found.at[i];
        if (!((one >= 'A' && one <= 'Z') || (one >= 'a' && one <= 'z') ||
              (one >= '0' && one <= '9') || one == '.' || one == '_' || one == '-'))
            return 0;
    }
    return found.bytes > 0 && found.bytes <= SKU_MAX;
}

/* As PLAIN in processors/quantity.py. */
static const char *read_quantity(const char *at, uint64_t *thousandths) {
    int quoted = *at == '"';
    uint64_t whole = 0, part = 0;
    at += quoted;
    const char *begin = at;
    while (*at >= '0' && *at <= '9' && at - begin < 10) whole = whole * 10 + (uint64_t)(*at++ - '0');
    if (at == begin || (*begin == '0' && at - begin > 1)) return NULL;
    if (*at == '.') {
        begin = ++at;
        while (*at >= '0' && *at <= '9' && at - begin < 3) part = part * 10 + (uint64_t)(*at++ - '0');
        if (at == begin) return NULL;
        for (ptrdiff_t digits = at - begin; digits < 3; digits++) part *= 10;
    }
    if (quoted && *at++ != '"') return NULL;
    *thousandths = whole * 1000 + part; /* what follows is no comma or bracket if it goes on */
    return *thousandths && *thousandths <= QUANTITY_MAX ? at : NULL;
}

static const char *read_line(const char *at, order_line *found) {
    int has_sku = 0, has_quantity = 0;
    at = read_mark(at, '{');
    while (at) {
        text name;
        if (!(at = read_name(at, &name))) return NULL;
        if (is(name, "sku") && !has_sku++) at = read_text(at, &found->sku);
        else if (is(name, "quantity") && !has_quantity++)
            at = read_quantity(at, &found->thousandths);
        else return NULL;
        if (!at) return NULL;
        at = skip(at);
        if (*at == '}') break;
        at = read_mark(at, ',');
    }
    return at && has_sku && has_quantity && is_sku(found->sku) ? at + 1 : NULL;
}

static int has_sku(const order *o, text sku) {
    for (uint32_t i = 0; i < o->lines; i++)
        if (same(o->line[i].sku, sku)) return 1;
    return 0;
}

static const char *read_lines(const char *at, order *o) {
    o->has_lines = 1;
    at = read_mark(at, '[');
    while (at) {
        order_line line;
        if (o->lines == LINES_MAX || !(at = read_line(at, &line)) || has_sku(o, line.sku))
            return NULL;
        o->line[o->lines++] = line;
        at = skip(at);
        if (*at == ']') return at + 1;
        at = read_mark(at, ',');
    }
    return NULL;
}

static int comes_before(text a, text b) {
    size_t common = a.bytes < b.bytes ? a.bytes : b.bytes;
    int order = memcmp(a.at, b.at, common);
    return order ? order < 0 : a.bytes < b.bytes;
}

/* In the order of the names, as encode_order writes them; 0: a name twice, or too many. */
static int add_pair(order *o, text name, text value) {
    uint32_t place = o->pairs;
    if (place == PAIRS_MAX) return 0;
    for (; place && !comes_before(o->names[place - 1], name); place--) {
        if (same(o->names[place - 1], name)) return 0;
        o->names[place] = o->names[place - 1], o->values[place] = o->values[place - 1];
    }
    o->names[place] = name, o->values[place] = value, o->pairs++;
    return 1;
}

static const char *read_metadata(const char *at, order *o) {
    size_t bytes = 0;
    o->has_metadata = 1;
    at = read_mark(at, '{');
    if (at && *at == '}') return at + 1;
    while (at) {
        text name, value;
        if (!(at = read_name(at, &name)) || !(at = read_text(at, &value))) return NULL;
        bytes += name.bytes + value.bytes;
        if (bytes > METADATA_MAX || !add_pair(o, name, value)) return NULL;
        at = skip(at);
        if (*at == '}') return at + 1;
        at = read_mark(at, ',');
    }
    return NULL;
}

static const char *read_field(const char *at, order *o, text name) {
    if (is(name, "customer") && !o->customer.at) return read_text(at, &o->customer);
    if (is(name, "lines") && !o->has_lines) return read_lines(at, o);
    if (is(name, "reference") && !o->reference.at) return read_text(at, &o->reference);
    if (is(name, "metadata") && !o->has_metadata) return read_metadata(at, o);
    return NULL;
}

static int read_order(const char *at, const char *end, order *o) {
    o->customer.at = o->reference.at = NULL;
    o->has_lines = o->has_metadata = 0;
    o->lines = o->pairs = 0;
    at = read_mark(at, '{');
    while (at) {
        text name;
        if (!(at = read_name(at, &name)) || !(at = read_field(at, o, name))) return 0;
        at = skip(at);
        if (*at == '}') break;
        at = read_mark(at, ',');
    }
    if (!at || skip(at + 1) != end || !o->customer.at || !o->has_lines) return 0;
    if (!o->customer.bytes || o->customer.bytes > CUSTOMER_MAX) return 0;
    return !o->reference.at || (o->reference.bytes && o->reference.bytes <= REFERENCE_MAX);
}

/* ---- writing: MessagePack, as processors/schema.py has it ------------------------------------ */

static char *write_big(char *to, uint64_t number, int bytes) {
    for (int i = bytes; i--; number >>= 8) to[i] = (char)(number & 0xff);
    return to + bytes;
}

static char *write_marked(char *to, int mark, uint64_t number, int bytes) {
    *to++ = (char)mark;
    return write_big(to, number, bytes);
}

static char *write_text(char *to, text found) {
    if (found.bytes < 32) *to++ = (char)(0xa0 | found.bytes);
    else if (found.bytes < 256) to = write_marked(to, 0xd9, found.bytes, 1);
    else to = write_marked(to, 0xda, found.bytes, 2);
    memcpy(to, found.at, found.bytes);
    return to + found.bytes;
}

static char *write_number(char *to, uint64_t number) {
    if (number < 128) return write_big(to, number, 1);
    if (number <= UINT8_MAX) return write_marked(to, 0xcc, number, 1);
    if (number <= UINT16_MAX) return write_marked(to, 0xcd, number, 2);
    if (number <= UINT32_MAX) return write_marked(to, 0xce, number, 4);
    return write_marked(to, 0xcf, number, 8);
}

static char *write_count(char *to, uint32_t count, int small, int large) {
    if (count < 16) return write_big(to, (uint64_t)small | count, 1);
    return write_marked(to, large, count, 2);
}

static char *write_order(char *to, const order *o) {
    *to++ = (char)0x94;
    to = write_text(to, o->customer);
    to = write_count(to, o->lines, 0x90, 0xdc);
    for (uint32_t i = 0; i < o->lines; i++) {
        *to++ = (char)0x92;
        to = write_text(to, o->line[i].sku);
        to = write_number(to, o->line[i].thousandths);
    }
    if (o->reference.at) to = write_text(to, o->reference);
    else *to++ = (char)0xc0;
    if (!o->has_metadata) return *to++ = (char)0xc0, to;
    to = write_count(to, o->pairs, 0x80, 0xde);
    for (uint32_t i = 0; i < o->pairs; i++)
        to = write_text(write_text(to, o->names[i]), o->values[i]);
    return to;
}

/* At the most: every text with its mark, every line with its mark and number, and what is fixed. */
static size_t order_bytes_max(const order *o) {
    size_t bytes = 32 + o->customer.bytes + (o->reference.at ? o->reference.bytes : 0);
    for (uint32_t i = 0; i < o->lines; i++) bytes += o->line[i].sku.bytes + 16;
    for (uint32_t i = 0; i < o->pairs; i++) bytes += o->names[i].bytes + o->values[i].bytes + 8;
    return bytes;
}

/* One line's payload, or None. */
static PyObject *packed(PyObject *line, Py_ssize_t bytes_max, order *o) {
    char *data;
    Py_ssize_t bytes;
    if (PyBytes_AsStringAndSize(line, &data, &bytes)) return NULL;
    if (bytes > bytes_max || !read_order(data, data + bytes, o)) return Py_NewRef(Py_None);
    char buffer[4096];
    char *to = buffer;
    size_t most = order_bytes_max(o);
    if (most > sizeof buffer && !(to = malloc(most))) return PyErr_NoMemory();
    const char *end = write_order(to, o);
    PyObject *payload = PyBytes_FromStringAndSize(to, end - to);
    if (to != buffer) free(to);
    return payload;
}

static PyObject *pack_orders(PyObject *module, PyObject *args) {
    (void)module;
    PyObject *lines;
    Py_ssize_t bytes_max;
    if (!PyArg_ParseTuple(args, "O!n", &PyList_Type, &lines, &bytes_max)) return NULL;
    Py_ssize_t count = PyList_Size(lines);
    PyObject *payloads = PyList_New(count);
    order *o = payloads ? malloc(sizeof *o) : NULL;
    if (payloads && !o) PyErr_NoMemory();
    for (Py_ssize_t i = 0; o && i < count; i++) {
        PyObject *payload = packed(PyList_GetItem(lines, i), bytes_max, o);
        if (!payload || PyList_SetItem(payloads, i, payload)) break;
    }
    free(o);
    if (PyErr_Occurred()) Py_CLEAR(payloads);
    return payloads;
}

/* ---- ids ------------------------------------------------------------------------------------- */

static PyObject *next_keys(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long high, rand_b;
    const char *steps;
    Py_ssize_t bytes;
    if (!PyArg_ParseTuple(args, "KKy#", &high, &rand_b, &steps, &bytes)) return NULL;
    PyObject *keys = PyList_New(0);
    for (Py_ssize_t i = 0; keys && i + 4 <= bytes; i += 4) {
        char key[KEY_BYTES];
        uint32_t step;
        memcpy(&step, steps + i, sizeof step);
        if (rand_b + 1 + step > RAND_B_MAX) break;
        rand_b += 1 + (uint64_t)step;
        write_big(write_big(key, high, 8), VARIANT | rand_b, 8);
        PyObject *made = PyBytes_FromStringAndSize(key, KEY_BYTES);
        if (!made || PyList_Append(keys, made)) Py_CLEAR(keys);
        Py_XDECREF(made);
    }
    return keys ? Py_BuildValue("NK", keys, rand_b) : NULL;
}

/* ---- results --------------------------------------------------------------------------------- */

static char *add(char *to, const char *from, size_t bytes) {
    memcpy(to, from, bytes);
    return to + bytes;
}

static char *add_number(char *to, unsigned long long number) {
    char digits[NUMBER_BYTES_MAX], *at = digits + NUMBER_BYTES_MAX;
    do *--at = (char)('0' + number % 10);
    while (number /= 10);
    return add(to, at, (size_t)(digits + NUMBER_BYTES_MAX - at));
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

#define LINE "{\"line\":"
#define ORDER_ID ",\"order_id\":\""
#define END "\"}"
#define STAYS(literal) (sizeof(literal) - 1)
#define ENTRY_MAX (STAYS(LINE) + NUMBER_BYTES_MAX + STAYS(ORDER_ID) + ID_BYTES + STAYS(END))

static PyObject *render_taken(PyObject *module, PyObject *args) {
    (void)module;
    unsigned long long first;
    PyObject *keys;
    const char *before, *after;
    Py_ssize_t before_bytes, after_bytes;
    if (!PyArg_ParseTuple(args, "KO!y#y#", &first, &PyList_Type, &keys, &before, &before_bytes,
                          &after, &after_bytes))
        return NULL;
    Py_ssize_t count = PyList_Size(keys);
    size_t most = (size_t)count * (ENTRY_MAX + (size_t)before_bytes + (size_t)after_bytes);
    char *buffer = malloc(most + 1), *to = buffer;
    if (!buffer) return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        char *key;
        Py_ssize_t key_bytes;
        if (PyBytes_AsStringAndSize(PyList_GetItem(keys, i), &key, &key_bytes)) break;
        if (key_bytes != KEY_BYTES) {
            PyErr_Format(PyExc_ValueError, "a key has 16 bytes; this one has %zd", key_bytes);
            break;
        }
        to = add(to, before, (size_t)before_bytes);
        to = add_number(add(to, LINE, STAYS(LINE)), first + (unsigned long long)i);
        to = add_id(add(to, ORDER_ID, STAYS(ORDER_ID)), (const uint8_t *)key);
        to = add(add(to, END, STAYS(END)), after, (size_t)after_bytes);
    }
    PyObject *found = PyErr_Occurred() ? NULL : PyBytes_FromStringAndSize(buffer, to - buffer);
    free(buffer);
    return found;
}

static PyMethodDef methods[] = {
    {"pack_orders", pack_orders, METH_VARARGS,
     "pack_orders(lines, bytes_max) -> for each line the payload of its order; None: look again"},
    {"next_keys", next_keys, METH_VARARGS,
     "next_keys(high, rand_b, steps) -> (keys, rand_b): one key for each 4 bytes of steps, fewer "
     "when rand_b has no room to grow"},
    {"render_taken", render_taken, METH_VARARGS,
     "render_taken(first, keys, before, after) -> the results of lines that were taken, from that "
     "line on"},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef module_def = {PyModuleDef_HEAD_INIT, "_bulk", NULL, 0, methods,
                                        NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__bulk(void) { return PyModuleDef_Init(&module_def); }
