// Calls by Wasmtime's C API: what a call takes whose isolation is a compiler's, on the caller's own thread.
//
// Only what is used here is declared, for the release that compare-wasmtime fetches: the layouts are its.
#define _GNU_SOURCE
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

// MARK: The C API

typedef struct engine engine;
typedef struct store store;
typedef struct context context;
typedef struct module module;
typedef struct caller caller;
typedef struct trap trap;
typedef struct error error;
typedef struct value_type value_type;
typedef struct function_type function_type;

typedef struct {
    size_t size;
    char *bytes;
} byte_list;

typedef struct {
    size_t size;
    value_type **types;
} type_list;

// A function and an instance have the same layout.
typedef struct {
    uint64_t store;
    uint64_t which;
} item;

// The greatest of its cases has 24 bytes.
typedef struct {
    uint8_t kind;
    union {
        int64_t integer;
        uint64_t room[3];
    } of;
} value;

// What has no type with it: 16 bytes each.
typedef union {
    int64_t integer;
    uint64_t room[2];
} raw_value;

typedef struct {
    uint8_t kind;
    union {
        item function;
        uint64_t room[3];
    } of;
} external;

enum { KIND_I64 = 1, EXTERNAL_FUNCTION = 0 };

typedef trap *(*checked_callback)(void *, caller *, const value *, size_t, value *, size_t);
typedef trap *(*unchecked_callback)(void *, caller *, raw_value *, size_t);

engine *wasm_engine_new(void);
value_type *wasm_valtype_new(uint8_t kind);
void wasm_valtype_vec_new(type_list *list, size_t count, value_type *const *types);
function_type *wasm_functype_new(type_list *parameters, type_list *results);
store *wasmtime_store_new(engine *engine, void *data, void (*finalizer)(void *));
context *wasmtime_store_context(store *store);
error *wasmtime_wat2wasm(const char *text, size_t count, byte_list *result);
error *wasmtime_module_new(engine *engine, const uint8_t *bytes, size_t count, module **result);
error *wasmtime_instance_new(context *context, const module *module, const external *imports, size_t count,
                             item *instance, trap **trap);
bool wasmtime_instance_export_get(context *context, const item *instance, const char *name, size_t count,
                                  external *result);
void wasmtime_func_new(context *context, const function_type *type, checked_callback callback, void *data,
                       void (*finalizer)(void *), item *result);
void wasmtime_func_new_unchecked(context *context, const function_type *type, unchecked_callback callback, void *data,
                                 void (*finalizer)(void *), item *result);
error *wasmtime_func_call(context *context, const item *function, const value *arguments, size_t argument_count,
                          value *results, size_t result_count, trap **trap);
error *wasmtime_func_call_unchecked(context *context, const item *function, raw_value *arguments_and_results,
                                    size_t count, trap **trap);
void wasmtime_error_message(const error *error, byte_list *message);

// MARK: The guest, and what it calls

static const char text[] =
    "(module"
    "  (import \"host\" \"add\" (func $host_add (param i64 i64) (result i64)))"
    "  (func (export \"add\") (param i64 i64) (result i64) (i64.add (local.get 0) (local.get 1)))"
    "  (func (export \"call_host_once\") (param i64 i64) (result i64)"
    "    (call $host_add (local.get 0) (local.get 1))))";

static trap *add_checked(void *data, caller *caller, const value *arguments, size_t argument_count, value *results,
                         size_t result_count) {
    (void)data, (void)caller, (void)argument_count, (void)result_count;
    results[0].kind = KIND_I64;
    results[0].of.integer = arguments[0].of.integer + arguments[1].of.integer;
    return NULL;
}

static trap *add_unchecked(void *data, caller *caller, raw_value *arguments_and_results, size_t count) {
    (void)data, (void)caller, (void)count;
    arguments_and_results[0].integer = arguments_and_results[0].integer + arguments_and_results[1].integer;
    return NULL;
}

// MARK: Setting up

static void fail(const char *what, const error *error) {
    byte_list message = {0};
    if (error != NULL) {
        wasmtime_error_message(error, &message);
    }
    fprintf(stderr, "compare-wasmtime: %s: %.*s\n", what, (int)message.size, message.size > 0 ? message.bytes : "");
    exit(1);
}

static void check(const char *what, const error *error, const trap *trap) {
    if (error != NULL || trap != NULL) {
        fail(what, error);
    }
}

static type_list integers(size_t count) {
    value_type *types[2];
    for (size_t i = 0; i < count; i++) {
        types[i] = wasm_valtype_new(KIND_I64);
    }
    type_list list;
    wasm_valtype_vec_new(&list, count, types);
    return list;
}

// The instance's functions, with the host function of one kind or the other.
typedef struct {
    item add, call_host_once;
} guest;

static item export(context *context, const item *instance, const char *name) {
    external found;
    if (!wasmtime_instance_export_get(context, instance, name, strlen(name), &found) ||
        found.kind != EXTERNAL_FUNCTION) {
        fail(name, NULL);
    }
    return found.of.function;
}

static guest instantiate(context *context, const module *module, bool checked) {
    type_list parameters = integers(2), results = integers(1);
    function_type *type = wasm_functype_new(&parameters, &results);
    external import = {.kind = EXTERNAL_FUNCTION};
    if (checked) {
        wasmtime_func_new(context, type, add_checked, NULL, NULL, &import.of.function);
    } else {
        wasmtime_func_new_unchecked(context, type, add_unchecked, NULL, NULL, &import.of.function);
    }
    item instance;
    trap *trap = NULL;
    check("instance", wasmtime_instance_new(context, module, &import, 1, &instance, &trap), trap);
    return (guest){export(context, &instance, "add"), export(context, &instance, "call_host_once")};
}

// MARK: Calls

static int64_t call_checked(context *context, const item *function, int64_t first, int64_t second) {
    value arguments[2] = {{.kind = KIND_I64, .of.integer = first}, {.kind = KIND_I64, .of.integer = second}};
    value result;
    trap *trap = NULL;
    check("call", wasmtime_func_call(context, function, arguments, 2, &result, 1, &trap), trap);
    return result.of.integer;
}

static int64_t call_unchecked(context *context, const item *function, int64_t first, int64_t second) {
    raw_value values[2] = {{.integer = first}, {.integer = second}};
    trap *trap = NULL;
    check("call", wasmtime_func_call_unchecked(context, function, values, 2, &trap), trap);
    return values[0].integer;
}

// MARK: Samples

// As in the benchmarks: a sample is the time of so many calls, divided by as many.
#define CALLS 64

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static int compare(const void *first, const void *second) {
    double difference = *(const double *)first - *(const double *)second;
    return (difference > 0) - (difference < 0);
}

// In microseconds, the nearest rank.
static double percentile(const double *sorted, size_t count, size_t percent) {
    size_t rank = (count * percent + 99) / 100;
    return sorted[rank == 0 ? 0 : rank - 1];
}

static void measure(bool json, const char *benchmark, const char *series, context *context, const item *function,
                    int64_t (*call)(struct context *, const item *, int64_t, int64_t), size_t count) {
    double *samples = calloc(count, sizeof(double));
    if (samples == NULL) {
        fail(benchmark, NULL);
    }
    // A tenth more, which are no samples: they find caches cold.
    for (size_t i = 0; i < count + count / 10; i++) {
        bool right = true;
        uint64_t start = now();
        for (int64_t j = 0; j < CALLS; j++) {
            right &= call(context, function, j, 42) == j + 42;
        }
        double time = (double)(now() - start) / CALLS / 1000;
        if (!right) {
            fail(benchmark, NULL);
        }
        if (i >= count / 10) {
            samples[i - count / 10] = time;
        }
    }
    qsort(samples, count, sizeof(double), compare);
    double p50 = percentile(samples, count, 50), p99 = percentile(samples, count, 99);
    if (json) {
        printf("{\"benchmark\": \"%s\", \"series\": \"%s\", \"unit\": \"us\", \"p50\": %.4f, \"p99\": %.4f}\n",
               benchmark, series, p50, p99);
    } else {
        printf("%-32s%-10s%10.4f%10.4f\n", benchmark, series, p50, p99);
    }
    free(samples);
}

// To the first processor that the process may run on, as the benchmarks' callers are.
static void confine(void) {
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof(allowed), &allowed) < 0) {
        return;
    }
    for (int processor = 0; processor < CPU_SETSIZE; processor++) {
        if (CPU_ISSET(processor, &allowed)) {
            CPU_ZERO(&allowed);
            CPU_SET(processor, &allowed);
            sched_setaffinity(0, sizeof(allowed), &allowed);
            return;
        }
    }
}

int main(int argument_count, char **arguments) {
    bool json = false;
    size_t count = 2000;
    for (int i = 1; i < argument_count; i++) {
        if (strcmp(arguments[i], "--json") == 0) {
            json = true;
        } else if (strcmp(arguments[i], "--iterations") == 0 && i + 1 < argument_count) {
            count = strtoul(arguments[++i], NULL, 10);
        } else {
            fail("usage: compare-wasmtime [--json] [--iterations COUNT]", NULL);
        }
    }
    if (count < 10) {
        fail("--iterations must be at least 10", NULL);
    }
    confine();

    engine *engine = wasm_engine_new();
    byte_list binary;
    check("text", wasmtime_wat2wasm(text, sizeof(text) - 1, &binary), NULL);
    module *module;
    check("module", wasmtime_module_new(engine, (const uint8_t *)binary.bytes, binary.size, &module), NULL);
    context *context = wasmtime_store_context(wasmtime_store_new(engine, NULL, NULL));
    guest checked = instantiate(context, module, true), unchecked = instantiate(context, module, false);

    if (!json) {
        printf("%-32s%-10s%10s%10s\n", "benchmark", "series", "p50 (us)", "p99 (us)");
    }
    measure(json, "wasmtime_call", "checked", context, &checked.add, call_checked, count);
    measure(json, "wasmtime_call", "unchecked", context, &unchecked.add, call_unchecked, count);
    measure(json, "wasmtime_host_call", "checked", context, &checked.call_host_once, call_checked, count);
    measure(json, "wasmtime_host_call", "unchecked", context, &unchecked.call_host_once, call_unchecked, count);
    return 0;
}
